"""Checkpoints: whole or not there, damage noticed, nothing in them executed."""

import argparse
import copy
import errno
import json
import logging
import os
import pickle
import random
import re
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from videorl import checkpoint
from videorl.registry import UserError


def state_of(value: float) -> dict:
    weights = {"w": torch.full((64, 64), value), "b": torch.zeros(3)}
    return {"epoch": 1, "model_state": weights, "cfg": "A: 1\n", "classes": ["a", "b"], "best": 0.5, "none": None}


def saved(folder: Path, epochs: int, value: float | None = None) -> Path:
    file = folder / checkpoint.name_of(epochs)
    checkpoint.save(file, state_of(epochs if value is None else value), {"epoch": epochs})
    return file


def value_in(file: Path) -> float:
    return checkpoint.read(file)["model_state"]["w"][0, 0].item()


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "videorl")
    return caplog


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- writing ---------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_read(tmp_path):
    file = saved(tmp_path / "made" / "on demand", 2, 7.0)
    state, wanted = checkpoint.read(file), state_of(7.0)
    assert torch.equal(state.pop("model_state")["w"], wanted.pop("model_state")["w"])
    assert state == wanted
    mark = json.loads(file.with_suffix(".json").read_text())
    assert (mark["bytes"], mark["epoch"]) == (file.stat().st_size, 2)
    assert mark["sha256"] == checkpoint._sha256(file)
    assert names(file.parent) == ["checkpoint_epoch_00002.json", "checkpoint_epoch_00002.pyth"]
    plain = torch.load(file, weights_only=True)
    assert plain["epoch"] == 1, "torch alone reads it too"


def test_names_are_pyslowfast_s():
    assert checkpoint.name_of(12) == "checkpoint_epoch_00012.pyth"
    assert checkpoint.name_of(3, 40) == "checkpoint_epoch_00003_step_0000040.pyth"
    assert all(checkpoint.NAME.match(checkpoint.name_of(*at)) for at in ((0,), (12,), (3, 40)))


FAULTS = {
    "writing": ("torch.save", OSError(errno.ENOSPC, "No space left on device")),
    "flushing": ("os.fsync", OSError(errno.ENOSPC, "No space left on device")),
    "renaming": ("os.replace", OSError(errno.EIO, "Input/output error")),
    "stopping": ("torch.save", KeyboardInterrupt()),
}


@pytest.mark.parametrize("stage", FAULTS)
@pytest.mark.parametrize("before", [True, False], ids=["over an old file", "as a new file"])
def test_a_save_that_fails_changes_nothing(tmp_path, monkeypatch, stage, before):
    file = tmp_path / checkpoint.name_of(1)
    if before:
        saved(tmp_path, 1, 1.0)
    name, error = FAULTS[stage]
    module = {"torch": torch, "os": os}[name.split(".")[0]]

    def fail(state, out, *rest):
        if stage in ("writing", "stopping"):
            out.write(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, name.split(".")[1], fail if "torch" in name else lambda *a, **k: fail(None, None))
        with pytest.raises(type(error)):
            checkpoint.save(file, state_of(2.0))
    if not before:
        assert names(tmp_path) == []
    elif stage == "renaming":  # the mark goes first: an old file under a new mark would look damaged, not old
        assert value_in(file) == 1.0
    else:
        assert checkpoint.newest(tmp_path) == file
        assert value_in(file) == 1.0


def test_a_mark_that_does_not_fit_on_the_disk_changes_nothing(tmp_path, monkeypatch):
    file = saved(tmp_path, 1, 1.0)
    sync = os.fsync
    calls = []

    def full_at_the_second(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_at_the_second)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(file, state_of(2.0))
    assert value_in(file) == 1.0
    assert checkpoint.newest(tmp_path) == file
    assert len(names(tmp_path)) == 2


def test_a_disk_quota_that_ends_inside_the_file(tmp_path):
    """RLIMIT_FSIZE makes the kernel itself refuse to write on."""
    good = saved(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (good.stat().st_size // 2, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            saved(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == [good.with_suffix(".json").name, good.name]
    assert checkpoint.newest(tmp_path) == good


class Killed(BaseException):
    """Like kill -9: the clean-up that `save` tries is stopped too."""


class Countdown:
    """Lets `left` of the wrapped calls through and stops every later one."""

    def __init__(self, left: int):
        self.left = left

    def wrap(self, real):
        def counted(*args, **kwargs):
            self.left -= 1
            if self.left < 0:
                raise Killed
            return real(*args, **kwargs)

        return counted


WRITES = 9  # of one save: flush, flush, unlink, rename, folder, rename, clean-up, clean-up, folder
COMMITTED = 6


@pytest.mark.parametrize("done", range(WRITES + 1))
def test_killed_between_any_two_writes_there_is_one_to_resume(tmp_path, monkeypatch, done):
    saved(tmp_path, 1)
    countdown = Countdown(done)
    with monkeypatch.context() as patch:
        for module, name in ((os, "replace"), (os, "fsync"), (Path, "unlink")):
            patch.setattr(module, name, countdown.wrap(getattr(module, name)))
        try:
            saved(tmp_path, 2)
            killed = False
        except Killed:
            killed = True
    assert killed == (done < WRITES)
    found = checkpoint.newest(tmp_path)
    assert value_in(found) == int(checkpoint.NAME.match(found.name)[1])
    assert found.name == checkpoint.name_of(2 if done >= COMMITTED else 1)
    checkpoint.sweep(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


def test_sweep_takes_only_what_is_half_written(tmp_path, said):
    good = saved(tmp_path, 1)
    (tmp_path / "checkpoint_epoch_00002.tmp").write_bytes(b"half")
    (tmp_path / "checkpoint_epoch_00002.json.tmp").write_bytes(b"half")
    (tmp_path / "notes.tmp").write_bytes(b"of the user")
    (tmp_path / "folder.tmp").mkdir()
    checkpoint.sweep(tmp_path)
    assert names(tmp_path) == [good.with_suffix(".json").name, good.name, "folder.tmp", "notes.tmp"]
    assert said.text.count("left by a run that was killed while saving") == 2
    checkpoint.sweep(tmp_path / "not there")


def test_prune_keeps_the_newest_and_what_it_does_not_know(tmp_path):
    for epochs in range(1, 6):
        saved(tmp_path, epochs)
    checkpoint.save(tmp_path / checkpoint.name_of(3, 7), state_of(0.0))
    checkpoint.save(tmp_path / checkpoint.BEST, state_of(0.0))
    (tmp_path / checkpoint.name_of(2)).with_suffix(".json").unlink()
    (tmp_path / "mine.pyth").touch()
    for keep in (0, -1):
        checkpoint.prune(tmp_path, keep, tmp_path / checkpoint.name_of(5))
        assert len(names(tmp_path)) == 14
    checkpoint.prune(tmp_path, 3, tmp_path / checkpoint.name_of(5))
    left = [name for name in names(tmp_path) if name.endswith(".pyth")]
    expected = [checkpoint.name_of(*at) for at in ((3, 7), (4,), (5,), (2,))]
    assert left == sorted([*expected, "mine.pyth", checkpoint.BEST])


def test_prune_goes_by_the_step_and_not_by_the_clock(tmp_path):
    """The clock was set back, or is another machine's: each newer checkpoint seems older."""
    for epochs in range(1, 6):
        mark = saved(tmp_path, epochs).with_suffix(".json")
        os.utime(mark, (1e9 - epochs, 1e9 - epochs))
        checkpoint.prune(tmp_path, 2, tmp_path / checkpoint.name_of(epochs))
    assert [name for name in names(tmp_path) if name.endswith(".pyth")] == [checkpoint.name_of(n) for n in (4, 5)]


def test_prune_deletes_nothing_of_a_later_step_than_the_one_written(tmp_path):
    for epochs in (1, 2, 3, 7, 8, 9):
        saved(tmp_path, epochs)
    checkpoint.prune(tmp_path, 2, tmp_path / checkpoint.name_of(3))
    left = [name for name in names(tmp_path) if name.endswith(".pyth")]
    assert left == [checkpoint.name_of(n) for n in (2, 3, 7, 8, 9)]


def test_prune_takes_the_mark_first(tmp_path, monkeypatch):
    """Killed between the two, the file counts as not finished, and not as damaged."""
    for epochs in (1, 2):
        saved(tmp_path, epochs)
    order = []
    real = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **kwargs: (order.append(self.suffix), real(self, **kwargs)))
    checkpoint.prune(tmp_path, 1, tmp_path / checkpoint.name_of(2))
    assert order == [".json", ".pyth"]


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def hole(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[4096:8192] = bytes(4096)
    file.write_bytes(data)


def cut(part: float):
    return lambda file: os.truncate(file, int(file.stat().st_size * part) - 1)


DAMAGE = {
    "one bit flipped": (flip, "SHA-256 differs"),
    "4 kB hole": (hole, "SHA-256 differs"),
    "zeros of the same size": (lambda f: f.write_bytes(bytes(f.stat().st_size)), "SHA-256 differs"),
    "half": (cut(0.5), "bytes where"),
    "last byte": (cut(1.0), "bytes where"),
    "empty": (lambda f: f.write_bytes(b""), "0 bytes where"),
    "longer": (lambda f: f.write_bytes(f.read_bytes() + b"junk"), "bytes where"),
    "another's": (
        lambda f: checkpoint.save(f.with_name("x.pyth"), {"a": 1}) or f.with_name("x.pyth").replace(f),
        "wher",
    ),
    "mark cut": (lambda f: os.truncate(f.with_suffix(".json"), 20), "checkpoint_epoch_00002.json is not readable"),
    "mark of zeros": (lambda f: f.with_suffix(".json").write_bytes(bytes(90)), "json is not readable"),
    "mark of odd values": (
        lambda f: f.with_suffix(".json").write_text('{"bytes": "3", "sha256": 5}'),
        "is not readable",
    ),
    "mark of a long number": (
        lambda f: f.with_suffix(".json").write_text(f'{{"bytes": {"9" * 9999}}}'),
        "not readable",
    ),
    "mark nested deeply": (lambda f: f.with_suffix(".json").write_text("[" * 60_000), "json is not readable"),
    "mark too long": (lambda f: f.with_suffix(".json").write_text(" " * 70_000 + "{}"), "json is not readable"),
    "mark of other bytes": (lambda f: f.with_suffix(".json").write_bytes(b"\xff\xfe{}"), "json is not readable"),
    "mark a list": (lambda f: f.with_suffix(".json").write_text("[1]"), "json is not readable"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_newest_if_damaged_is_passed_over_and_named(tmp_path, said, kind):
    before, damaged = saved(tmp_path, 1), saved(tmp_path, 2)
    injure, reason = DAMAGE[kind]
    content = damaged.read_bytes()
    injure(damaged)
    assert damaged.read_bytes() != content or "mark" in kind
    assert checkpoint.newest(tmp_path) == before
    warning = said.records[-1].getMessage()
    assert str(damaged) in warning
    assert reason in warning
    assert "trying the one before" in warning
    with pytest.raises(UserError, match=f"{re.escape(str(damaged))} is damaged: .*{re.escape(reason)}"):
        checkpoint.read(damaged)


def test_a_foreign_file_is_passed_over_but_can_be_named(tmp_path, said):
    own = saved(tmp_path, 1)
    foreign = tmp_path / checkpoint.name_of(9)
    torch.save(state_of(9.0), foreign)
    assert checkpoint.newest(tmp_path) == own
    assert f"{foreign} has no checkpoint_epoch_00009.json beside it" in said.text
    assert value_in(foreign) == 9.0


def test_newest_counts_epochs_and_steps_as_numbers(tmp_path):
    for at in ((2,), (10,), (9, 9999999), (10, 3)):
        checkpoint.save(tmp_path / checkpoint.name_of(*at), {"at": list(at)})
    for expected in ((10, 3), (10,), (9, 9999999), (2,)):
        file = checkpoint.newest(tmp_path)
        assert checkpoint.read(file)["at"] == list(expected)
        file.unlink()
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "not there") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "it is no file of tensors and plain values"),
        (b"hello" * 99, "cannot be read"),
        (bytes(9999), "it is no file of tensors and plain values"),
        ([1], "found a list"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, words):
    file = tmp_path / "x.pyth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        torch.save(content, file)
    with pytest.raises(UserError, match=words) as error:
        checkpoint.read(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


# --- nothing in it is run --------------------------------------------------------------------------------------------


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


WRAPPED = {
    "alone": lambda p: {"model_state": p},
    "in cfg": lambda p: {"model_state": {}, "cfg": {"A": [p]}},
    "in args": lambda p: {"args": argparse.Namespace(lr=1.0, deep=argparse.Namespace(x=p))},
    "in the optimizer": lambda p: {"optimizer_state": {"param_groups": [{"params": [0], "lr": p}]}},
    "as a key": lambda p: {"epoch": 1, (1, p): 2},
    "after numpy": lambda p: {"best": np.float64(1.0), "rng": np.random.RandomState(0).get_state(), "x": p},
}


@pytest.mark.parametrize("door", ["", "1"], ids=["", "forced open"])
@pytest.mark.parametrize("layout", ["zip", "old", "pickle"])
@pytest.mark.parametrize("where", WRAPPED)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_payloads_are_refused_and_not_run(tmp_path, monkeypatch, where, layout, door):
    if door:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", door)
    file, marker = tmp_path / "x.pyth", tmp_path / "ran"
    state = WRAPPED[where](Payload(marker))
    if layout == "pickle":
        file.write_bytes(pickle.dumps(state, 2))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(UserError) as error:
        checkpoint.read(file)
    said = str(error.value)
    assert not marker.exists()
    assert "weights_only" not in said
    assert "\n" not in said
    assert "numpy" not in said
    assert "argparse" not in said
    if layout != "pickle":
        assert "objects that could run code (posix.mkdir)" in said
    assert pickle.loads(pickle.dumps(Payload(marker))) is None, "the payload works"
    assert marker.exists()


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), Path("x"), nn.Linear, re.compile("a")], ids=lambda t: str(type(t)))
def test_objects_that_are_no_plain_data_are_refused(tmp_path, thing):
    torch.save({"model": thing}, tmp_path / "x.pyth")
    with pytest.raises(UserError, match="could run code"):
        checkpoint.read(tmp_path / "x.pyth")


@pytest.mark.parametrize("layout", ["zip", "old"])
def test_plain_things_of_published_files_are_read(tmp_path, layout):
    state = {
        "args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.999), nested=argparse.Namespace(a=None)),
        "best_acc1": np.float64(71.5),
        "best": [np.float32(0.5), np.int64(3), np.bool_(True)],
        "numpy_rng": np.random.RandomState(3).get_state(),
        "python_rng": random.Random(3).getstate(),
        "array": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "torch_rng": torch.get_rng_state(),
    }
    file = tmp_path / "x.pyth"
    torch.save(state, file, _use_new_zipfile_serialization=layout == "zip")
    got = checkpoint.read(file)
    assert got["args"] == state["args"]
    assert (got["best_acc1"], got["best"]) == (71.5, [0.5, 3, True])
    assert np.array_equal(got["numpy_rng"][1], state["numpy_rng"][1])
    assert got["python_rng"] == state["python_rng"]
    assert np.array_equal(got["array"], state["array"])


def test_numpy_1_files_are_read(tmp_path):
    """numpy 1 wrote `numpy.core.multiarray` where numpy 2 writes `numpy._core.multiarray`."""
    file = tmp_path / "x.pyth"
    torch.save({"acc": np.float64(71.5), "a": np.arange(3)}, file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    got = checkpoint.read(file)
    assert b"numpy.core" in file.read_bytes()
    assert got["acc"] == 71.5
    assert got["a"].tolist() == [0, 1, 2]


# --- bounds ----------------------------------------------------------------------------------------------------------


def deflated(file: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in entries.items():
            out.writestr(f"archive/{name}", content)
    return file


def test_files_that_inflate_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was believed"))
    file = deflated(tmp_path / "x.pyth", {"data.pkl": pickle.dumps({}, 2), "data/0": bytes(200 << 20), "version": b"3"})
    assert file.stat().st_size < 300_000
    with pytest.raises(UserError, match=r"cannot be read: its \d+ bytes inflate to 2\d{8}, "):
        checkpoint.read(file)


def test_entries_that_share_their_bytes_are_counted_each(tmp_path):
    """A directory may name the same stored bytes many times."""
    file = tmp_path / "x.pyth"
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("archive/data/0", bytes(1 << 20))
        first = out.filelist[0]
        out.filelist += [copy.copy(first) for _ in range(99)]
        for number, entry in enumerate(out.filelist):
            entry.filename = f"archive/data/{number}"
    with pytest.raises(UserError, match="inflate"):
        checkpoint.read(file)


class Filled:
    def __reduce__(self):
        return bytearray, (1 << 20,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bytearray_of_any_size_is_not_made(tmp_path, zipped):
    torch.save({"x": Filled()}, tmp_path / "x.pyth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="cannot be read: it holds a bytearray"):
        checkpoint.read(tmp_path / "x.pyth")


ODD = {
    "sparse": (lambda: torch.eye(3).to_sparse(), "a sparse or nested tensor"),
    "sparse rows": (lambda: torch.eye(3).to_sparse_csr(), "a sparse or nested tensor"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "a quantised tensor"),
    "meta": (lambda: torch.ones(3, device="meta"), "a tensor without numbers"),
    "of one number": (
        lambda: torch.ones(1).expand(10**12),
        "a tensor of 1000000000000 numbers of which the file has 1",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("place", ["weights", "optimizer"])
def test_tensors_of_other_kinds_are_named(tmp_path, kind, place):
    make, words = ODD[kind]
    state = {"model_state": {"w": make()}} if place == "weights" else {"a": [(1, {"b": make()})], "w": torch.ones(1)}
    torch.save(state, tmp_path / "x.pyth")
    name = "model_state.w" if place == "weights" else "a.0.1.b"
    with pytest.raises(UserError, match=f"cannot be read: {name} is {words}.*; re-save its weights") as error:
        checkpoint.read(tmp_path / "x.pyth")
    assert "\n" not in str(error.value)


def test_nests_of_shared_parts_are_looked_at_once(tmp_path):
    """Each level names the one below twice: 2^60 ways to the bottom."""
    nest = [torch.ones(1)]
    for _ in range(60):
        nest = [nest, nest]
    torch.save({"nest": nest}, tmp_path / "x.pyth")
    assert len(checkpoint.read(tmp_path / "x.pyth")["nest"]) == 2


def test_a_look_at_a_file_leaves_its_tensors_there(tmp_path):
    file = saved(tmp_path, 1)
    assert checkpoint.read(file, mapped=True)["cfg"] == "A: 1\n"
    os.truncate(file, 100)
    with pytest.raises(UserError, match="is damaged: 100 bytes where"):
        checkpoint.read(file, mapped=True)


def test_the_allow_list_does_not_outlive_the_call(tmp_path):
    torch.save({"args": argparse.Namespace(a=1)}, tmp_path / "x.pyth")
    checkpoint.read(tmp_path / "x.pyth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.pyth", weights_only=True)
