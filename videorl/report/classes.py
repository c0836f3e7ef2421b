"""What a model takes for what: the confusion matrix and the figure of every class."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from videorl.report.read import Predictions

TABLE_CLASSES = 40  # up to so many classes the matrix is a table of its own, beyond it an image
IMAGE_SIDE = 400  # pixels at most; more classes than that share pixels
RIGHT_RGB, WRONG_RGB = (46, 110, 200), (214, 96, 20)


@dataclass(frozen=True)
class ClassFigure:
    """A class: its accuracy (or average precision, where clips have several labels), clips, most frequent mistake."""

    name: str
    value: float
    n: int
    taken_for: str


@dataclass(frozen=True)
class Classes:
    """What the page shows of one evaluation. `counts` is [true, predicted], or None where clips have several labels."""

    name: str
    metric: str
    names: list[str]
    counts: np.ndarray | None
    best: list[ClassFigure]
    worst: list[ClassFigure]
    confusions: list[tuple[str, str, int, int]]  # true, predicted, count, clips of the true class
    image: dict | None
    summary: str


def classes(predictions: Predictions) -> Classes:
    """The confusions and the classes of one evaluation, computed from its stored scores."""
    counts = None if predictions.several else confusion(predictions)
    figures = _average_precisions(predictions) if predictions.several else _accuracies(counts, predictions.classes)
    figures.sort(key=lambda f: (-f.value, -f.n, f.name))
    split = len(figures) > 20
    large = counts is not None and len(counts) > TABLE_CLASSES
    clips = len(predictions.scores)
    dropped = f"; {predictions.dropped} without a known label are left out" if predictions.dropped else ""
    hits = int(predictions.right.sum())
    return Classes(
        name=predictions.name,
        metric="average precision" if predictions.several else "accuracy",
        names=predictions.classes,
        counts=counts if not large else None,
        best=figures[:10] if split else figures,
        worst=figures[:-11:-1] if split else [],
        confusions=[] if counts is None else _worst_confusions(counts, predictions.classes),
        image=_image(counts, predictions.classes) if large else None,
        summary=f"From the stored scores: the best class is right for {hits} of {clips} clips"
        f" ({100 * hits / clips:.1f} %){dropped}.",
    )


def confusion(predictions: Predictions) -> np.ndarray:
    """[C, C] number of clips by true class (row) and predicted class (column)."""
    side = len(predictions.classes)
    pairs = predictions.labels.astype(np.int64) * side + predictions.predicted
    return np.bincount(pairs, minlength=side * side).reshape(side, side)


def _accuracies(counts: np.ndarray, names: list[str]) -> list[ClassFigure]:
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    figures = []
    for c in np.flatnonzero(counts.sum(1)):
        n, other = int(counts[c].sum()), int(wrong[c].argmax())
        taken = f"{names[other]} ({wrong[c, other]})" if wrong[c, other] else ""
        figures.append(ClassFigure(names[c], counts[c, c] / n, n, taken))
    return figures


def _average_precisions(predictions: Predictions) -> list[ClassFigure]:
    order = np.argsort(-predictions.scores, axis=0, kind="stable")
    found = np.take_along_axis(predictions.labels > 0, order, axis=0)  # [N, C], best score first
    precision = found.cumsum(0) / np.arange(1, len(found) + 1)[:, None]
    n = found.sum(0)
    value = (precision * found).sum(0) / np.maximum(n, 1)
    return [ClassFigure(predictions.classes[c], float(value[c]), int(n[c]), "") for c in np.flatnonzero(n)]


def _worst_confusions(counts: np.ndarray, names: list[str]) -> list[tuple[str, str, int, int]]:
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:15]
    pairs = [np.unravel_index(k, counts.shape) for k in order]
    return [(names[t], names[p], int(wrong[t, p]), int(counts[t].sum())) for t, p in pairs if wrong[t, p]]


def _image(counts: np.ndarray, names: list[str]) -> dict:
    """The matrix as a transparent PNG, which suits light and dark pages, and the numbers to show on hovering."""
    block = -(-len(counts) // IMAGE_SIDE)
    starts = np.arange(0, len(counts), block)
    blocks = np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)
    share = np.sqrt(blocks / np.maximum(blocks.sum(1, keepdims=True), 1))
    pixels = np.empty((*blocks.shape, 4), np.uint8)
    pixels[..., :3] = np.where(np.eye(len(blocks), dtype=bool)[..., None], RIGHT_RGB, WRONG_RGB)
    pixels[..., 3] = np.round(255 * share)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    rows, columns = np.nonzero(blocks)
    labels = [names[s] if block == 1 else f"{names[s]} … {names[min(s + block, len(names)) - 1]}" for s in starts]
    return {
        "uri": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "data": {"names": labels, "cells": np.stack([rows, columns, blocks[rows, columns]], 1).tolist()},
        "block": block,
    }
