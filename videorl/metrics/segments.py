"""What is done in each second of a video: COIN and CrossTask, as VideoCLIP and Norton measure it."""

from collections.abc import Mapping, Sequence

import numpy as np

BACKGROUND = 0  # class of a second in which nothing is done


def mean_of_windows(windows: np.ndarray, starts: Sequence[int], seconds: int) -> np.ndarray:
    """Scores [seconds, ...] from those of windows [W, L, ...] that begin at `starts`: the mean where they overlap.

    What a window has past the end is left out; a second that no window has is 0.
    """
    total = np.zeros((seconds, *windows.shape[2:]), windows.dtype)
    times = np.zeros(seconds)
    for window, start in zip(windows, starts, strict=True):
        own = window[: max(seconds - start, 0)]
        total[start : start + len(own)] += own
        times[start : start + len(own)] += 1
    return total / np.maximum(times, 1).reshape(-1, *[1] * (total.ndim - 1)).astype(total.dtype)


def zero_shot_threshold(labels: np.ndarray) -> float:
    """The largest dot product of the embeddings [C, D] of two labels, above which a second is taken to fit one."""
    if len(labels) < 2:
        return -np.inf
    products = labels @ labels.T
    return float(products[~np.eye(len(labels), dtype=bool)].max())


def zero_shot_classes(scores: np.ndarray, threshold: float) -> np.ndarray:
    """[N] classes from scores [N, C] of labels: 1 + the best label if it is above the threshold, else BACKGROUND."""
    return np.where(scores.max(1) > threshold, 1 + scores.argmax(1), BACKGROUND)


def frame_counts(found: np.ndarray, right: np.ndarray) -> dict[str, int]:
    """Of the seconds of a video, classes found and right [N] int64: how many there are, are found, and of `steps`,
    those in which something is done, how many there are and are found."""
    steps, hit = right != BACKGROUND, found == right
    counts = {"found": hit.sum(), "steps": steps.sum(), "found_steps": hit[steps].sum()}
    return {"seconds": len(right), **{name: int(count) for name, count in counts.items()}}


def frame_metrics(counts: Mapping[str, int]) -> dict[str, float]:
    """Parts, 0..1, from sums of `frame_counts`: of the seconds, whose class is found (`frame_acc`), and would be if all
    were said to be background; `step_acc`, of those in which something is done."""
    part = lambda some, whole: some / whole if whole else float("nan")  # noqa: E731
    return {
        "frame_acc": part(counts["found"], counts["seconds"]),
        "all_background_acc": part(counts["seconds"] - counts["steps"], counts["seconds"]),
        "step_acc": part(counts["found_steps"], counts["steps"]),
    }


def crosstask_recall(found: Mapping[str, Mapping], right: Mapping[str, Mapping]) -> dict[str, float]:
    """Task to the part of its videos' steps that are found, and `recall`, the mean over tasks.

    Both: task -> video -> [seconds, steps] of ones and zeros, at most a second for each step in `found`. A video that
    one of them lacks does not count.
    """
    recalls = {}
    for task, videos in right.items():
        both = [(found[task][name], steps) for name, steps in videos.items() if name in found.get(task, {})]
        there = sum(int((np.asarray(steps).sum(0) > 0).sum()) for _, steps in both)
        hit = sum(float((np.asarray(guess) * np.asarray(steps)).sum()) for guess, steps in both)
        recalls[task] = hit / there if there else float("nan")
    return {**recalls, "recall": float(np.nanmean(list(recalls.values())))}
