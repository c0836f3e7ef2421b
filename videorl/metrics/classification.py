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


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean over classes with positives of the average precision. scores, targets [N, C] -> fraction in 0..1."""
    from sklearn.metrics import average_precision_score

    present = targets.sum(0) > 0
    if not present.any():
        return float("nan")
    return float(np.mean(average_precision_score(targets[:, present], scores[:, present], average=None)))
