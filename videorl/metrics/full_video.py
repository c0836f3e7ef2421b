"""Which video does a sequence of sentences tell of? Retrieval of whole videos, YouCook2, as VideoCLIP and Norton do it.

A video is a sequence of clips, a text a sequence of captions, and what is given are the scores of each caption with
each clip. Dynamic time warping (DTW), that of Cao et al., Few-Shot Video Classification via Temporal Alignment, CVPR
2020 (OTAM), and optimal transport (OT) make one number of the scores of a text with a video.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from videorl.metrics.retrieval import ranks, summary
from videorl.metrics.transport import sinkhorn

KINDS = ("cap_avg", "dtw", "dtw_published", "otam", "otam_published", "ot")
KEPT = 1.3  # windows of a video that count, to a caption, where it has background
ENTROPY, ITERATIONS = 0.1, 50  # of OT, for scores from 0 to 1: those of Norton's training


def full_video_metrics(scores: np.ndarray, captions: Sequence[int], clips: Sequence[int], background: bool) -> dict:
    """Recall at 1, 5 and 10 and median rank of the video of each text, for each way of KINDS, e.g. `dtw_r1`."""
    tables = full_video_scores(scores, captions, clips, background)
    return {
        f"{kind}_{name}": value
        for kind, table in tables.items()
        for name, value in summary(ranks(table), len(table)).items()
    }


def full_video_scores(scores: np.ndarray, captions: Sequence[int], clips: Sequence[int], background: bool) -> dict:
    """Kind to a table [V, V] of texts and videos, where the higher fits better.

    scores [sum of captions, sum of clips], captions and clips of V texts and videos in order. `cap_avg`: mean over the
    captions of the best clip. `dtw`, `otam`: less the cost of the cheapest path through costs -score (with background
    3 - score for `dtw`), which for `otam` goes through each caption, plus that through each clip; `_published` with the
    published padding (see `padded`). Costs are divided by captions * clips (with background those of `otam` by the
    larger of both), as published. `ot`: the mean score under the transport plan, of scores scaled to 0..1 over all;
    the published code leaves it at 0. With `background` only so many clips count as KEPT times the captions, those of
    the largest score of any caption.
    """
    pairs = [
        (row, column, _kept(block) if background else block)
        for row, line in enumerate(np.split(scores, np.cumsum(captions)[:-1]))
        for column, block in enumerate(np.split(line, np.cumsum(clips)[:-1], 1))
    ]
    tables = {kind: np.empty((len(captions), len(clips))) for kind in KINDS[1:]}
    largest = tuple(max(block.shape[axis] for *_, block in pairs) for axis in (0, 1))
    low, high = scores.min(), scores.max()
    for rows, columns, blocks in _by_shape(pairs):
        n, m = blocks.shape[1:]
        costs = (3.0 if background else 0.0) - blocks
        length = max(n, m) if background else n * m
        found = {
            "dtw": -dtw(costs)[:, -1, -1] / (n * m),
            "dtw_published": -dtw(padded(costs, *largest))[:, -1, -1] / (n * m),
            "otam": -_otam_both_ways(-blocks) / length,
            "otam_published": -_otam_both_ways(-blocks, largest) / length,
            "ot": _transported((blocks - low) / (high - low or 1.0)),
        }
        for kind, values in found.items():
            tables[kind][rows, columns] = values
    return {"cap_avg": _mean_of_best(scores, captions, clips), **tables}


def _mean_of_best(scores: np.ndarray, captions: Sequence[int], clips: Sequence[int]) -> np.ndarray:
    first_caption, first_clip = (np.cumsum([0, *counts[:-1]]) for counts in (captions, clips))
    best = np.maximum.reduceat(scores, first_clip, axis=1)
    return np.add.reduceat(best, first_caption, axis=0) / np.array(captions)[:, None]


def _kept(block: np.ndarray) -> np.ndarray:
    """The columns of the largest maxima, in order: int(KEPT * rows) of them, at least one."""
    count = max(1, int(KEPT * len(block)))
    return block[:, np.sort(np.argsort(-block.max(0), kind="stable")[:count])]


def _by_shape(pairs: Sequence[tuple]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, columns and blocks [P, n, m] of those pairs whose blocks are of one shape, for each shape."""
    shapes: dict[tuple, list] = {}
    for pair in pairs:
        shapes.setdefault(pair[2].shape, []).append(pair)
    for same in shapes.values():
        rows, columns, blocks = zip(*same)
        yield np.array(rows), np.array(columns), np.stack(blocks)


def dtw(costs: np.ndarray) -> np.ndarray:
    """Costs [P, n, m] to those of the cheapest path from (0, 0) to each cell, of steps down, right and both."""
    total = costs.copy()
    for i in range(costs.shape[1]):
        for j in range(costs.shape[2]):
            before = [total[:, i - di, j - dj] for di, dj in ((1, 0), (0, 1), (1, 1)) if i >= di and j >= dj]
            if before:
                total[:, i, j] += np.minimum.reduce(before)
    return total


def otam(costs: np.ndarray) -> np.ndarray:
    """The same for steps right and down-right, and down in the first and last column but one column at each end.

    Costs [P, n, m + 2] have a column of zeros at each end: a path begins and ends in any row.
    """
    total, last = np.zeros_like(costs), costs.shape[2] - 1
    total[:, 0] = costs[:, 0].cumsum(1)
    for i in range(1, costs.shape[1]):
        for j in range(1, last + 1):
            before = [total[:, i - 1, j - 1], total[:, i, j - 1], *([total[:, i - 1, j]] if j in (1, last) else [])]
            total[:, i, j] = costs[:, i, j] + np.minimum.reduce(before)
    return total


def padded(costs: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Costs [P, n, m] as [P, rows, columns], filled up as the published code does.

    Infinite below and to the right, but 0 where both meet, so that a path gets on to the last cell. That corner begins
    with the last row, one too early, and where there is nothing to the right it is the whole row: so the cost of a
    path is not that of the unpadded costs.
    """
    found = np.full((len(costs), rows, columns), np.inf)
    n, m = costs.shape[1:]
    found[:, :n, :m] = costs
    found[:, n - 1 :, m if m < columns else 0 :] = 0.0
    return found


def _otam_both_ways(costs: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """[P] of costs [P, n, m], with the published padding if there is a size."""
    total = 0.0
    for way, turned in ((costs, 1), (costs.transpose(0, 2, 1), -1)):
        framed = np.pad(way, ((0, 0), (0, 0), (1, 1)))
        if size:
            rows, columns = size[::turned]
            framed = padded(framed, rows, columns + 2)
        total = total + otam(framed)[:, -1, -1]
    return total


def _transported(scores: np.ndarray) -> np.ndarray:
    """[P] of scores [P, n, m] in 0..1: their mean under the plan."""
    values = torch.from_numpy(np.ascontiguousarray(scores)).float()
    plan = sinkhorn(values / ENTROPY, ITERATIONS)
    return ((plan * values).sum((1, 2)) / plan.sum((1, 2))).numpy()
