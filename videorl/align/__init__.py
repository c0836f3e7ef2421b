"""When is what a narrator says to be seen, if ever? Lines of text and seconds of a video, by optimal transport.

Similarities are those of HTM-Align (Han et al., Temporal Alignment Networks for Long-term Video, CVPR 2022), the plan
that of Norton (Lin et al., ICLR 2024), whose bucket takes what fits nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from videorl.data.deduplicate import Caption
from videorl.data.feature_sets import aligned_windows
from videorl.data.features import Texts
from videorl.evals.alignment import cosines
from videorl.metrics.alignment import similarity
from videorl.metrics.transport import sinkhorn

TEXTS = 256  # embedded at once
HALF = 0.5  # of a line's largest share of a second: a second with less is not part of when it happens


@dataclass(frozen=True)
class Plan:
    """How lines are matched with seconds.

    `within`: seconds from when a line is spoken in which it is looked for; 0: the whole video. `threshold`: the score
    that a line must have to be shown, and that of the bucket; None: where the best scores of the lines fall best into
    two groups. `entropy`, `iterations`: of the transport.
    """

    within: float = 60.0
    threshold: float | None = None
    entropy: float = 0.1
    iterations: int = 50


@dataclass(frozen=True)
class Line:
    """A line of text and when it happens: seconds, or, unless `shown`, when it best might. `score`: its best cosine."""

    said: Caption
    start: float
    end: float
    score: float
    shown: bool


@dataclass(frozen=True)
class Aligned:
    """`lines`, by when they are spoken; similarities and plan, [lines, seconds]; the threshold of the verdicts."""

    lines: list[Line]
    similarity: np.ndarray
    plan: np.ndarray
    threshold: float


def similarities(model, rows: np.ndarray, captions: Sequence[Caption], texts: Texts, name: str) -> np.ndarray:
    """[lines, seconds]: cosines of lines with the hidden states of the video's features [seconds, F], the mean over the
    windows that a second lies in. Raises `VideoError` for features that are no numbers."""
    video = aligned_windows(rows, name)
    said = [caption.text for caption in captions]
    with torch.inference_mode():
        parts = [cosines(model, video, texts(said[k : k + TEXTS])) for k in range(0, len(said), TEXTS)]
    looked_for = [range(len(said))] * len(video.starts)
    return similarity(np.concatenate(parts, 1), looked_for, video.starts, video.seconds)


def align(scores: np.ndarray, captions: Sequence[Caption], how: Plan) -> Aligned:
    """When each line happens, from similarities [lines, seconds]."""
    near = _near(captions, scores.shape[1], how.within)
    given = np.where(near, scores, -np.inf)
    best = given.max(1)
    threshold = divide(best) if how.threshold is None else how.threshold
    bucket = torch.tensor(threshold / how.entropy)
    plan = sinkhorn(torch.from_numpy(given / how.entropy), how.iterations, bucket).numpy()
    lines = [
        Line(said, *_span(row), float(score), bool(score > threshold)) for said, row, score in zip(captions, plan, best)
    ]
    return Aligned(lines, scores, plan, threshold)


def divide(values: np.ndarray) -> float:
    """The threshold between two groups of values that differ most from each other and least within (Otsu, 1979).

    Of values that are all the same, one below them.
    """
    ordered = np.sort(values)
    low = np.arange(1, len(ordered))
    high = len(ordered) - low
    sums = ordered.cumsum()[:-1]
    between = low * high * (sums / low - (ordered.sum() - sums) / high) ** 2
    if not len(low) or ordered[0] == ordered[-1]:
        return float(ordered[0] - 1)
    cut = int(between.argmax())
    return float(ordered[cut : cut + 2].mean())


def _near(captions: Sequence[Caption], seconds: int, within: float) -> np.ndarray:
    """[lines, seconds] bool: where each line is looked for, at least in the second next to it."""
    starts, ends = (np.array([c[k] for c in captions])[:, None] for k in (0, 1))
    if not within:
        return np.ones((len(captions), seconds), bool)
    middles = np.arange(seconds) + 0.5
    nearest = np.abs(middles - (starts + ends) / 2).argmin(1)
    return ((middles >= starts - within) & (middles <= ends + within)) | (np.arange(seconds) == nearest[:, None])


def _span(plan: np.ndarray) -> tuple[float, float]:
    """The seconds around the best one of a line that have a good part of its share."""
    best = int(plan.argmax())
    part = plan >= HALF * plan[best]
    start, end = best, best + 1
    while start > 0 and part[start - 1]:
        start -= 1
    while end < len(plan) and part[end]:
        end += 1
    return float(start), float(end)
