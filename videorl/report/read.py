"""Reads a run's folder. Every file may be absent or damaged: what is not used is said in words, never guessed."""

import datetime
import json
import math
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from videorl.metrics import is_fraction
from videorl.report.predictions import Captions, Predictions, Reconstructions, read_predictions

LARGEST = 2**30  # bytes of a JSON file
# What lines of metrics.jsonl and results hold beside metrics.
NO_METRICS = {"kind", "name", "step", "epoch", "lr", "grad_norm", "dt", "dt_data", "losses", "n", "of", "time"}
JSON_NAMES = {dict: "an object", list: "a list", str: "text", bool: "a bool", int: "a number", float: "a number"}


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
    captions: list[Captions]
    quarantine: list[dict]
    absent: dict[str, str] = field(default_factory=dict)


def read(folder: Path) -> RunFolder:
    """Reads all that the report shows from the folder of a run."""
    absent: dict[str, str] = {}

    def load(name: str, parse: Callable, otherwise, missing: str = "is not in the folder of this run."):
        """What `parse(file)` gives, which is a value and a line about what of it is left out."""
        try:
            check_file(folder / name)
            value, left_out = parse(folder / name)
        except FileNotFoundError:
            value, left_out = otherwise, missing
        # A damaged archive, or JSON nested a thousand deep, can make its reader raise anything.
        except Exception as error:
            value, left_out = otherwise, f"cannot be read: {one_line(error)}"
        if left_out:
            absent[name] = f"{name} {left_out}"
        return value

    lines = load("metrics.jsonl", lambda file: json_lines(file, _metrics_line), [])
    files = sorted(folder.glob("predictions/*.npz"))
    predictions = [load(f"predictions/{file.name}", lambda f: (read_predictions(f), ""), None) for file in files]
    if not files:
        absent["predictions"] = "No predictions/*.npz is in the folder of this run."
    train, evals = _by_kind(lines)
    return RunFolder(
        name=folder.resolve().name,
        run=load("run.json", lambda file: _document(file, RUN), {}),
        train=train,
        evals=evals,
        results=load("results.json", lambda file: _document(file, RESULTS), {}),
        predictions=[p for p in predictions if isinstance(p, Predictions)],
        reconstructions=[p for p in predictions if isinstance(p, Reconstructions)],
        captions=[p for p in predictions if isinstance(p, Captions)],
        quarantine=load("quarantine.jsonl", json_lines, [], missing=""),  # written with the first bad video
        absent=absent,
    )


def check_file(path: Path) -> None:
    """Raises `OSError` or `ValueError` for what cannot be opened as a file, and for a text of unlikely size."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no file")
    if path.suffix != ".npz" and found.st_size > LARGEST:
        raise ValueError(f"it has {found.st_size / 2**30:.1f} GiB, more than {LARGEST / 2**30:.0f}")


def one_line(error: Exception) -> str:
    """What an error says, in one line of bearable length."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split())[:300] or type(error).__name__


# ---- numbers as text -------------------------------------------------------------------------------------------------


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


# ---- JSON that may be anything ---------------------------------------------------------------------------------------


def _of(kind: type, inner: Callable | None = None) -> Callable[[object], object]:
    """A check that a value is of a kind, and that `inner` takes all values of it. It raises `ValueError`."""

    def check(value):
        if not isinstance(value, kind):
            raise ValueError(f"expected {JSON_NAMES[kind]}, found {JSON_NAMES.get(type(value), 'null')}")
        if inner is not None:
            for each in value.values():
                inner(each)
        return value

    return check


def _time(value) -> datetime.datetime:
    # Python 3.10 does not know the Z of UTC.
    found = datetime.datetime.fromisoformat(_of(str)(value).replace("Z", "+00:00")).replace(microsecond=0)
    return found if found.tzinfo else found.replace(tzinfo=datetime.timezone.utc)


# What of these files the report reads, and how it must be; other entries may be anything.
RUN = {
    **{"argv": _of(list), "git": _of(dict), "versions": _of(dict), "batch": _of(dict), "config": _of(str)},
    **{"data": _of(dict, _of(dict)), "started": _time, "finished": _time},
}
RESULTS = {"evals": _of(dict, _of(dict)), "protocol": _of(dict), "checkpoint": _of(str)}


def _document(path: Path, form: Mapping[str, Callable]) -> tuple[dict, str]:
    """The entries of a JSON object that have the form (null is like absent), and a line about those that have not."""
    found, wrong = _of(dict)(_parse(path.read_text(encoding="utf-8"))), []
    document = {name: value for name, value in found.items() if value is not None}
    for name in form.keys() & document.keys():
        try:
            document[name] = form[name](document[name])
        except ValueError as error:
            del document[name]
            wrong.append(f"{name} ({one_line(error)})")
    return document, f"is used without {', '.join(sorted(wrong))}." if wrong else ""


def json_lines(path: Path, check: Callable[[dict], object] = bool) -> tuple[list[dict], str]:
    """The JSON objects of a file, one a line, and how many lines are none (a killed run cuts its last one) or fail
    `check`, which raises `ValueError`."""
    objects, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.strip():
            try:
                value = _of(dict)(_parse(line))
                check(value)
                objects.append(value)
            except (ValueError, RecursionError):
                broken += 1
    return objects, f"has {broken} unreadable line(s), which are left out." if broken else ""


def _parse(text: str):
    """JSON whose integers fit a float, for all that is done with them here."""
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 300 else float(digits))


def _metrics_line(line: dict) -> None:
    _of(dict)(line.get("losses") or {})
    if line.get("kind") in ("train", "eval") and not (number(line.get("step")) and 0 <= line["step"] < 2**53):
        raise ValueError("step")


def _by_kind(lines: list[dict]) -> tuple[list[dict], dict[str, list[dict]]]:
    """Training lines, and evaluation lines by name, by step. A resumed run repeats steps: the last line counts."""
    found: dict[tuple, dict] = {}
    for line in lines:
        if line.get("kind") in ("train", "eval"):
            found[line["kind"], str(line.get("name", "")), line["step"]] = line
    train, evals = [], {}
    for (kind, name, _), line in sorted(found.items(), key=lambda item: item[0][2]):
        (train if kind == "train" else evals.setdefault(name, [])).append(line)
    return train, dict(sorted(evals.items()))
