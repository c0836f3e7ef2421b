"""Sequences of stored features and captions: the published draws and batches, and files that are not as they should."""

import pickle
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from videorl.data import clip_draws
from videorl.data.deduplicate import Caption, deduplicate, deduplicate_characters
from videorl.data.features import Features
from videorl.registry import UserError
from videorl.video.errors import VideoError

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path[:0] = [str(GOLDEN), str(Path(__file__).parent)]
import norton  # noqa: E402
from recipe import assert_summary, load_case  # noqa: E402


@pytest.fixture
def captions():
    text = load_case(GOLDEN / "norton/clip_samplers.pt")["inputs"]["text"]
    return clip_draws.Captions(text["start"], text["end"], [len(tokens) for tokens in text["cap"]], 42)


SAMPLERS = {
    "FixedLenAligner": lambda captions, rng: clip_draws.same_span(captions, 29, rng),
    "VariedLenAligner": lambda captions, rng: clip_draws.varied(captions, (8, 32), rng),
    "OverlappedAligner": lambda captions, rng: clip_draws.overlapped(captions, (8, 32), (3, 16), rng),
    "StartClipAligner": lambda captions, rng: clip_draws.from_start(captions, 29, rng),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", SAMPLERS)
def test_clips_are_drawn_as_published(captions, name, seed):
    expected = load_case(GOLDEN / "norton/clip_samplers.pt")["expected"][name][f"seed{seed}"]
    rng = random.Random(seed)
    found = clip_draws.in_order(lambda: SAMPLERS[name](captions, rng), 16)
    assert {key: [getattr(drawn, key) for drawn in found] for key in found[0]._fields} == {
        key: expected[key].tolist() for key in found[0]._fields
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_four_nearest_captions_as_published(captions, seed):
    case = load_case(GOLDEN / "norton/clip_samplers.pt")
    expected, text = case["expected"]["How2MILNCEAligner"][f"seed{seed}"], case["inputs"]["text"]["cap"]
    near, (start, stop) = clip_draws.nearest(captions, random.Random(seed))
    frames = expected["frames"][expected["vmasks"]]
    assert (start, stop) == (frames[0] - 1, frames[-1])
    assert [text[k] for k in near] == [row[row > 4].tolist() for row in expected["caps"]]


def test_runs_grow_as_published(captions):
    case = load_case(GOLDEN / "norton/span_samplers.pt")
    for given, expected in zip(case["inputs"]["cases"], case["expected"]["cases"], strict=True):
        rng = random.Random(given["seed"])
        first, end = clip_draws.grown_captions(captions, given["centre"], given["max_tokens"], rng)
        assert list(range(first, end)) == expected["captions"]
        rng = random.Random(given["seed"])
        span = clip_draws.grown_seconds(given["rows"], given["centre_row"], given["max_rows"], rng)
        assert list(span) == expected["video"]


def test_runs_of_captions_end_at_256_seconds():
    starts = [100.0 * k for k in range(9)]
    captions = clip_draws.Captions(starts, [s + 90 for s in starts], [1] * 9, 900)
    first, end = clip_draws.grown_captions(captions, 4, 99, random.Random(0))
    assert end - first == 3


def test_captions_are_deduplicated_by_characters_as_published_and_by_words():
    case = load_case(GOLDEN / "norton/caption_dedup.pt")
    given = [Caption(*row) for row in zip(*(case["inputs"][name] for name in ("start", "end", "text")))]
    for seed in range(4):
        found = deduplicate_characters(given, random.Random(seed))
        expected = case["expected"][f"seed{seed}"]
        assert [list(column) for column in zip(*found)] == [expected[name] for name in ("start", "end", "text")]
    assert deduplicate(given) == [(0, 5, "cut the tomato"), (5, 6, "and stir"), (6, 9, "the egg")]
    rolled = [Caption(0, 2, "a b c"), Caption(1, 4, "b c a d"), Caption(4, 5, ""), Caption(4, 6, "e")]
    assert deduplicate(rolled) == [(0, 2, "a b c"), (2, 4, "a d"), (4, 6, "e")]


def test_batches_are_the_published_ones(tmp_path, monkeypatch):
    case = load_case(GOLDEN / "norton/training_steps.pt")
    dataset = Features(norton.spec(tmp_path / "vocab.txt", case["config"]["vocabulary"]), "train",
                       **norton.published(tmp_path))  # fmt: skip
    rng = random.Random(case["config"]["python_seed"])
    monkeypatch.setattr(dataset, "_random", lambda i: rng)
    one_sep = [0, *range(2, 32)]
    for step in case["inputs"]["steps"]:
        numbers = [int(name[2:]) for name in step["video_id"]]
        assert [dataset.path(i) for i in numbers] == step["video_id"]
        clips = [dataset[i] for i in numbers]
        stacked = {k: torch.stack([torch.stack([c[k] for c in own]) for own in clips]) for k in clips[0][0]}
        assert torch.equal(stacked["text"], step["caps"][..., one_sep].long())
        assert torch.equal(stacked["text_mask"], step["cmasks"][..., one_sep])
        assert torch.equal(stacked["video_mask"], step["vmasks"])
        assert_summary(stacked["video_features"], step["vfeats"], 1e-6, 0.0)


@pytest.mark.parametrize("sampler", ["overlapped", "varied", "fixed", "start", "nearest"])
def test_samples_depend_on_seed_epoch_and_number_alone(tmp_path, sampler):
    keys = norton.write(tmp_path / "x", [norton.video(seed=k) for k in range(4)])
    spec = norton.spec(tmp_path / "vocab.txt", length=6)
    dataset = Features(
        spec, "train", **keys, clips=3, seconds=5, sampler=sampler, tokens=(2, 7), overlap_seconds=(2, 4)
    )
    again = pickle.loads(pickle.dumps(dataset))
    first, same = dataset[3], again[3]
    for ours, theirs in zip(first, same, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len(first) == 3
    assert first[0]["video_features"].shape == (5, 8)
    assert first[0]["text"].shape == ((4, 6) if sampler == "nearest" else (6,))
    again.epoch = 1
    moved = [not torch.equal(a["video_features"], b["video_features"]) for a, b in zip(first, again[3])]
    assert any(moved) == (sampler != "start")
    for clip in first:
        count = int(clip["video_mask"].sum())
        assert (clip["video_features"][count:] == 0).all()
        assert clip["video_features"][:count].abs().sum(1).min() > 0
        text = clip["text"].flatten(0, -2) if sampler == "nearest" else clip["text"][None]
        for row, mask in zip(text, clip["text_mask"].reshape(text.shape)):
            assert row[0] == 2
            assert row[mask][-1] == 3
            assert (row[~mask] == 0).all()


def test_captions_after_the_video_are_counted_and_left_out(tmp_path, caplog):
    long = norton.video(10, times=[(0, 1), (2, 3), (9.5, 12), (10, 11), (30, 31)])
    keys = norton.write(tmp_path / "x", [norton.video(), long])
    dataset = Features(norton.spec(tmp_path / "vocab.txt"), "train", **keys, clips=2)
    assert "2 captions of 1 videos begin after their video: left out" in caplog.text
    assert dataset.shards.of(1)[2].tolist() == [[0, 1], [2, 3], [9.5, 12]]
    assert len(dataset[1]) == 2


BAD = {
    "features that are no finite": {"features": np.full((10, 8), np.nan)},
    "the time of a caption is no number": {"times": [(np.nan, 1)] * 5},
    "10 seconds of features and no caption in them": {"times": [(50, 51)] * 5},
    "captions without a single token": {"tokens": [[]] * 5},
    "0 seconds of features": {"features": np.zeros((0, 8))},
}


@pytest.mark.parametrize("said", BAD)
def test_a_bad_video_is_told_of(tmp_path, said):
    keys = norton.write(tmp_path / "x", [norton.video(), norton.video(**BAD[said])])
    dataset = Features(norton.spec(tmp_path / "vocab.txt"), "train", **keys, clips=2)
    assert len(dataset[0]) == 2
    with pytest.raises(VideoError, match=said):
        dataset[1]


def _lose(folder, name):
    (folder / name).unlink()


def _shorten(folder, name):
    rows, starts = np.load(folder / f"{name}_data.npy"), np.load(folder / f"{name}_starts.npy")
    np.save(folder / f"{name}_data.npy", rows[: starts[-2]])
    np.save(folder / f"{name}_starts.npy", starts[:-1])


WRONG = {
    "train_1_data.npy: No such file": lambda folder: _lose(folder, "train_1_data.npy"),
    "expected train_meta.pkl": lambda folder: _lose(folder, "train_meta.pkl"),
    "3 videos of features, 2 of tokens and 3 of times": lambda folder: _shorten(folder, "cap.train_0.caps_ids"),
    "train_1: features of 8 numbers, those before have 9": lambda folder: np.save(
        folder / "train_0_data.npy", np.zeros((30, 9), np.float16)
    ),
    "found .*, .* and": lambda folder: np.save(folder / "cap.train_0.caps_ids_data.npy", np.zeros(15, np.int32)),
}


@pytest.mark.parametrize("said", WRONG)
def test_wrong_files_are_one_line(tmp_path, said):
    keys = norton.write(tmp_path / "x", [norton.video(seed=k) for k in range(4)])
    WRONG[said](tmp_path / "x")
    with pytest.raises(UserError, match=said):
        Features(norton.spec(tmp_path / "vocab.txt"), "train", **keys)


def test_another_vocabulary_is_one_line(tmp_path):
    keys = norton.write(tmp_path / "x", [norton.video(tokens=[[500]] * 5)])
    dataset = Features(norton.spec(tmp_path / "vocab.txt"), "train", **keys)
    with pytest.raises(UserError, match="token 500, TEXT.TOKENIZER 13 tokens: .*another vocabulary"):
        dataset[0]
    spec = replace(dataset.spec, text=replace(dataset.spec.text, tokenizer="clip"))
    with pytest.raises(UserError, match="TEXT.TOKENIZER clip: expected the vocabulary of a BERT"):
        Features(spec, "train", **keys)
