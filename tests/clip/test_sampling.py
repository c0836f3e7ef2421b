import random
from math import floor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.clip import sampling
from videorl.registry import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "data"


def load(name):
    case = torch.load(GOLDEN / f"{name}.pt", weights_only=True)
    return case.get("inputs", {}), case["expected"]


class PythonRandom(random.Random):
    """The draws of the published code: `random.randint(low, high)` for each pair, seeded anew for each call."""

    def integers(self, low, high):
        return [self.randint(a, b - 1) for a, b in zip(low.tolist(), high.tolist(), strict=True)]


def test_dense_views_equal_multitrain_with_decord():
    inputs, expected = load("decord_test_indices")
    found = [
        sampling.dense_view(
            int(n), fps, frames=int(frames), rate=int(rate), view=int(view), views=int(views), offset=bool(offset)
        )
        for n, fps, frames, rate, views, offset, view in inputs["cases"].tolist()
    ]
    assert np.array_equal(np.concatenate(found), expected["index"].numpy())
    assert [len(f) for f in found] == expected["lengths"].tolist()


def test_window_starts_equal_pyslowfast():
    inputs, expected = load("temporal_windows")
    starts = [
        sampling.view_start(int(n), length, int(k), int(views), bool(offset))
        for n, length, views, offset, k in inputs["windows"].tolist()
    ]
    assert np.allclose(starts, expected["windows"][:, 0].numpy(), atol=1e-9, rtol=0)


def test_training_windows_equal_pyslowfast_for_the_same_draw():
    inputs, expected = load("temporal_windows")
    for case, (start, _) in zip(inputs["random"], expected["random"], strict=True):
        assert case["clip"] == 64
        found = sampling.dense_train(case["video"], 30.0, frames=16, rate=4, rng=random.Random(case["seed"]))
        assert found[0] == int(start)


def test_frames_of_a_window_equal_pyslowfast_where_it_starts_at_a_whole_frame():
    inputs, expected = load("temporal_windows")
    whole = [(p, e) for p, e in zip(inputs["picks"], expected["picks"], strict=True) if p["start"] % 1 == 0]
    assert len(whole) >= 3
    for pick, indices in whole:
        length = pick["end"] - pick["start"] + 1
        found = sampling.dense_at(pick["start"], inputs["frames"], length=length, frames=pick["num"])
        assert found.tolist() == indices


def test_uniform_clips_equal_ssv2_of_multitrain():
    _, expected = load("ssv2_segment_indices")
    for key, indices in expected.items():
        n, frames = map(int, key.split(","))
        assert sampling.uniform_test(n, frames=frames).tolist() == indices["test"]
        assert sampling.uniform_train(n, frames=frames, rng=PythonRandom(1)).tolist() == indices["train"]


class NumpyRandom:
    """The draws of the published code: numpy's global generator, seeded anew for each call."""

    def __init__(self, seed):
        self.integers = np.random.RandomState(seed).randint


def pretraining_cases():
    inputs, expected = load("videomae_pretrain_indices")
    for (n, rate, seed), found in zip(inputs["cases"], expected["cases"], strict=True):
        yield n, rate, found, sampling.strided_train(n, frames=16, rate=rate, rng=NumpyRandom(seed)).tolist()


def test_strided_clips_equal_the_pre_training_of_videomae():
    for _, _, expected, found in pretraining_cases():
        assert found == expected["videomae"]


def test_vswift_differs_from_them_for_videos_that_are_no_longer_than_a_clip():
    """It takes sorted random frames there, or the first frame again and again: a clip without an even pace."""
    for n, rate, expected, found in pretraining_cases():
        assert (found == expected["vswift"]) == (n > 16 * rate)


def test_sparse_clips_equal_vswift():
    _, expected = load("videomae_sparse_indices")
    for key, case in expected.items():
        n = int(key)
        assert sampling.sparse_train(n, frames=16, rng=NumpyRandom(0)).tolist() == case["train"]
        assert sampling.sparse_view(n, frames=16, view=0, views=1).tolist() == case["val"]
        for k, crops in enumerate(case["test"]):
            assert sampling.sparse_view(n, frames=16, view=k, views=2).tolist() == crops[0][0]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.integers(1, 16), st.integers(1, 5), st.integers(2, 7))
def test_strided_views_equal_videomae(n, frames, rate, views):
    """Every `rate`-th frame, the last one repeated; clips of them start at int(k * (length - frames) / (views - 1))."""
    kept = list(range(0, n, rate))
    kept += kept[-1:] * (frames - len(kept))
    step = max((len(kept) - frames) / (views - 1), 0)
    for k in range(views):
        start = int(k * step)
        assert (
            sampling.strided_view(n, frames=frames, rate=rate, view=k, views=views).tolist()
            == (kept[start : start + frames])
        )


def test_a_single_strided_view_lies_in_the_middle():
    found = sampling.strided_view(101, frames=4, rate=2, view=0, views=1)
    assert found.tolist() == [46, 48, 50, 52]


def slow_dense(start, n, length, frames):
    """Walks the clip frame by frame; what lies past the last frame of the video repeats it."""
    first = max(min(int(start), n - 2), 0)
    last = max(min(int(start + length - 1), n - 1), first)
    step = max(length - 1, 0) / max(frames - 1, 1)
    return [min(first + floor(i * step + 1e-9), last) for i in range(frames)]


lengths = st.integers(1, 2000)
frame_rates = st.sampled_from([5.0, 12.5, 24000 / 1001, 25.0, 30.0, 60.0, 120.0])


@settings(max_examples=200, deadline=None)
@given(lengths, frame_rates, st.integers(1, 64), st.integers(1, 16), st.floats(0, 1, exclude_max=True))
def test_dense_at_equals_the_slow_reference(n, fps, frames, rate, u):
    length = sampling.clip_length(fps, frames=frames, rate=rate, target_fps=30.0)
    start = u * max(n - length, 0)
    found = sampling.dense_at(start, n, length=length, frames=frames)
    # a floor of a whole number may fall on either side
    assert np.abs(found - slow_dense(start, n, length, frames)).max() <= 1
    assert (found == slow_dense(start, n, length, frames)).mean() >= 0.5


@settings(max_examples=200, deadline=None)
@given(lengths, frame_rates, st.integers(1, 64), st.integers(1, 16), st.integers(1, 10), st.booleans(), st.data())
def test_every_rule_gives_valid_rising_indices(n, fps, frames, rate, views, offset, data):
    view = data.draw(st.integers(0, views - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    dense = {"frames": frames, "rate": rate}
    for found in (
        sampling.dense_train(n, fps, **dense, rng=rng),
        sampling.dense_view(n, fps, **dense, view=view, views=views, offset=offset),
        sampling.uniform_train(n, frames=frames, rng=rng),
        sampling.uniform_test(n, frames=frames),
        sampling.strided_train(n, **dense, rng=rng),
        sampling.strided_view(n, **dense, view=view, views=views),
        sampling.sparse_train(n, frames=frames, rng=rng),
        sampling.sparse_view(n, frames=frames, view=view, views=views),
    ):
        assert found.dtype == np.int64
        assert found.shape == (frames,)
        assert found.min() >= 0
        assert found.max() < n
        assert (np.diff(found) >= 0).all()


def test_a_clip_covers_the_same_time_at_any_frame_rate():
    at_30 = sampling.dense_view(300, 30.0, frames=16, rate=4, view=0, views=2)
    at_60 = sampling.dense_view(600, 60.0, frames=16, rate=4, view=0, views=2)
    assert np.abs(at_60 / 60 - at_30 / 30).max() < 0.05


# 60 frames a second for two seconds, then 10 a second for twelve: 17 on the average
UNEVEN = np.concatenate([np.arange(120) / 60, 2 + np.arange(120) / 10])


def frame_at(second: float) -> int:
    """The slow reference: what a player shows."""
    return max(k for k, time in enumerate(UNEVEN) if time <= second + 1e-6)


def test_dense_clips_of_an_uneven_rate_show_what_players_show_at_even_times():
    n, fps, random = len(UNEVEN), (len(UNEVEN) - 1) / UNEVEN[-1], np.random.default_rng(0)
    meant = 14 * 3 / 30  # seconds
    dense = {"frames": 14, "rate": 3, "times": UNEVEN}
    clips = [sampling.dense_train(n, fps, **dense, rng=random) for _ in range(100)]
    clips += [sampling.dense_view(n, fps, **dense, view=k, views=10, offset=k % 2 == 0) for k in range(10)]
    for clip in clips:
        lasts = UNEVEN[clip[-1]] - UNEVEN[clip[0]]
        assert abs(lasts - (meant - 1 / fps)) <= 0.1, "the clip's last frame is shown for 1 / fps on the average"
    length = sampling.clip_length(fps, frames=14, rate=3, target_fps=30)
    found = sampling.dense_at(20, n, length=length, frames=14, times=UNEVEN)
    assert found.tolist() == [frame_at(second) for second in np.linspace(20, 20 + length - 1, 14) / fps]


@pytest.mark.parametrize("fps", [24000 / 1001, 25.0, 30.0])
def test_even_rates_are_left_to_the_published_rule(fps):
    """Also where time stamps are rounded to milliseconds, and where a frame was left out."""
    even = np.arange(300) / fps
    assert not sampling.is_uneven(even.round(3))
    assert not sampling.is_uneven(np.delete(even, 100))
    assert sampling.is_uneven(np.delete(even, [100, 101, 102]))
    assert sampling.is_uneven(UNEVEN)
    for times in (None, even.round(3)):
        found = sampling.dense_view(300, fps, frames=16, rate=4, view=3, views=10, times=times)
        assert np.array_equal(found, sampling.dense_view(300, fps, frames=16, rate=4, view=3, views=10))


def test_training_clips_start_anywhere_in_the_video():
    rng = np.random.default_rng(0)
    starts = [sampling.dense_train(100, 30.0, frames=8, rate=8, rng=rng)[0] for _ in range(2000)]
    assert min(starts) == 0
    assert max(starts) == 35
    assert abs(np.mean(starts) - 17.5) < 1


def test_one_frame_gives_a_still_clip():
    rng = np.random.default_rng(0)
    assert sampling.dense_train(1, 30.0, frames=4, rate=2, rng=rng).tolist() == [0] * 4
    assert sampling.uniform_train(1, frames=4, rng=rng).tolist() == [0] * 4
    assert sampling.dense_view(1, 30.0, frames=4, rate=2, view=4, views=5, offset=True).tolist() == [0] * 4
    assert sampling.strided_train(1, frames=4, rate=2, rng=rng).tolist() == [0] * 4
    assert sampling.strided_view(1, frames=4, rate=2, view=1, views=2).tolist() == [0] * 4
    assert sampling.sparse_view(1, frames=4, view=1, views=2).tolist() == [0] * 4


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_a_senseless_frame_rate_is_refused(fps):
    with pytest.raises(UserError, match="expected a positive number"):
        sampling.dense_view(10, fps, frames=4, rate=2, view=0, views=1)


def test_an_empty_video_and_a_wrong_view_are_refused():
    with pytest.raises(UserError, match="at least one"):
        sampling.uniform_test(0, frames=4)
    with pytest.raises(UserError, match=r"expected 0\.\.2"):
        sampling.dense_view(10, 30.0, frames=4, rate=2, view=3, views=3)


def test_frames_of_spans_equal_lavila():
    inputs, expected = load("ego4d_chunked_clips")
    found = [sampling.span_parts(first, end, frames=frames).tolist() for first, end, frames in inputs["frame_ids"]]
    assert found == expected["frame_ids"]
    jitter = inputs["jitter"]
    rng, span = NumpyRandom(jitter["numpy_seed"]), (jitter["start"], jitter["end"])
    drawn = [sampling.span_parts(*span, frames=jitter["segments"], rng=rng).tolist() for _ in range(jitter["repeats"])]
    assert drawn == expected["jitter"]


def test_frames_of_spans_equal_avion():
    inputs, expected = load("avion_frame_ids")
    for case, ids in zip(inputs["cases"], expected["ids"], strict=True):
        rng = np.random.RandomState(case["numpy_seed"]) if case["jitter"] else None
        rng = rng and SimpleNamespace(random=rng.rand)
        found = sampling.span_middles(case["start"], case["end"], frames=case["segments"], rng=rng)
        assert found.tolist() == ids
