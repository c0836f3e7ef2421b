import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from videorl.registry import UserError
from videorl.toy import scenes

OPPOSITE = {
    "left": "right",
    "up": "down",
    "grow": "shrink",
    "turn_clockwise": "turn_counterclockwise",
}
OPPOSITE |= {b: a for a, b in OPPOSITE.items()}
COUNTS = {"train": 8, "val": 2}
STILL = scenes.Scene(112, 112, 20, "square", "white", (0.5, 0.5, 0.5, 0.0), (0.0, 0.0), 7)


def light(frames):
    """How bright each pixel is above the darkest background: the lit side of the shape. [T, H, W]"""
    return np.clip(frames.max(-1).astype(float) - 140, 0, None)


def centre(weights, axis):
    """Centre of light along an axis of a torus of 112 pixels."""
    angles = 2 * np.pi * (np.arange(112) + 0.5) / 112
    total = (weights.sum(1 - axis) * np.exp(1j * angles)).sum()
    return np.angle(total) / (2 * np.pi) * 112 % 112


def decode(path):
    with av.open(path) as container:
        codec = container.streams.video[0].codec_context.name
        return codec, np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Three small sets: seed 0, seed 0 again (by two processes), seed 1."""
    root = tmp_path_factory.mktemp("toy")
    for name, seed, workers in (("a", 0, 1), ("b", 0, 2), ("c", 1, 1)):
        scenes.make_set(root / name, seed=seed, counts=COUNTS, workers=workers)
    return root


def test_same_seed_gives_same_pixels_and_csv_another_seed_others(sets):
    a, b, c = ({p.relative_to(sets / n): decode(p)[1] for p in (sets / n).rglob("videos/*/*")} for n in "abc")
    assert a.keys() == b.keys() == c.keys()
    assert len(a) == 10
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not any(np.array_equal(a[k], c[k]) for k in a)
    texts = [(sets / n / "train.csv").read_text() for n in "abc"]
    assert texts[0] == texts[1] != texts[2]


def test_layout_is_pyslowfasts(sets):
    out = sets / "a"
    classes = json.loads((out / "classes.json").read_text())
    assert classes == {name: i for i, name in enumerate(scenes.MOTIONS)}
    lines = [line.rsplit(" ", 1) for line in (out / "train.csv").read_text().splitlines()]
    assert all((out / path).is_file() for path, _ in lines)
    assert [int(label) for _, label in lines] == [scenes.clip(0, "train", i)[2] for i in range(8)]
    assert sorted(int(label) for _, label in lines) == list(range(8))
    assert json.loads((out / scenes.MARK).read_text())["counts"] == COUNTS
    assert not [path for path in out.rglob("*") if path.suffix == ".part" or path.name == scenes.UNFINISHED]


@pytest.mark.parametrize(("suffix", "codecs"), [(".mp4", {"h264"}), (".webm", {"vp9", "libvpx-vp9"})])
def test_files_hold_the_frames(tmp_path, suffix, codecs):
    frames, fps, _ = scenes.render_clip(0, "train", 0)
    scenes.write_video(tmp_path / f"clip{suffix}", frames, fps)
    codec, decoded = decode(tmp_path / f"clip{suffix}")
    assert codec in codecs
    assert decoded.shape == frames.shape
    error = np.mean((decoded.astype(float) - frames) ** 2, axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / error)).min() > 25  # dB, of the worst frame


def test_one_file_in_25_is_a_webm_whatever_the_class():
    webm = [i for i in range(2000) if scenes.file_name("train", i).endswith(".webm")]
    assert len(webm) == 80
    assert set(Counter(scenes.clip(0, "train", i)[2] for i in webm)) == set(range(8))


def test_complete_set_is_left_alone(sets):
    before = {p: p.stat().st_mtime_ns for p in (sets / "a").rglob("*")}
    message = scenes.make_set(sets / "a", seed=0, counts=COUNTS)
    assert "already complete" in message
    assert before == {p: p.stat().st_mtime_ns for p in (sets / "a").rglob("*")}
    with pytest.raises(UserError, match="seed 0, asked for 5"):
        scenes.make_set(sets / "a", seed=5, counts=COUNTS)


def stop_after(clips):
    def progress(steps, total):
        for done, step in enumerate(steps, 1):
            yield step
            if done == clips:
                raise KeyboardInterrupt

    return progress


def test_unfinished_set_is_continued_or_rebuilt(tmp_path):
    out, counts = tmp_path / "toy", {"train": 4}
    with pytest.raises(KeyboardInterrupt):
        scenes.make_set(out, counts=counts, progress=stop_after(2))
    assert not (out / "toy.json").exists()
    first = out / "videos/train/train_00000.mp4"
    written = first.stat().st_mtime_ns
    assert "continued" in scenes.make_set(out, counts=counts)
    assert first.stat().st_mtime_ns == written
    assert len(list(first.parent.iterdir())) == 4

    (out / scenes.MARK).rename(out / scenes.UNFINISHED)
    assert "rebuilt" in scenes.make_set(out, seed=1, counts=counts)
    assert decode(first)[1].shape == scenes.render_clip(1, "train", 0)[0].shape
    assert first.stat().st_mtime_ns != written


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is no toy set"):
        scenes.make_set(tmp_path, counts={"train": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_tool_reports_a_refused_folder_in_one_line(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    tool = Path(__file__).parents[2] / "tools" / "make_toy.py"
    run = subprocess.run([sys.executable, tool, "--out", tmp_path], capture_output=True, text=True)
    assert run.returncode == 2
    assert "is no toy set" in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("motion", scenes.MOTIONS)
def test_backwards_is_the_opposite_class(motion):
    """The oracle: the opposite event, from where the first ended, gives the same frames in reverse."""
    scene = dataclasses.replace(STILL, width=144, shape="star", start=(0.9, 0.2, 0.7, 0.4))
    event, last = scenes.Event(motion, 0.0, 2.0, 0.53), 24 / scene.fps
    end = tuple(scenes.phases(scene, [event], np.array([last]))[0])
    forwards = scenes.render(scene, [event], 25)
    opposite = dataclasses.replace(event, motion=OPPOSITE[motion])
    backwards = scenes.render(dataclasses.replace(scene, start=end), [opposite], 25)
    assert np.abs(forwards[::-1].astype(float) - backwards).mean() < 0.05  # texels at rounding borders may differ
    assert np.abs(forwards.astype(float) - backwards).mean() > 1


@pytest.mark.parametrize(("motion", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)])
def test_shape_goes_where_the_class_says(motion, axis, sign):
    frames = light(scenes.render(STILL, [scenes.Event(motion, 0.0, 1.0, 0.5)], 21))
    moved = (centre(frames[10], axis) - centre(frames[0], axis)) * sign % 112
    assert moved == pytest.approx(0.25 * 112, abs=1)  # half a second at half a side per second
    still = abs(centre(frames[10], 1 - axis) - centre(frames[0], 1 - axis))
    assert still < 1


def test_shape_grows_by_the_ratio_of_diameters():
    scene = dataclasses.replace(STILL, start=(0.5, 0.5, 0.1, 0.0))
    frames = light(scenes.render(scene, [scenes.Event("grow", 0.0, 2.0, 0.6)], 21))
    factor = (scenes.DIAMETERS[1] / scenes.DIAMETERS[0]) ** 0.6
    assert np.sqrt((frames[20] > 0).sum() / (frames[0] > 0).sum()) == pytest.approx(factor, rel=0.05)


def test_clockwise_is_as_seen_on_the_screen():
    lit = light(scenes.render(STILL, [scenes.Event("turn_clockwise", 0.0, 1.0, 0.5)], 11)) > 0
    turned = np.rot90(lit[0], -1)
    assert (turned & lit[10]).sum() / (turned | lit[10]).sum() > 0.95


def test_events_follow_each_other():
    events = [scenes.Event("right", 0.0, 1.0, 0.4), scenes.Event("turn_clockwise", 1.5, 2.0, 0.5)]
    found = scenes.phases(STILL, events, np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0]))
    assert found[:, 0] == pytest.approx([0.5, 0.7, 0.9, 0.9, 0.9, 0.9])
    assert found[:, 3] == pytest.approx([0.0, 0.0, 0.0, 0.0, 0.25, 0.25])


@pytest.mark.parametrize("time", [0.0, 0.7, 1.9])
def test_state_of_a_frame_tells_no_class(time):
    """Kolmogorov-Smirnov: at any time, each phase is uniform within each class (level 0.001 over 32 tests)."""
    drawn = [scenes.clip(0, "train", i) for i in range(3200)]
    states = np.array([scenes.phases(scene, [event], np.array([time]))[0] for scene, event, _ in drawn])
    labels = np.array([label for *_, label in drawn])
    for label in range(8):
        ordered = np.sort(states[labels == label], axis=0)  # [N, 4]
        steps = np.arange(1, len(ordered) + 1)[:, None] / len(ordered)
        assert np.abs(ordered - steps).max() < 2.3 / np.sqrt(len(ordered))


def test_nothing_else_depends_on_the_class():
    """Chi-square over class x value for each drawn property; 99.9 % quantiles (42, 49 degrees of freedom)."""
    drawn = [scenes.clip(0, "train", i) for i in range(3200)]
    for name, values, limit in (("shape", scenes.SHAPES, 66.6), ("colour", scenes.COLOURS, 85.4)):
        table = np.array([[0] * len(values) for _ in scenes.MOTIONS])
        for scene, _, label in drawn:
            table[label, list(values).index(getattr(scene, name))] += 1
        expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
        assert ((table - expected) ** 2 / expected).sum() < limit


@pytest.mark.parametrize("kind", ["shape_motion", "speed_direction"])
def test_classes_show_what_they_are_called(kind):
    classes = list(scenes.LABEL_SPACES[kind])
    drawn = [scenes.clip(0, "train", i, kind) for i in range(10 * len(classes))]
    assert Counter(label for *_, label in drawn) == dict.fromkeys(range(len(classes)), 10)
    for scene, event, label in drawn:
        first, motion = classes[label].split("_")
        assert event.motion == motion
        if kind == "shape_motion":
            assert scene.shape == first
        else:
            assert (event.speed < 0.4) == (first == "slow")


def test_each_kind_has_clips_of_its_own(tmp_path):
    textures = [scenes.clip(0, "train", i, kind)[0].texture for kind in scenes.LABEL_SPACES for i in range(100)]
    assert len(set(textures)) == 400
    scenes.make_set(tmp_path / "toy", kind="shape_motion", counts={"train": 2})
    assert list(json.loads((tmp_path / "toy/classes.json").read_text())) == list(scenes.LABEL_SPACES["shape_motion"])
    with pytest.raises(UserError, match="holds a complete toy set with kind shape_motion, asked for motion"):
        scenes.make_set(tmp_path / "toy", counts={"train": 2})


def test_small_set_has_lists_with_few_labels(tmp_path):
    scenes.make_set(tmp_path / "toy", kind=scenes.SMALL, counts={"train": 64, "val": 8, "test": 8})
    every, few = ((tmp_path / "toy" / name).read_text().splitlines() for name in ("train.csv", "few/train.csv"))
    assert len(every) == 64
    assert set(few) < set(every)
    assert Counter(line.split()[1] for line in few) == dict.fromkeys(map(str, range(6)), 3)
    assert (tmp_path / "toy/few/val.csv").read_text() == (tmp_path / "toy/val.csv").read_text()
    sizes = {scenes.clip(0, "train", i, scenes.SMALL)[0].width for i in range(50)}
    assert sizes == {width // 2 for width, _ in scenes.FRAME_SIZES}


def test_splits_share_no_clip():
    textures = {scenes.clip(0, split, i)[0].texture for split in scenes.SPLITS for i in range(100)}
    assert len(textures) == 300


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_every_shape_is_seen_to_turn(shape):
    scene = dataclasses.replace(STILL, shape=shape)
    frames = scenes.render(scene, [scenes.Event("turn_clockwise", 0.0, 1.0, 1.0)], 20)
    change = np.abs(frames[1:].astype(float) - frames[0]).mean((1, 2, 3))
    assert change.min() > 0.5  # of 255; no angle but the full turn gives the first frame again


def test_import_is_light():
    code = "import sys, videorl.toy.scenes; print(sorted({'torch', 'av', 'decord'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert found.stdout.strip() == "[]"
