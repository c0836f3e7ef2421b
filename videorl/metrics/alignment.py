"""When is what a narrator says to be seen, if ever: HTM-Align.

Protocol of Han et al., Temporal Alignment Networks for Long-term Video, CVPR 2022 (TengdaHan/TemporalAlignNet), with
which Norton is measured.
"""

import math
from collections.abc import Sequence

import numpy as np

SECONDS, STRIDE = 32, 8  # of the windows that a video is seen through
EDGE = 4  # windows at each end of a video that also look for the texts there


def window_starts(seconds: int) -> list[int]:
    """First seconds of the windows of a video: the last of them has half a window left, or more."""
    return list(range(0, max(seconds - SECONDS // 2, 1), STRIDE))


def texts_of_windows(middles: Sequence[float], alignable: Sequence[bool], seconds: int) -> list[range]:
    """Of each window the numbers of the texts that are looked for in it.

    These are the texts between the first and the last of those that cannot be aligned and whose middle (seconds) lies
    in it or not more than SECONDS from it: the times of the others are what is asked. The first EDGE windows begin with
    the first text and the last EDGE end with the last. Where no such text is near, they reach to the nearest before and
    after.
    """
    anchors = [(k, middle) for k, (middle, shown) in enumerate(zip(middles, alignable)) if not shown]
    starts, found = window_starts(seconds), []
    for number, start in enumerate(starts):
        near = [k for k, middle in anchors if start - SECONDS <= middle <= start + 2 * SECONDS]
        before = [k for k, middle in anchors if middle < start - SECONDS]
        after = [k for k, middle in anchors if middle > start + 2 * SECONDS]
        first = near[0] if near else max(before, default=0)
        last = near[-1] if near else min(after, default=len(middles) - 1)
        if number < EDGE:
            first = 0
        if number >= len(starts) - EDGE:
            last = len(middles) - 1
        found.append(range(first, last + 1))
    return found


def similarity(windows: Sequence[np.ndarray], texts: Sequence[range], seconds: int, count: int) -> np.ndarray:
    """[texts, seconds], the mean over the windows that have both; 0 where none has. Windows are [texts, SECONDS]."""
    total, times = np.zeros((count, seconds)), np.zeros((count, seconds))
    for window, own, start in zip(windows, texts, window_starts(seconds), strict=True):
        width = min(window.shape[1], seconds - start)
        total[own.start : own.stop, start : start + width] += window[:, :width]
        times[own.start : own.stop, start : start + width] += 1
    return total / np.maximum(times, 1)


def hits(similarity: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """[N] bool: whether the best second of each text lies in its span, which is widened to whole seconds."""
    best = similarity.argmax(1)
    return (np.floor(starts) <= best) & (best <= np.ceil(ends))


def auc(scores: np.ndarray, right: np.ndarray) -> float:
    """The chance that one of the right has a higher score than one of the others, a tie counted half (nan: no such)."""
    good, bad = scores[right], scores[~right]
    if not len(good) or not len(bad):
        return math.nan
    order = np.sort(bad)
    below = np.searchsorted(order, good, "left") + np.searchsorted(order, good, "right")
    return float(below.mean() / 2 / len(bad))
