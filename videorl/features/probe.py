"""How well a simple classifier does on stored features, by lists of training and test videos."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from videorl.features.store import TIMES
from videorl.metrics.classification import class_accuracy, mean_class_accuracy, topk_accuracy
from videorl.registry import UserError, did_you_mean

Scores = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Rows:
    """Features [R, D] of all windows of some videos, end to end, how many windows each has, and its label."""

    features: np.ndarray
    windows: np.ndarray
    labels: np.ndarray
    missing: Sequence[str]  # listed videos without features


def rows_of(store: Mapping[str, Mapping[str, np.ndarray]], name: str, listed: Sequence[tuple[str, int]]) -> Rows:
    """The feature `name` (empty: the only one) of listed videos. Raises `UserError` where there is none,
    and for the first video of which one is no number.
    """
    found = [(path, label) for path, label in listed if path in store]
    if not found:
        raise UserError(
            f"none of {len(listed)} listed videos has features, first {listed[0][0]!r}; the folder has"
            f" {len(store)}, first {next(iter(store), 'none')!r}: paths must be those of the extraction"
        )
    name = name or _only(store[found[0][0]])
    if name not in store[found[0][0]]:
        known = sorted(set(store[found[0][0]]) - {TIMES})
        raise UserError(f"no feature {name}{did_you_mean(name, known)}: expected one of {', '.join(known)}")
    arrays = [np.asarray(store[path][name], np.float32) for path, _ in found]
    if arrays[0].ndim != 2:
        raise UserError(f"{name} has {arrays[0].shape[1:]} numbers a window; expected a vector, such as `features`")
    for (path, _), array in zip(found, arrays):
        if not np.isfinite(array).all():
            raise UserError(f"{name} of {path} holds NaN or infinity; extract it again, or leave it out of the lists")
    missing = [path for path, _ in listed if path not in store]
    labels = np.array([label for _, label in found])
    return Rows(np.concatenate(arrays), np.array([len(array) for array in arrays]), labels, missing)


def _only(features: Mapping) -> str:
    names = sorted(set(features) - {TIMES})
    if len(names) > 1:
        raise UserError(f"there are several features ({', '.join(names)}); name one")
    return names[0]


def probe(train: Rows, test: Rows, scores_of: Scores) -> dict[str, float]:
    """`top1`, `top5` (of more than five classes) and `mean_class` of the test videos, fractions in 0..1.

    Every window of a training video is a training sample; the scores of a test video's windows are summed. Classes that
    no training video has are never right. Raises `UserError` for training videos of one class.
    """
    if len(np.unique(train.labels)) < 2:
        raise UserError("the training list has videos of one class only; expected two or more")
    scores, classes = scores_of(train.features, np.repeat(train.labels, train.windows), test.features)
    firsts = np.concatenate([[0], np.cumsum(test.windows)[:-1]])
    summed = np.add.reduceat(scores, firsts, axis=0)  # [N, C]
    count = int(max(classes.max(), test.labels.max())) + 1
    whole = np.full((len(summed), count), -np.inf)
    whole[:, classes] = summed
    tops = [1, 5] if len(classes) > 5 else [1]
    found = {f"top{k}": topk_accuracy(whole, test.labels, k) for k in tops}
    return {**found, "mean_class": mean_class_accuracy(class_accuracy(whole.argmax(1), test.labels, count))}
