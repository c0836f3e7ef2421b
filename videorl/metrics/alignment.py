"""When is what a narrator says to be seen, if ever: HTM-Align.

Protocol of Han et al., Temporal Alignment Networks for Long-term Video, CVPR 2022 (TengdaHan/TemporalAlignNet), with
which Norton is measured.
"""

import math
from collections.abc import Sequence

import numpy as np

EDGE = 4  # windows at each end of a video that also look for the texts there


def texts_of_windows(
    middles: Sequence[float], alignable: Sequence[bool], starts: Sequence[int], length: int
) -> list[range]:
    """Of each window the numbers of the texts that are looked for in it.

    Windows of `length` seconds begin at `starts`. The texts are those between the first and the last of those that
    cannot be aligned and whose middle (seconds) lies in the window or not more than `length` from it: the times of the
    others are what is asked. The first EDGE windows begin with the first text and the last EDGE end with the last.
    Where no such text is near, they reach to the nearest before and after.
    """
    anchors = [(k, middle) for k, (middle, shown) in enumerate(zip(middles, alignable)) if not shown]
    found = []
    for number, start in enumerate(starts):
        near = [k for k, middle in anchors if start - length <= middle <= start + 2 * length]
        before = [k for k, middle in anchors if middle < start - length]
        after = [k for k, middle in anchors if middle > start + 2 * length]
        first = near[0] if near else max(before, default=0)
        last = near[-1] if near else min(after, default=len(middles) - 1)
        if number < EDGE:
            first = 0
        if number >= len(starts) - EDGE:
            last = len(middles) - 1
        found.append(range(first, last + 1))
    return found


def similarity(windows: np.ndarray, texts: Sequence[range], starts: Sequence[int], seconds: int) -> np.ndarray:
    """[texts, seconds] of windows [W, texts, L]: the mean over those in which a text is looked for; 0 where in none."""
    total, times = np.zeros((windows.shape[1], seconds)), np.zeros((windows.shape[1], seconds))
    for window, own, start in zip(windows, texts, starts, strict=True):
        width = min(window.shape[1], seconds - start)
        total[own.start : own.stop, start : start + width] += window[own.start : own.stop, :width]
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
