"""What evaluations leave in predictions/*.npz, checked before it is believed."""

import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

LARGEST = 4 * 2**30  # bytes of all arrays


@dataclass(frozen=True)
class Predictions:
    """An evaluation's predictions; labels are class numbers [N], or multi-hot [N, C]. Unlabelled rows are dropped."""

    name: str
    labels: np.ndarray
    scores: np.ndarray  # [N, C]
    paths: np.ndarray  # [N] str
    classes: list[str]
    dropped: int

    @property
    def several(self) -> bool:
        """Whether a clip may have several labels."""
        return self.labels.ndim == 2

    @cached_property
    def predicted(self) -> np.ndarray:
        """[N] number of the class with the best score; a NaN is never the best."""
        return np.argmax(np.where(np.isnan(self.scores), -np.inf, self.scores), axis=1)

    @cached_property
    def right(self) -> np.ndarray:
        """[N] bool: the best class is the label, or one of the labels."""
        if self.several:
            return self.labels[np.arange(len(self.labels)), self.predicted] > 0
        return self.predicted == self.labels

    @cached_property
    def fractions(self) -> bool:
        """Whether the scores are probabilities or the like."""
        return bool(np.all((self.scores >= 0) & (self.scores <= 1)))

    def true(self, row: int) -> list[int]:
        """The numbers of a clip's labels."""
        return (np.flatnonzero(self.labels[row]) if self.several else self.labels[row : row + 1]).tolist()

    def order(self) -> np.ndarray:
        """[N] rows: the wrong ones first, the surest ahead, then the right ones as they come."""
        best = self.scores[np.arange(len(self.scores)), self.predicted]
        return np.lexsort((np.where(self.right, 0, -best), self.right))


@dataclass(frozen=True)
class Reconstructions:
    """What a masked model made of the first clips of an evaluation, K of them, with the errors of each."""

    name: str
    pictures: np.ndarray  # [K, 4, T, H, W, 3] uint8
    paths: list[str]
    errors: list[tuple[float, float]]  # mean squared error, and that of predicting mean colours


@dataclass(frozen=True)
class Captions:
    """What a narrator wrote of N clips, and what people said."""

    name: str
    texts: np.ndarray  # [N] str
    references: list[list[str]]
    scores: np.ndarray  # [N], CIDEr-D
    paths: np.ndarray  # [N] str
    moments: np.ndarray  # [N, 2] seconds
    seconds: int  # length of the chunks of a video, or 0


def read_predictions(path: Path) -> Predictions | Reconstructions | Captions:
    """What stands in a file; `ValueError` says what is wrong with one, but a damaged archive may raise anything."""
    _check_archive(path)
    with np.load(path, allow_pickle=False) as arrays:
        if "pictures" in arrays:
            return _reconstructions(path.stem, arrays)
        if "judged" in arrays:
            return _captions(path.stem, arrays)
        if "scores" not in arrays:
            raise ValueError("it has no scores of classes, so there is no more to show of it than its metrics")
        labels, scores, paths, classes = (arrays[name] for name in ("labels", "scores", "paths", "classes"))
    _check_kinds(labels, scores, paths, classes)
    # Without names (DATA.CLASS_NAMES) classes are their numbers.
    names = [str(name) for name in classes] or [str(number) for number in range(scores.shape[1])]
    known = (labels >= 0) & (labels < scores.shape[1]) if labels.ndim == 1 else np.ones(len(labels), bool)
    dropped = int((~known).sum())
    if dropped == len(labels):
        raise ValueError(f"none of the {dropped} labels is a class number 0..{scores.shape[1] - 1}")
    if len(names) != scores.shape[1]:
        raise ValueError(f"{len(names)} classes beside scores {scores.shape}")
    own = labels[known] if labels.ndim == 2 else labels[known].astype(np.int64)
    return Predictions(path.stem, own, scores[known].astype(np.float32), paths[known], names, dropped)


def _check_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no whole npz archive")
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > LARGEST:
        raise ValueError(f"it unpacks to {size / 2**30:.1f} GiB, more than {LARGEST / 2**30:.0f}")


def _check_kinds(labels: np.ndarray, scores: np.ndarray, paths: np.ndarray, classes: np.ndarray) -> None:
    """Raises `ValueError` unless the arrays fit each other; numbers are real ones, texts are texts."""
    rows = len(scores) if scores.ndim == 2 and scores.size else 0
    of_labels = (rows,) if labels.ndim == 1 and labels.dtype.kind in "iu" else scores.shape
    fits = labels.shape == of_labels and paths.shape == (rows,) and classes.ndim == 1
    if not rows or not fits or scores.dtype.kind not in "fiu" or labels.dtype.kind not in "biuf":
        shown = {"labels": labels, "scores": scores, "paths": paths, "classes": classes}
        raise ValueError(", ".join(f"{name} {array.dtype} {array.shape}" for name, array in shown.items()))


def _captions(name: str, arrays) -> Captions:
    texts, moments, seconds = arrays["judged"], arrays["moments"].astype(float), int(arrays["chunk_seconds"])
    references = [[str(text) for text in json.loads(str(row))] for row in arrays["references"]]
    scores, paths = arrays["cider"].astype(float), arrays["paths"]
    if not len(texts) == len(references) == len(scores) == len(paths) or moments.shape != (len(texts), 2):
        raise ValueError(f"{len(texts)} texts, {len(references)} references, {len(scores)} scores, {len(paths)} paths")
    return Captions(name, texts, references, scores, paths, moments, seconds)


def _reconstructions(name: str, arrays) -> Reconstructions:
    pictures, rows = arrays["pictures"], arrays["pictured"]
    shape = pictures.shape
    if pictures.ndim != 6 or pictures.dtype != np.uint8 or not pictures.size or shape[::5] != (len(rows), 3):
        raise ValueError(f"pictures {pictures.dtype} {shape} of {len(rows)} clips")
    errors = np.stack([arrays["mse"][rows], arrays["baseline_mse"][rows]], 1).tolist()
    return Reconstructions(name, pictures, [str(p) for p in arrays["paths"][rows]], errors)
