"""From scores over time to segments of one class each, and to subtitles that say which (SRT)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videorl.predict.classifier import Curve
from videorl.report import subtitles


@dataclass(frozen=True)
class Segment:
    """A class from second `start` to second `end`, with its mean score there."""

    start: float
    end: float
    label: int
    score: float


def segments(curve: Curve) -> list[Segment]:
    """Runs of windows whose best class is the same, one after the other, from the beginning of the video to its end.

    A window stands for the time until the next one begins, the last one for all of its own.
    """
    best = curve.scores.argmax(1)
    starts = curve.times[:, 0]
    ends = np.append(starts[1:], curve.times[-1, 1])
    first = np.flatnonzero(np.diff(best, prepend=-1))
    stops = np.append(first[1:], len(best))
    return [
        Segment(float(starts[a]), float(ends[b - 1]), int(best[a]), float(curve.scores[a:b, best[a]].mean()))
        for a, b in zip(first, stops)
    ]


def srt(found: Sequence[Segment], classes: Sequence[str]) -> str:
    """Subtitles: `class  87 %` during each segment."""
    return subtitles.srt([(s.start, s.end, f"{classes[s.label]}  {100 * s.score:.0f} %") for s in found])
