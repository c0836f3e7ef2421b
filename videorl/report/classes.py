"""What a model takes for what: the confusion matrix, the figure of every class, and how often it was trained on."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from videorl.metrics.proportion import wilson
from videorl.report.predictions import Predictions
from videorl.report.read import RunFolder, number, percent

TABLE_CLASSES = 40  # up to so many classes the matrix is a table of its own, beyond it an image
IMAGE_SIDE = 400  # pixels at most; more classes than that share pixels
SMALL = 1000  # of fewer samples, a proportion comes with its interval
RIGHT_RGB, WRONG_RGB = (46, 110, 200), (214, 96, 20)


@dataclass(frozen=True)
class ClassFigure:
    """A class: its accuracy (or average precision, where clips have several labels), clips, most frequent mistake.

    `taken_for`: number of the class it is mostly taken for, how often; `trained`: clips of it in training, if known.
    """

    number: int
    name: str
    value: float
    n: int
    interval: str = ""
    taken_for: tuple[int, str, int] | None = None
    trained: int | None = None


@dataclass(frozen=True)
class Confusion:
    """How many clips of the class `true` are taken for another one, of how many in all."""

    true: int
    predicted: int
    count: int
    n: int


@dataclass(frozen=True)
class Classes:
    """What the page shows of one evaluation. `counts` is [true, predicted], or None where it is an image or nothing."""

    name: str
    metric: str
    names: list[str]
    counts: np.ndarray | None
    best: list[ClassFigure]
    worst: list[ClassFigure]
    confusions: list[Confusion]
    image: dict | None
    summary: str


@dataclass(frozen=True)
class Trained:
    """Clips of each class in a training set: (name, count), the most frequent first."""

    title: str
    counts: list[tuple[str, int]]

    @property
    def without(self) -> list[str]:
        """Classes that have no clip."""
        return [name for name, count in self.counts if not count]


def trained_on(folder: RunFolder) -> list[Trained]:
    """The training sets of a run whose class counts its run.json holds, each label space by itself."""
    found = []
    for title, facts in folder.run.get("data", {}).items():
        spaces = facts.get("classes")
        for space, counts in spaces.items() if title.endswith("/train") and isinstance(spaces, dict) else ():
            if isinstance(counts, dict) and counts and all(isinstance(n, int) for n in counts.values()):
                ordered = sorted(counts.items(), key=lambda item: -item[1])
                found.append(Trained(title if len(spaces) == 1 else f"{title}, classes of {space}", ordered))
    return found


def classes(predictions: Predictions, trained: Mapping[str, int] | None = None) -> Classes:
    """The confusions and the classes of one evaluation, computed from its stored scores.

    `trained`: clips of each class in training, by name.
    """
    names, several = predictions.classes, predictions.several
    pairs = np.zeros((0, 3), np.int64) if several else confusions(predictions)
    figures = _average_precisions(predictions) if several else _accuracies(pairs, names)
    figures = [_with_training(figure, trained or {}) for figure in figures]
    figures.sort(key=lambda f: (-f.value, -f.n, f.name))
    split = len(figures) > 20
    large = len(names) > TABLE_CLASSES
    return Classes(
        name=predictions.name,
        metric="average precision" if several else "accuracy",
        names=names,
        counts=None if large or several else _table(pairs, len(names)),
        best=figures[:10] if split else figures,
        worst=figures[:-11:-1] if split else [],
        confusions=_worst_confusions(pairs),
        image=_image(pairs, names) if large and not several else None,
        summary=_summary(predictions),
    )


def interval(hits: int, n: int) -> str:
    """The 95 % interval of a proportion of few samples as `30.1–95.4 %`; empty where there are many."""
    low, high = wilson(hits, n) if 0 < n < SMALL else (0, 0)
    return f"{percent(low).removesuffix(' %')}–{percent(high)}" if 0 < n < SMALL else ""


def _summary(predictions: Predictions) -> str:
    hits, clips = int(predictions.right.sum()), len(predictions.scores)
    sure = f", 95 % interval {interval(hits, clips)}" if interval(hits, clips) else ""
    dropped = f"; {predictions.dropped} without a known label are left out" if predictions.dropped else ""
    share = percent(hits / clips)
    return f"From the stored scores: the best class is right for {hits} of {clips} clips ({share}{sure}){dropped}."


def confusions(predictions: Predictions) -> np.ndarray:
    """[P, 3] true class, predicted class, number of clips: of the pairs that occur, in order."""
    side = len(predictions.classes)
    pairs, counts = np.unique(predictions.labels * side + predictions.predicted, return_counts=True)
    return np.stack([pairs // side, pairs % side, counts], 1)


def _table(pairs: np.ndarray, side: int) -> np.ndarray:
    table = np.zeros((side, side), np.int64)
    table[pairs[:, 0], pairs[:, 1]] = pairs[:, 2]
    return table


def _accuracies(pairs: np.ndarray, names: list[str]) -> list[ClassFigure]:
    figures = []
    for c in np.unique(pairs[:, 0]).tolist():
        own = pairs[pairs[:, 0] == c]
        n, hits = int(own[:, 2].sum()), int(own[own[:, 1] == c, 2].sum())
        wrong = own[own[:, 1] != c]
        _, other, count = wrong[wrong[:, 2].argmax()].tolist() if len(wrong) else (c, c, 0)
        taken_for = (other, names[other], count) if count else None
        figures.append(ClassFigure(c, names[c], hits / n, n, interval(hits, n), taken_for))
    return figures


def _average_precisions(predictions: Predictions) -> list[ClassFigure]:
    order = np.argsort(-predictions.scores, axis=0, kind="stable")
    found = np.take_along_axis(predictions.labels > 0, order, axis=0)  # [N, C], best score first
    precision = found.cumsum(0) / np.arange(1, len(found) + 1)[:, None]
    n = found.sum(0)
    value = (precision * found).sum(0) / np.maximum(n, 1)
    return [ClassFigure(c, predictions.classes[c], float(value[c]), int(n[c])) for c in np.flatnonzero(n).tolist()]


def _with_training(figure: ClassFigure, trained: Mapping[str, int]) -> ClassFigure:
    count = trained.get(figure.name)
    return ClassFigure(**{**vars(figure), "trained": int(count)}) if number(count) else figure


def _worst_confusions(pairs: np.ndarray) -> list[Confusion]:
    n = np.bincount(pairs[:, 0], pairs[:, 2]) if len(pairs) else pairs
    wrong = pairs[pairs[:, 0] != pairs[:, 1]]
    worst = wrong[np.argsort(-wrong[:, 2], kind="stable")][:15]
    return [Confusion(t, p, count, int(n[t])) for t, p, count in worst.tolist()]


def _image(pairs: np.ndarray, names: list[str]) -> dict:
    """The matrix as a transparent PNG, which suits light and dark pages, and the numbers to show on hovering."""
    block = -(-len(names) // IMAGE_SIDE)
    side = -(-len(names) // block)
    blocks = np.zeros((side, side), np.int64)
    np.add.at(blocks, (pairs[:, 0] // block, pairs[:, 1] // block), pairs[:, 2])
    share = np.sqrt(blocks / np.maximum(blocks.sum(1, keepdims=True), 1))
    pixels = np.empty((*blocks.shape, 4), np.uint8)
    pixels[..., :3] = np.where(np.eye(len(blocks), dtype=bool)[..., None], RIGHT_RGB, WRONG_RGB)
    pixels[..., 3] = np.round(255 * share)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    rows, columns = np.nonzero(blocks)
    return {
        "uri": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "data": {"block": block, "side": side, "cells": np.stack([rows, columns, blocks[rows, columns]], 1).tolist()},
        "block": block,
    }
