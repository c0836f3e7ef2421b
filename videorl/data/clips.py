"""Which frames of a video make a clip: index arithmetic only, no reading.

A *dense* clip has `frames` frames, `rate` frames apart in a video of `target_fps`; in a video of another rate the clip
keeps its length in seconds. A *uniform* clip has one frame from each of `frames` equal parts of the video.
Every function takes the number `n >= 1` of frames of the video and returns int64 [frames] in 0..n-1, never falling.
Rules of PySlowFast (datasets/decoder.py) as its fork MultiTrain computes them for decord.
"""

import math

import numpy as np

from videorl.registry import UserError


def dense_train(n: int, fps: float, *, frames: int, rate: int, target_fps: float = 30.0, rng) -> np.ndarray:
    """A clip from a random place of the video. `rng`: anything with `random() -> [0, 1)`."""
    length = clip_length(fps, frames=frames, rate=rate, target_fps=target_fps)
    return dense_at(rng.random() * max(n - length, 0), n, length=length, frames=frames)


def dense_view(
    n: int, fps: float, *, frames: int, rate: int, target_fps: float = 30.0, view: int, views: int, offset: bool = False
) -> np.ndarray:
    """Test view number `view` of `views` (`offset`: DATA.USE_OFFSET_SAMPLING, see `view_start`)."""
    length = clip_length(fps, frames=frames, rate=rate, target_fps=target_fps)
    return dense_at(view_start(n, length, view, views, offset), n, length=length, frames=frames)


def uniform_train(n: int, *, frames: int, rng) -> np.ndarray:
    """A random frame of each part, both ends included. `rng`: anything with `integers(low, high)`, high excluded."""
    edges = _edges(n, frames)
    return np.asarray(rng.integers(edges[:-1], edges[1:] + 1), dtype=np.int64)


def uniform_test(n: int, *, frames: int) -> np.ndarray:
    """The middle frame of each part."""
    edges = _edges(n, frames)
    return (edges[:-1] + edges[1:]) // 2


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
    if not 0 <= view < views:
        raise UserError(f"test view {view}: expected 0..{views - 1}, as there are {views} temporal views")
    delta = max(n - length, 0)
    if not offset:
        return delta * view / views
    return math.floor(delta / 2) if views == 1 else view * math.floor(delta / (views - 1))


def dense_at(start: float, n: int, *, length: float, frames: int) -> np.ndarray:
    """The frames of a dense clip that starts at `start`; what would lie past the video repeats its last frame."""
    _check(n)
    first = max(min(int(start), n - 2), 0)
    last = max(min(int(start + length - 1), n - 1), first)
    steps = np.linspace(0, max(length - 1, 0), frames)
    return first + np.clip(steps, 0, last - first).astype(np.int64)


def _edges(n: int, frames: int) -> np.ndarray:
    """The ends of `frames` equal parts of 0..n-1, halves rounded to even. [frames + 1]"""
    _check(n)
    return np.round((n - 1) / frames * np.arange(frames + 1)).astype(np.int64)


def _check(n: int) -> None:
    if n < 1:
        raise UserError(f"a video of {n} frames: expected at least one; remove it from the list")
