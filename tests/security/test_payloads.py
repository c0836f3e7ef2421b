"""What others send may hold code, addresses and paths: nothing of it runs, connects, or is read outside its folder.

Payloads in single readers stand in tests/test_checkpoint.py, test_config.py and data/test_pickles.py; playlists in
tests/faults/test_media.py; texts of reports in tests/test_report.py. Here they come through the command, all together.
"""

import argparse
import os
import pickle
import socket
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.faults.conftest import CONFIG, write_set
from videorl import checkpoint
from videorl.registry import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import run_net


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture(autouse=True)
def knocks(monkeypatch) -> list:
    """Addresses that something tried to reach while the test ran. There may be none."""
    found = []

    def refuse(this, address):
        found.append(address)
        raise OSError("no connections here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    yield found
    assert found == []


@pytest.fixture
def marker(tmp_path):
    """A file that every payload makes."""
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_set(folder, {"train": 6, "val": 2, "test": 2})
    return folder


def command(world: Path, out: Path, *words) -> None:
    run_net.main(["--cfg", str(CONFIG), "DATA.PATH_TO_DATA_DIR", str(world), "OUTPUT_DIR", str(out), *map(str, words)])


def code_and_line(capsys, act) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        act()
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    return caught.value.code, line


# ----------------------------------------------------------------------------------------------------- checkpoints


def hidden(payload) -> dict[str, dict]:
    """The payload in each place where a published file has something."""
    weights = {"model_state": {"w": torch.zeros(1)}}
    return {
        "cfg": {**weights, "cfg": {"TRAIN": [payload]}},
        "args": {**weights, "args": argparse.Namespace(lr=payload)},
        "optimizer_state": {**weights, "optimizer_state": {"state": {0: {"step": payload}}, "param_groups": []}},
        "model_state": {"model_state": {"w": payload}},
    }


@pytest.mark.parametrize("place", hidden(None))
@pytest.mark.parametrize("key", ["TRAIN.CHECKPOINT_FILE_PATH", "TEST.CHECKPOINT_FILE_PATH"])
def test_a_checkpoint_named_on_the_command_line_runs_nothing(world, tmp_path, marker, monkeypatch, capsys, key, place):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    call = {"cfg": Calls(os.system, f"touch {marker}"), "args": Calls(open, str(marker), "w")}.get(
        place, Calls(eval, f"open({str(marker)!r}, 'w')")
    )
    torch.save(hidden(call)[place], tmp_path / "x.pyth")
    words = ("TRAIN.ENABLE", key.startswith("TRAIN"), "TRAIN.CHECKPOINT_EPOCH_RESET", True, key, tmp_path / "x.pyth")
    code, line = code_and_line(capsys, lambda: command(world, tmp_path / "out", *words))
    assert code == 2
    assert "objects that could run code" in line
    assert "weights_only" not in line


def tar_layout(file: Path, payload) -> None:
    """The layout of torch before 0.2."""
    content = file.with_suffix(".pickle")
    content.write_bytes(pickle.dumps(payload))
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as out:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            out.add(content, name)


LAYOUTS = {
    "old": lambda file, payload: torch.save({"x": payload}, file, _use_new_zipfile_serialization=False),
    "pickle": lambda file, payload: file.write_bytes(pickle.dumps({"x": payload})),
    "pickle_0": lambda file, payload: file.write_bytes(pickle.dumps({"x": payload}, 0)),
    "tar": tar_layout,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_of_checkpoints_runs_anything(tmp_path, marker, layout):
    LAYOUTS[layout](tmp_path / "x.pyth", Calls(os.system, f"touch {marker}"))
    with pytest.raises(UserError, match="x.pyth cannot be read"):
        checkpoint.read(tmp_path / "x.pyth")


def address(size: int = 8) -> np.ndarray:
    return np.full(size, 65, np.uint8)


FORGED = {
    "array": Calls(np.ndarray, (1,), "O", address()),
    "array_of_dtype": Calls(np.ndarray, (1,), Calls(np.dtype, "O"), address()),
    "array_of_fields": Calls(np.ndarray, (1,), Calls(np.dtype, [("a", "O")]), address()),
    "scalar": Calls(np._core.multiarray.scalar, Calls(np.dtype, "O"), b"A" * 8),
    "scalar_of_fields": Calls(np._core.multiarray.scalar, Calls(np.dtype, [("a", "O")]), b"A" * 8),
    "objects": np.array([{}, None], dtype=object),
    "far_strides": Calls(np.ndarray, (2,), "u1", address(), 0, (2**40,)),
}


@pytest.mark.parametrize("name", FORGED)
def test_no_array_is_made_of_addresses(tmp_path, name):
    """An array of objects takes its bytes for addresses: to look at it reads, and to drop it writes, any memory."""
    torch.save({"x": FORGED[name]}, tmp_path / "x.pyth")
    with pytest.raises(UserError, match="x.pyth cannot be read"):
        checkpoint.read(tmp_path / "x.pyth")


# ---------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    "text",
    [
        "MODEL:\n  MODEL_NAME: !!python/object/apply:os.system ['touch {marker}']\n",
        "!!python/object/new:os.system ['touch {marker}']: 1\n",
        "OUTPUT_DIR: !!python/object/apply:eval [\"open('{marker}', 'w')\"]\n",
        "_BASE_: http://127.0.0.1:9/evil.yaml\n",
        "_BASE_: file:///etc/passwd\n",
        "_BASE_: /etc/passwd\n",
        "_BASE_: evil.py\n",
        "MODEL:\n  MODEL_NAME: os.system\n",
        "MODEL:\n  MODEL_NAME: ../../evil\n",
    ],
)
def test_a_config_runs_and_fetches_nothing(tmp_path, marker, capsys, text):
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (tmp_path / "x.yaml").write_text(text.replace("{marker}", str(marker)))
    code, line = code_and_line(capsys, lambda: run_net.main(["--cfg", str(tmp_path / "x.yaml")]))
    assert code == 2
    assert "root:" not in line


def test_a_python_config_is_not_run(tmp_path, marker, capsys):
    (tmp_path / "x.py").write_text(f"open({str(marker)!r}, 'w')\n")
    code, line = code_and_line(capsys, lambda: run_net.main(["--cfg", str(tmp_path / "x.py")]))
    assert (code, "expected a .yaml file" in line) == (2, True)


# -------------------------------------------------------------------------------------------------------- csv paths


@pytest.mark.parametrize(
    "path",
    ["../outside.mp4", "videos/../../outside.mp4", "/etc/passwd", "http://127.0.0.1:9/a.mp4", "file:///etc/passwd"],
)
def test_paths_that_leave_the_video_folder_are_refused(world, tmp_path, capsys, path):
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "outside.mp4").write_bytes((world / "videos/val_0.mp4").read_bytes())
    for split in ("train", "val", "test"):
        (data / f"{split}.csv").write_text(f"{path} 0\n" * 6)
    code, line = code_and_line(capsys, lambda: command(data, tmp_path / "out"))
    assert code == 2
    assert "leaves the video folder" in line


@pytest.mark.parametrize("path", ["concat:/etc/passwd|a.mp4", "data:text/plain,x", "pipe:0", "tcp:127.0.0.1:9"])
def test_protocols_of_ffmpeg_are_names_of_files(tmp_path, capsys, path):
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.csv").write_text(f"{path} 0\n" * 6)
    code, line = code_and_line(capsys, lambda: command(tmp_path, tmp_path / "out"))
    assert code == 2
    assert "No such file or directory" in line
