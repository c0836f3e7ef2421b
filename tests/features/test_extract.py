"""Features of videos: the right numbers in the right order, the same bytes however they are made, bad videos named."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.video.clips_on_disk import write_video
from videorl import checkpoint, config
from videorl.cli import extract as tool
from videorl.data.shards import Sharded, read_meta
from videorl.engine import build
from videorl.features import extract as making
from videorl.features.draft import Draft
from videorl.features.store import Features
from videorl.video.spans import Crop, Spans

ROOT = Path(__file__).parents[2]
YAML = str(ROOT / "configs/HowTo100M/S3D_MILNCE.yaml")
FRAMES = {"a.mp4": 72, "b.mp4": 33, "c/d.mp4": 15, "c/e.mp4": 60, "f.mp4": 24}  # 30 a second
WINDOWS = {"a.mp4": 3, "b.mp4": 2, "c/d.mp4": 1, "c/e.mp4": 3, "f.mp4": 1}  # of 0.8 s


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> list[str]:
    """The settings of a small S3D, clips of 0.8 s, and the file of its random weights."""
    place = tmp_path_factory.mktemp("model")
    words = {
        "DATA.NUM_FRAMES": 4,
        "DATA.TEST_CROP_SIZE": 32,
        "S3D.WIDTH": 0.125,
        "S3D.EMBED_DIM": 16,
        "S3D.VOCABULARY": 6,
        "DATA_LOADER.NUM_WORKERS": 0,
        "NUM_GPUS": 0,
        "TEST.BATCH_SIZE": 4,
    }
    words = [str(word) for pair in words.items() for word in pair]
    built = build.model(config.load([YAML], words)).train()
    with torch.no_grad():  # else the running statistics of batch norm fit nothing, and all windows look the same
        for _ in range(30):
            built(torch.rand(8, 3, 4, 32, 32))
    checkpoint.save(place / "weights.pyth", {"model_state": built.state_dict()})
    return [*words, "--checkpoint", str(place / "weights.pyth")]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("videos")
    (place / "c").mkdir()
    for number, (name, frames) in enumerate(FRAMES.items()):
        write_video(place / name, range(10 * number, 10 * number + frames))
    return place


@pytest.fixture
def run(model, videos, tmp_path):
    """run(*words, out=…, source=…) runs the tool and returns its exit code."""

    def run(*words, out="out", source=videos) -> int:
        common = [source, "--cfg", YAML, "--out", tmp_path / out, "--view", "square", "--features", "video_embed"]
        try:
            tool.main([*map(str, [*common, *model, *words])])
        except SystemExit as end:
            return end.code
        return 0

    return run


def content(folder: Path) -> dict[str, bytes]:
    files = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if not name.startswith(".parts")}


def by_hand(model: list[str], videos: Path, name: str) -> np.ndarray:
    """[W, 16], one forward pass for each window."""
    built = build.model(config.load([YAML], model[:-2])).eval()
    built.load_state_dict(checkpoint.read(Path(model[-1]))["model_state"])
    rows = []
    for number in range(WINDOWS[name]):
        with Spans(videos / name) as opened, torch.no_grad():
            clip = opened.clip(0.8 * number, frames=4, fps=5.0, crop=Crop(32))
            rows.append(built(clip.permute(1, 0, 2, 3)[None] / 255)["video_embed"][0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("layout", ["npy", "safetensors"])
def test_features_are_those_of_brute_force(run, model, videos, tmp_path, layout):
    assert run("--dtype", "float32", "--layout", layout, "--shard_size", 2) == 0
    found = Features(tmp_path / "out")
    assert list(found) == list(FRAMES)
    for name in FRAMES:
        rows = found[name]
        np.testing.assert_allclose(rows["video_embed"], by_hand(model, videos, name), atol=1e-5)
        starts = 0.8 * np.arange(WINDOWS[name])
        np.testing.assert_allclose(rows["times"][:, 0], starts)
        np.testing.assert_allclose(rows["times"][:, 1], np.minimum(starts + 0.8, FRAMES[name] / 30))
    assert np.ptp(found["a.mp4"]["video_embed"], axis=0).max() > 1e-3, "windows must differ"
    held = {type(array) for array in found.maps[0].values()}
    assert np.ndarray not in held, "arrays must stay in their files until rows are asked for"


def test_mmpt_s_layout(run, model, videos, tmp_path):
    assert run("--layout", "mmpt", "--split", "val", "--l2", "--shard_size", 3) == 0
    names = read_meta(tmp_path / "out" / "val_meta.pkl")
    assert names == {0: ["a", "b", "d"], 1: ["e", "f"]}
    for shard, stems in names.items():
        items = Sharded(tmp_path / "out" / f"val_{shard}")
        assert [len(item) for item in items] == [WINDOWS[n] for n in FRAMES if Path(n).stem in stems]
        assert items.data.dtype == np.float16
    wanted = by_hand(model, videos, "a.mp4")
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(Sharded(tmp_path / "out" / "val_0")[0], wanted, atol=1e-3)


def test_any_number_of_processes_and_workers_writes_the_same(run, tmp_path):
    assert run("--shard_size", 2) == 0
    whole = content(tmp_path / "out")
    for k in (2, 0, 1):
        assert run("--shard_size", 2, "--num_shards", 3, "--shard_id", k, out="three") == 0
        assert (tmp_path / "three" / "index.json").exists() == (k == 1)
    assert content(tmp_path / "three") == whole
    assert run("--shard_size", 2, "DATA_LOADER.NUM_WORKERS", 2, out="workers") == 0
    assert content(tmp_path / "workers") == whole


def test_a_killed_run_goes_on_to_the_same_bytes(run, tmp_path, monkeypatch):
    """What stands on the disk after each unit, and what a process that dies may leave behind it."""
    monkeypatch.setattr(making, "UNIT", 2)
    assert run() == 0
    whole, states = content(tmp_path / "out"), []
    finish = Draft.finish

    def noted(draft, videos):
        finish(draft, videos)
        states.append(tmp_path / f"state{len(states)}")
        shutil.copytree(tmp_path / "other", states[-1])

    monkeypatch.setattr(Draft, "finish", noted)
    assert run(out="other") == 0
    monkeypatch.setattr(Draft, "finish", finish)
    assert len(states) == 3
    for state in states:
        (draft,) = (state / ".parts").glob("shard_*")
        with open(draft / "video_embed.rows", "ab") as rows, open(draft / "journal.jsonl", "ab") as journal:
            rows.write(b"half a row")
            journal.write(b'{"videos": [{"pa')
        read = []
        features = making.Encoder.features

        def counted(encoder, video, names, features=features, read=read):
            read.append(len(video))
            return features(encoder, video, names)

        monkeypatch.setattr(making.Encoder, "features", counted)
        assert run(out=state.name) == 0
        monkeypatch.setattr(making.Encoder, "features", features)
        assert content(state) == whole
        assert sum(read) - 1 == sum(list(WINDOWS.values())[2 * (states.index(state) + 1) :]), (
            "the rest, and a black one"
        )


def test_a_finished_folder_is_left_as_it_is(run, tmp_path, monkeypatch):
    assert run("--shard_size", 2) == 0
    before = content(tmp_path / "out")
    (tmp_path / "out" / "shard_00001.video_embed.npy").unlink()
    made = []
    fill = making._Work.fill
    monkeypatch.setattr(making._Work, "fill", lambda self, *words: (made.append(words[-1]), fill(self, *words)))
    assert run("--shard_size", 2) == 0
    assert made == ["shard 1 of 1"], "a shard whose file is gone is made again, the others are not"
    assert content(tmp_path / "out") == before


@pytest.fixture
def spoilt(videos, tmp_path) -> Path:
    """b.mp4 is no video; the second half of c/e.mp4 is zeros."""
    place = tmp_path / "spoilt"
    shutil.copytree(videos, place)
    (place / "b.mp4").write_bytes(b"no video")
    file = place / "c" / "e.mp4"
    with av.open(str(file)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(file.read_bytes())
    for pos, size in packets[30:]:
        data[pos : pos + size] = bytes(size)
    file.write_bytes(data)
    return place


def test_bad_videos_are_named_and_have_no_features(run, spoilt, videos, tmp_path):
    assert run(source=spoilt) == 1
    out = tmp_path / "out"
    bad = {row["path"]: row["bad"] for row in map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())}
    assert bad.keys() == {"b.mp4", "c/e.mp4"}
    assert bad["b.mp4"].startswith("open: ")
    assert bad["c/e.mp4"].startswith("decode: ")
    found = Features(out)
    assert list(found) == ["a.mp4", "c/d.mp4", "f.mp4"]
    assert run(out="good") == 0
    good = Features(tmp_path / "good")
    for name in found:
        np.testing.assert_allclose(found[name]["video_embed"], good[name]["video_embed"], atol=1e-3)
    shutil.copy(videos / "b.mp4", spoilt / "b.mp4")
    assert run(source=spoilt) == 1, "what is finished is not looked at again"
    (out / "shard_00000.json").unlink()
    assert run(source=spoilt) == 1
    assert list(Features(out)) == ["a.mp4", "b.mp4", "c/d.mp4", "f.mp4"]


def test_lists_and_single_videos(run, videos, tmp_path):
    (tmp_path / "list.csv").write_text("f.mp4 3\na.mp4 0\n")
    assert run("--root", videos, source=tmp_path / "list.csv") == 0
    assert list(Features(tmp_path / "out")) == ["f.mp4", "a.mp4"]
    assert run(source=videos / "f.mp4", out="one") == 0
    one, listed = Features(tmp_path / "one")["f.mp4"], Features(tmp_path / "out")["f.mp4"]
    np.testing.assert_allclose(one["video_embed"], listed["video_embed"], atol=1e-3)


def test_several_features_and_maps(run, tmp_path):
    assert run("--features", "features,map", "--stride", 0.4, "--dtype", "float32") == 0
    found = Features(tmp_path / "out")["a.mp4"]
    assert found["map"].shape[1:] == (1, 1, 1, 128)
    np.testing.assert_allclose(found["map"].mean((1, 2, 3)), found["features"], atol=1e-5)
    np.testing.assert_allclose(found["times"][:, 0], 0.4 * np.arange(5))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--features", "tokens"], "S3D gives no tokens: expected some of cls, features, map, video_embed"),
        (["--stride", "-1"], "every -1 s: expected more than 0 seconds"),
        (["--shard_size", "-1"], "--shard_size -1: expected 1 or more"),
        (["--shard_id", "3"], "--shard_id 3: expected 0 … 0"),
        (["--layout", "mmpt", "--features", "features,map"], "layout mmpt holds one feature, found features,map"),
        (["--checkpoint", "none.pyth"], "none.pyth"),
    ],
)
def test_mistakes_are_one_line(run, capsys, words, said):
    assert run(*words) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]


def test_videos_of_one_name_do_not_fit_mmpt_s_layout(run, videos, tmp_path, capsys):
    place = tmp_path / "twice"
    shutil.copytree(videos, place)
    shutil.copy(place / "a.mp4", place / "c" / "a.mp4")
    assert run("--layout", "mmpt", source=place) == 2
    assert "a.mp4 and c/a.mp4" in capsys.readouterr().err


def test_other_settings_need_another_folder(run, capsys):
    assert run() == 0
    assert run("--stride", 0.4) == 2
    assert "holds features with stride 0.8 (asked for 0.4)" in capsys.readouterr().err


@pytest.mark.parametrize(("scale", "said"), [(float("nan"), "is the checkpoint whole?"), (1e9, "give --dtype float32")])
def test_what_is_no_number_is_refused(run, model, tmp_path, capsys, scale, said):
    state = checkpoint.read(Path(model[-1]))
    state["model_state"]["fc.bias"] += scale
    checkpoint.save(tmp_path / "spoilt.pyth", state)
    assert run("--checkpoint", tmp_path / "spoilt.pyth") == 2
    assert said in capsys.readouterr().err


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}]
from videorl.cli import extract
from videorl.features import extract as making
making.UNIT = 1
features, calls = making.Encoder.features, []
def dying(encoder, video, names):
    calls.append(1)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return features(encoder, video, names)
making.Encoder.features = dying
extract.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_kill_9(run, model, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(making, "UNIT", 1)
    assert run() == 0
    words = [videos, "--cfg", YAML, "--out", tmp_path / "killed", "--view", "square", "--features", "video_embed"]
    script = KILLED.format(root=str(ROOT), call=4)
    command = [sys.executable, "-c", script, *map(str, [*words, *model])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ}, timeout=120)
    assert done.returncode == -9, done.stderr
    assert run(out="killed") == 0
    assert content(tmp_path / "killed") == content(tmp_path / "out")
