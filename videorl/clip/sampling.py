"""Which frames of a video make a clip: index arithmetic only, no reading.

A *dense* clip has `frames` frames, `rate` frames apart in a video of `target_fps`; in a video of another rate the clip
keeps its length in seconds, and in one of uneven rate (`is_uneven`) it has the frames that are shown at the moments at
which a video of the average rate shows those of the clip.
A *uniform* clip has one frame from each of `frames` equal parts of the video.
VideoMAE has its own two rules: a *strided* clip takes every `rate`-th frame of the video, whatever its frame rate, and
a *sparse* one a frame from each of `frames` parts of equally many whole frames.
Every function takes the number `n >= 1` of frames of the video and returns int64 [frames] in 0..n-1, never falling.
Rules of PySlowFast (datasets/decoder.py) as its fork MultiTrain computes them for decord; of MCG-NJU/VideoMAE,
OpenGVLab/VideoMAEv2 and deepglint/V-SWIFT.

Clips of a span of frames, for narrations, are rules of facebookresearch/LaViLa (`span_parts`) and of
zhaoyue-zephyrus/AVION (`span_middles`): these take a first frame and an end instead of `n`.
"""

import math

import numpy as np

from videorl.registry import UserError

INSTANT = 1e-6  # seconds; time stamps are multiples of ten times that, or more


def dense_train(
    n: int, fps: float, *, frames: int, rate: int, target_fps: float = 30.0, rng, times: np.ndarray | None = None
) -> np.ndarray:
    """A clip from a random place of the video. `rng`: anything with `random() -> [0, 1)`.

    `times` [n]: seconds at which frames are shown, rising; not given: an even rate.
    """
    length = clip_length(fps, frames=frames, rate=rate, target_fps=target_fps)
    return dense_at(rng.random() * max(n - length, 0), n, length=length, frames=frames, times=times)


def dense_view(
    n: int,
    fps: float,
    *,
    frames: int,
    rate: int,
    target_fps: float = 30.0,
    view: int,
    views: int,
    offset: bool = False,
    times: np.ndarray | None = None,
) -> np.ndarray:
    """Test view number `view` of `views` (`offset`: DATA.USE_OFFSET_SAMPLING, see `view_start`; `times` as above)."""
    length = clip_length(fps, frames=frames, rate=rate, target_fps=target_fps)
    return dense_at(view_start(n, length, view, views, offset), n, length=length, frames=frames, times=times)


def uniform_train(n: int, *, frames: int, rng) -> np.ndarray:
    """A random frame of each part, both ends included. `rng`: anything with `integers(low, high)`, high excluded."""
    edges = _edges(n, frames)
    return np.asarray(rng.integers(edges[:-1], edges[1:] + 1), dtype=np.int64)


def uniform_test(n: int, *, frames: int) -> np.ndarray:
    """The middle frame of each part."""
    edges = _edges(n, frames)
    return (edges[:-1] + edges[1:]) // 2


def strided_train(n: int, *, frames: int, rate: int, rng) -> np.ndarray:
    """A clip from a random place, VideoMAE's rule of pre-training.

    A video that is shorter than `frames * rate` is taken from its start on, and repeats the last frame that a step
    reaches. As published, no step reaches the very last frame of a video.
    `rng`: anything with `integers(low, high)`, high excluded.
    """
    _check(n)
    start = int(rng.integers(0, max(n - frames * rate, 0) + 1))
    return start + rate * np.minimum(np.arange(frames), max(n - 2 - start, 0) // rate)


def strided_view(n: int, *, frames: int, rate: int, view: int, views: int) -> np.ndarray:
    """Test view: a clip of every `rate`-th frame. The views reach from the first to the last; a single one is central.

    A video too short repeats its last such frame.
    """
    _check(n)
    _check_view(view, views)
    count = -(-n // rate)
    room = max(count - frames, 0)
    start = room // 2 if views == 1 else view * room // (views - 1)
    return rate * np.minimum(start + np.arange(frames), count - 1)


def sparse_train(n: int, *, frames: int, rng) -> np.ndarray:
    """A random frame of each part. `rng`: anything with `integers(low, high, size)`, high excluded."""
    _check(n)
    part = n // frames
    return np.arange(frames) * part + rng.integers(0, part, frames) if part else _padded(n, frames)


def sparse_view(n: int, *, frames: int, view: int, views: int) -> np.ndarray:
    """Test view: every `views`-th of `views` times as many frames, evenly spread; a single view: the parts' middles."""
    _check(n)
    _check_view(view, views)
    part = n // frames
    if views == 1:
        return np.arange(frames) * part + part // 2 if part else _padded(n, frames)
    tick = n / frames
    shifts = np.arange(views)[:, None] * tick / views
    return np.sort((shifts + tick * np.arange(frames)).astype(np.int64), axis=None)[view::views]


def _padded(n: int, frames: int) -> np.ndarray:
    """All frames of a video of fewer than `frames`, after repeats of the first."""
    return np.maximum(np.arange(frames) - (frames - n), 0)


def span_parts(first: int, end: int, *, frames: int, rng=None) -> np.ndarray:
    """The middle frame of each of `frames` parts of first..end-1, or with `rng` a random one, both ends included.

    A span of fewer frames repeats some. `rng`: anything with `integers(low, high)`, high excluded.
    """
    part = (end - first - 1) / frames
    edges = first + np.round(part * np.arange(frames + 1)).astype(np.int64)
    low, high = edges[:-1], edges[1:]
    if rng is None:
        return (low + high) // 2
    return np.array([int(rng.integers(a, max(a, b) + 1)) for a, b in zip(low, high)], np.int64)


def span_middles(first: int, end: int, *, frames: int, rng=None) -> np.ndarray:
    """The middles of `frames` equal parts of first..end, with `rng` moved about: anything with `random(size)`."""
    edges = np.linspace(first, end, frames + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    if rng is not None:
        middles += (rng.random(frames) - 0.5) * (end - first - 1) / frames
    return middles.astype(np.int64)


def clip_length(fps: float, *, frames: int, rate: int, target_fps: float) -> float:
    """Length of a dense clip in frames of a video of `fps`; not a whole number in general."""
    if not (math.isfinite(fps) and fps > 0):
        raise UserError(f"frame rate {fps}: expected a positive number; re-encode the video or give its frame rate")
    return rate * frames * fps / target_fps


def view_start(n: int, length: float, view: int, views: int, offset: bool) -> float:
    """First frame (a fraction) of a test view.

    Without `offset` the views start at delta * view / views, so none reaches the end of the video. With it they reach
    from the first to the last frame in steps of whole frames, and a single view lies in the middle.
    """
    _check_view(view, views)
    delta = max(n - length, 0)
    if not offset:
        return delta * view / views
    return math.floor(delta / 2) if views == 1 else view * math.floor(delta / (views - 1))


def dense_at(start: float, n: int, *, length: float, frames: int, times: np.ndarray | None = None) -> np.ndarray:
    """The frames of a dense clip that starts at `start`; what would lie past the video repeats its last frame."""
    _check(n)
    first = max(min(int(start), n - 2), 0)
    last = max(min(int(start + length - 1), n - 1), first)
    moments = np.clip(np.linspace(0, max(length - 1, 0), frames), 0, last - first)  # in frames, from the first on
    if times is None or not is_uneven(times):
        return first + moments.astype(np.int64)
    seconds = times[0] + (first + moments) * (times[-1] - times[0]) / (n - 1)
    return np.searchsorted(times, seconds + INSTANT, side="right") - 1


def is_uneven(times: np.ndarray) -> bool:
    """Whether some frame is shown a whole frame's time or more from where it were at an even rate.

    Nearer, as after rounding of time stamps or one frame left out, clips keep their length without a look at the times.
    """
    n = len(times)
    if n < 3:
        return False
    return bool(np.abs((times - times[0]) / (times[-1] - times[0]) * (n - 1) - np.arange(n)).max() >= 1)


def _edges(n: int, frames: int) -> np.ndarray:
    """The ends of `frames` equal parts of 0..n-1, halves rounded to even. [frames + 1]"""
    _check(n)
    return np.round((n - 1) / frames * np.arange(frames + 1)).astype(np.int64)


def _check_view(view: int, views: int) -> None:
    if not 0 <= view < views:
        raise UserError(f"test view {view}: expected 0..{views - 1}, as there are {views} temporal views")


def _check(n: int) -> None:
    if n < 1:
        raise UserError(f"a video of {n} frames: expected at least one; remove it from the list")
