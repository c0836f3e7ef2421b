"""Ego4D: frames that carry their number tell which ones were read of videos in chunks; texts of narrations."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from videorl import config
from videorl.data.ego4d import Ego4D
from videorl.data.moments import Shot
from videorl.registry import DATASETS, UserError
from videorl.spec import Augment, Clip, Reading, Spec, Text, Views
from videorl.video.errors import VideoError

GOLDEN = Path(__file__).parents[1] / "golden/data"
CASE = torch.load(GOLDEN / "ego4d_chunked_clips.pt", weights_only=True)
CHUNKS = GOLDEN / "ego4d_chunks"


def burnt_in(frames: torch.Tensor) -> list[int]:
    """The number that each frame [H, W, 3] shows: 16 bits in blocks of 8 pixels, the low byte in the upper half."""
    height = frames.shape[1]
    rows = torch.stack([frames[:, height // 4], frames[:, 3 * height // 4]], 1)  # [T, 2, W, 3]
    bits = rows[:, :, 4:64:8].float().mean(-1) > 127  # [T, 2, 8]
    return (bits.flatten(1).long() * 2 ** torch.arange(16)).sum(1).tolist()


def read(case: dict, seconds: int, rule: str = "parts") -> list[int]:
    end = float("inf") if case["end"] is None else case["end"]
    path = CHUNKS / f"{case['video']}.mp4"
    with Shot(str(path), seconds, case["start"], end, rule, Reading()) as shot:
        return burnt_in(shot.frames(shot.numbers(case["frames"]).tolist()))


@pytest.mark.parametrize(("kind", "seconds"), [("chunked", 4), ("whole", 0)])
def test_frames_equal_lavila(kind, seconds):
    expected = CASE["expected"][kind]
    assert [read(case, seconds) for case in CASE["inputs"][kind]] == expected


@pytest.mark.parametrize(
    ("start", "end", "frames", "numbers"),
    [
        (0.5, 1.5, 4, [18, 26, 33, 41]),  # middles of 15..45
        (7.5, 8.5, 2, [232, 247]),  # over a border
        (9.0, 20.0, 4, [272, 277, 281, 286]),  # the video ends at frame 289
        (3.9, 3.9, 2, [117, 117]),
    ],
)
def test_frames_of_avion_are_counted_along_the_whole_video(start, end, frames, numbers):
    assert read({"video": "vidA", "start": start, "end": end, "frames": frames}, 4, "middles") == numbers


def test_a_moment_of_three_chunks_is_read_through_all_of_them():
    found = read({"video": "vidA", "start": 1.0, "end": 9.4, "frames": 8}, 4)
    assert found == sorted(found)
    assert (found[0] // 120, found[-1] // 120) == (0, 2)
    assert np.ptp(np.diff(found)) <= 1


@pytest.fixture
def root(tmp_path):
    shutil.copytree(CHUNKS, tmp_path / "videos")
    np.save(tmp_path / "dict.npy", np.array(["C", "cuts", "cuts2", "a", "b", "pours"]))
    return tmp_path


def dataset(root, rows, split="train", views=1, **keys):
    (root / "ego4d_train.pkl").write_bytes(pickle.dumps(rows))
    (root / "ego4d_val.pkl").write_bytes(pickle.dumps(rows))
    spec = Spec(
        Clip(4, 1, 32, 32),
        augment=Augment(scales=(32, 32), flip=False),
        views=Views(views),
        text=Text("words", str(root / "dict.npy"), 6),
    )
    usual = {"root": str(root / "videos"), "metadata": str(root / "ego4d_train.pkl"), "chunk_seconds": 4}
    return Ego4D(spec, split, **{**usual, **keys})


def test_texts_of_narrators_equal_lavila(root):
    case = torch.load(GOLDEN / "ego4d_dataset_items.pt", weights_only=True)
    data = dataset(root, case["inputs"]["rows"], narration_selection="concat")
    for i, (text, _) in enumerate(case["expected"]["text_items"]):
        (item,) = data[i]
        assert item["text"].tolist() == data.tokenize([text])[0].tolist()
        assert item["pseudo"]


def test_one_of_the_texts_is_drawn_in_training_and_the_first_evaluated(root):
    rows = [("vidA", 0.5, 1.5, ["cuts", "pours", "a"]), ("vidA", 0.5, 1.5, "b")]
    data = dataset(root, rows)
    drawn = []
    for data.epoch in range(12):
        drawn.append(data[0][0]["text"][0].item())
        assert data[1][0]["text"].tolist() == [5, 0, 0, 0, 0, 0]
    assert set(drawn) == {2, 4, 6}
    data.epoch = 3
    assert data[0][0]["text"][0].item() == drawn[3]
    assert dataset(root, rows, "val")[0][0]["text"][0].item() == 2
    assert not data[0][0]["pseudo"]


def test_lists_of_people_and_of_narrators_are_one_set(root):
    narrator = root / "narrator.pkl"
    narrator.write_bytes(pickle.dumps([("vidA", 4.5, 5.5, ["a", "b"], [1.0, 2.0])]))
    data = dataset(root, [("vidA", 0.5, 1.5, "cuts")], metadata_aux=(str(narrator),))
    assert [data[i][0]["pseudo"].item() for i in range(len(data))] == [False, True]
    assert data.path(1).endswith("vidA.mp4")


def test_views_take_turns_along_the_moment(root):
    rows = [("vidA", 0.0, 4.0, "cuts")]
    one, two = dataset(root, rows, "val", 1), dataset(root, rows, "val", 2)
    assert [len(one[0]), len(two[0])] == [1, 2]
    with two._open(0) as shot:
        numbers = [two._test_indices(shot, k).tolist() for k in range(2)]
        assert sum(numbers, []) == shot.numbers(8).tolist()


@pytest.mark.parametrize(
    ("row", "gone", "said"),
    [
        (("vidA", 0.5, 1.5, ""), "", "index: row 0 has no narration"),
        (("vidA", 0.5, 1.5, None), "", "index: row 0 has no narration"),
        (("vidA", 2.5, 1.5, "cuts"), "", "index: row 0 ends at 1.5 s, before its start 2.5 s"),
        (("vidA", 3.5, 4.6, "cuts"), "4.mp4", "open: a chunk is missing; .* holds 2, from 0 s to 8 s"),
        (("vidA", 5.5, 6.6, "cuts"), "4.mp4", "open: no such chunk, for second 5.*; .* holds 2, from 0 s to 8 s"),
        (("vidB", 0.5, 1.5, "cuts"), "", "open: no such chunk, for second .*; .*vidB.mp4 is no folder"),
    ],
)
def test_rows_that_cannot_be_read_say_why(root, row, gone, said):
    if gone:
        (root / "videos/vidA.mp4" / gone).unlink()
    with pytest.raises(VideoError, match=said):
        dataset(root, [row])[0]


@pytest.mark.parametrize(
    ("start", "end", "numbers"), [(1.0, 1.0, range(30, 34)), (9.5, 30.0, range(285, 290)), (11.9, 11.95, [289])]
)
def test_moments_of_no_length_and_past_the_end_show_what_is_there(root, start, end, numbers):
    (clip,) = dataset(root, [("vidA", start, end, "cuts")], "val")[0]
    assert clip["video"].shape == (4, 3, 32, 32)
    found = read({"video": "vidA", "start": start, "end": end, "frames": 4}, 4)
    assert found == sorted(found)
    assert (found[0], {*found} <= {*numbers}) == (numbers[0], True)


def test_keys_that_cannot_be_are_refused(root):
    rows = [("vidA", 0.5, 1.5, "cuts")]
    for keys, said in (
        ({"metadata": ""}, "EGO4D.METADATA '': no such file"),
        ({"split": "val", "metadata": "ego4d.pkl"}, "'ego4d.pkl' has no train in its name .*; name EGO4D.METADATA_VAL"),
        ({"metadata_aux": ("x.pkl",)}, r"EGO4D.METADATA_AUX\[0\] 'x.pkl': no such file"),
    ):
        with pytest.raises(UserError, match=said):
            dataset(root, rows, **keys)


def test_the_config_builds_it(root):
    dataset(root, [("vidA", 0.5, 1.5, "cuts")])
    words = ["TRAIN.DATASET", "ego4d", "EGO4D.ROOT", root / "videos", "EGO4D.METADATA", root / "ego4d_train.pkl"]
    words += [
        "EGO4D.CHUNK_SECONDS",
        4,
        "TEXT.DICT",
        root / "dict.npy",
        "EGO4D.METADATA_AUX",
        f"['{root}/ego4d_val.pkl']",
    ]
    cfg = config.load([], [str(word) for word in words])
    entry, values = config.component(cfg, DATASETS, "ego4d")
    assert len(entry(config.spec(cfg), "train", values=values)) == 2
    one = config.load([], [str(word) for word in words] + ["EGO4D.METADATA_AUX", f"{root}/ego4d_val.pkl"])
    assert one.EGO4D.METADATA_AUX == cfg.EGO4D.METADATA_AUX
