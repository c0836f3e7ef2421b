"""Accuracy, confusion and average precision from scores [N, C] and labels."""

import numpy as np


def topk_accuracy(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Part of the samples whose label is among the k best scores. A tie counts against the label, and so does a nan.

    scores [N, C], labels [N] -> fraction in 0..1 (nan for N = 0).
    """
    if not len(labels):
        return float("nan")
    own = scores[np.arange(len(labels)), labels][:, None]
    not_behind = (~(scores < own)).sum(1)  # the label itself among them
    return float((not_behind <= k).mean())


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """[C, C] counts, row = label, column = prediction."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def class_accuracy(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """[C] accuracy of each class; nan where a class has no samples."""
    table = confusion(predicted, labels, classes)
    n = table.sum(1)
    return np.divide(np.diag(table), n, out=np.full(classes, np.nan), where=n > 0)


def mean_class_accuracy(accuracies: np.ndarray, absent: float = float("nan")) -> float:
    """Mean of the accuracies [C] of classes; those without samples (nan) are left out, or count as `absent`.

    LaViLa's (get_mean_accuracy) counts them as 0.
    """
    counted = np.where(np.isnan(accuracies), absent, accuracies)
    return float(np.nanmean(counted)) if np.isfinite(counted).any() else float("nan")


def average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[C] average precision of each class; nan of one without positives. scores, targets [N, C]."""
    from sklearn.metrics import average_precision_score

    found, present = np.full(targets.shape[1], np.nan), targets.sum(0) > 0
    if present.any():
        found[present] = average_precision_score(targets[:, present], scores[:, present], average=None)
    return found


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean over classes with positives of the average precision. scores, targets [N, C] -> fraction in 0..1."""
    found = average_precision(scores, targets)
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def charades_average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[C] as the Charades evaluation has it: a video without any label is behind all others, in every class.

    The published mean over classes is nan if one of them is, that is has no positives.
    """
    labelled = targets.sum(1) > 0  # the last places, where nothing is found, change no precision before them
    return average_precision(scores[labelled], targets[labelled])


def marginalise(scores: np.ndarray, part_of: np.ndarray, parts: int) -> np.ndarray:
    """Scores [N, parts] of verbs (or nouns): sums of those [N, A] of the actions that have them, by `part_of` [A].

    A verb that no action has scores 0. LaViLa's code gives it the score of action 0.
    """
    found = np.zeros((parts, len(scores)), scores.dtype)
    np.add.at(found, part_of, scores.T)
    return found.T
