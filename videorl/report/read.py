"""Reads a run's folder. Every file may be absent or cut off: what is missing is said in words, never guessed."""

import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from videorl.metrics import is_fraction


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

    @property
    def predicted(self) -> np.ndarray:
        """[N] number of the class with the best score; a NaN is never the best."""
        return np.argmax(np.where(np.isnan(self.scores), -np.inf, self.scores), axis=1)

    @property
    def right(self) -> np.ndarray:
        """[N] bool: the best class is the label, or one of the labels."""
        if self.several:
            return self.labels[np.arange(len(self.labels)), self.predicted] > 0
        return self.predicted == self.labels

    def true_names(self, row: int) -> str:
        """The names of a clip's labels."""
        numbers = np.flatnonzero(self.labels[row]) if self.several else [self.labels[row]]
        return ", ".join(self.classes[c] for c in numbers) or "none"


@dataclass(frozen=True)
class Reconstructions:
    """What a masked model made of the first clips of an evaluation, K of them, with the errors of each."""

    name: str
    pictures: np.ndarray  # [K, 4, T, H, W, 3] uint8
    paths: list[str]
    errors: list[tuple[float, float]]  # mean squared error, and that of predicting mean colours


@dataclass(frozen=True)
class RunFolder:
    """What stands in a run's folder; `absent` maps a file's name to one line that says why it is not used."""

    name: str
    run: dict
    train: list[dict]
    evals: dict[str, list[dict]]
    results: dict
    predictions: list[Predictions]
    reconstructions: list[Reconstructions]
    quarantine: list[dict]
    absent: dict[str, str] = field(default_factory=dict)


def read(folder: Path) -> RunFolder:
    """Reads all that the report shows from the folder of a run."""
    absent: dict[str, str] = {}

    def load(name: str, parse: Callable, otherwise):
        if not (folder / name).exists():
            absent[name] = f"{name} is not in the folder of this run."
            return otherwise
        try:
            return parse(folder / name)
        except (ValueError, KeyError, IndexError, EOFError, OSError, zipfile.BadZipFile) as error:
            absent[name] = f"{name} cannot be read: {error or type(error).__name__}"
            return otherwise

    lines, broken = load("metrics.jsonl", json_lines, ([], 0))
    if broken:
        absent["metrics.jsonl"] = f"{broken} unreadable line(s) of metrics.jsonl are left out."
    quarantine, broken = load("quarantine.jsonl", json_lines, ([], 0))
    if broken:
        absent["quarantine.jsonl"] = f"{broken} unreadable line(s) of quarantine.jsonl are left out."
    files = sorted(folder.glob("predictions/*.npz"))
    predictions = [load(str(file.relative_to(folder)), _predictions, None) for file in files]
    if not files:
        absent["predictions"] = "No predictions/*.npz is in the folder of this run."
    train, evals = _by_kind(lines)
    return RunFolder(
        name=folder.resolve().name,
        run=load("run.json", _json_object, {}),
        train=train,
        evals=evals,
        results=load("results.json", _json_object, {}),
        predictions=[p for p in predictions if isinstance(p, Predictions)],
        reconstructions=[p for p in predictions if isinstance(p, Reconstructions)],
        quarantine=quarantine,
        absent=absent,
    )


def number(value) -> bool:
    """Whether a value from JSON is a number (NaN and infinity are)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def text_of(value) -> str:
    """A number for people: 4 significant digits, `NaN` and `inf` as such; anything else as text."""
    if not number(value):
        return "–" if value is None else str(value)
    if isinstance(value, int):
        return str(value)
    return "NaN" if math.isnan(value) else f"{value:.4g}"


def percent(value) -> str:
    """A fraction as `93.0 %`; a number outside -1..1, which is no fraction, as it is."""
    return f"{100 * value:.1f} %" if number(value) and -1 <= value <= 1 else text_of(value)


def metric(value, name: str) -> str:
    """A metric as per cent where it is a fraction."""
    return percent(value) if is_fraction(name, value) else text_of(value)


def json_lines(path: Path) -> tuple[list[dict], int]:
    """The JSON objects of a file, one per line, and how many lines are none (a killed run cuts its last one)."""
    objects, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            objects.append(value)
        elif line.strip():
            broken += 1
    return objects, broken


def _json_object(path: Path) -> dict:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def _by_kind(lines: list[dict]) -> tuple[list[dict], dict[str, list[dict]]]:
    """Training lines, and evaluation lines by name, by step. A resumed run repeats steps: the last line counts."""
    found: dict[tuple, dict] = {}
    for line in lines:
        if number(line.get("step")) and math.isfinite(line["step"]) and line.get("kind") in ("train", "eval"):
            found[line["kind"], str(line.get("name", "")), line["step"]] = line
    train, evals = [], {}
    for (kind, name, _), line in sorted(found.items(), key=lambda item: item[0][2]):
        (train if kind == "train" else evals.setdefault(name, [])).append(line)
    return train, dict(sorted(evals.items()))


def _predictions(path: Path) -> Predictions | Reconstructions:
    with np.load(path, allow_pickle=False) as arrays:
        if "pictures" in arrays:
            return _reconstructions(path.stem, arrays)
        if "scores" not in arrays:
            raise ValueError("it has no scores of classes, so there is no more to show of it than its metrics")
        labels, scores, paths = arrays["labels"], arrays["scores"].astype(np.float32), arrays["paths"]
        classes = [str(name) for name in arrays["classes"]]
    if scores.shape != (len(labels), len(classes)) or len(paths) != len(labels) or not len(labels):
        raise ValueError(f"labels {labels.shape}, scores {scores.shape}, paths {paths.shape}, {len(classes)} classes")
    if labels.ndim == 2 and labels.shape != scores.shape:
        raise ValueError(f"multi-hot labels {labels.shape} beside scores {scores.shape}")
    known = (labels >= 0) & (labels < len(classes)) if labels.ndim == 1 else np.ones(len(labels), bool)
    dropped = int((~known).sum())
    if dropped == len(labels):
        raise ValueError(f"none of the {dropped} labels is a class number 0..{len(classes) - 1}")
    return Predictions(path.stem, labels[known], scores[known], paths[known], classes, dropped)


def _reconstructions(name: str, arrays) -> Reconstructions:
    pictures, rows = arrays["pictures"], arrays["pictured"]
    if pictures.ndim != 6 or pictures.dtype != np.uint8 or pictures.shape[::5] != (len(rows), 3):
        raise ValueError(f"pictures {pictures.dtype} {pictures.shape} of {len(rows)} clips")
    errors = np.stack([arrays["mse"][rows], arrays["baseline_mse"][rows]], 1).tolist()
    return Reconstructions(name, pictures, [str(p) for p in arrays["paths"][rows]], errors)
