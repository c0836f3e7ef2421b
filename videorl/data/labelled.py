"""Video classification data sets in the csv layout of PySlowFast: lines `path label`, one csv per split.

Formats: https://github.com/facebookresearch/SlowFast/blob/main/slowfast/datasets/DATASET.md
"""

import json
import os
import re
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from videorl.data.dataset import ClipDataset, Records, check_views, class_numbers
from videorl.registry import DATASETS, UserError
from videorl.spec import Spec

Sample = TypeVar("Sample", bound=Hashable)

# Parameters that data sets of this family take from the global node DATA.
BOUND = {
    "annotations": "DATA.PATH_TO_DATA_DIR",
    "root": "DATA.PATH_PREFIX",
    "separator": "DATA.PATH_LABEL_SEPARATOR",
    "class_names": "DATA.CLASS_NAMES",
    "multi_label": "DATA.MULTI_LABEL",
    "offset": "DATA.USE_OFFSET_SAMPLING",
    "val_skip": "DATA.VAL_SKIP",
    "num_classes": "MODEL.NUM_CLASSES",
}


class Labelled(ClipDataset):
    """Videos with class labels, read from `<annotations>/<split>.csv`.

    Raises `UserError` that counts the bad lines and lists the first with their numbers: missing label, label outside
    0 … C-1, path outside `root`, a file that is named twice with two labels.
    """

    uniform = False
    lists = False  # a line has a list of labels, of which the first counts where DATA.MULTI_LABEL is off

    def __init__(
        self,
        spec: Spec,
        split: str,
        *,
        num_classes: int,
        annotations: str,
        root: str,
        separator: str,
        class_names: str,
        multi_label: bool,
        offset: bool,
        val_skip: int,
    ):
        check_views(spec.views.crops)
        if val_skip < 1:
            raise UserError(f"DATA.VAL_SKIP {val_skip}: expected 1 (every line of val.csv) or more")
        root = os.path.abspath(root or annotations)
        file = Path(annotations) / f"{split}.csv"
        rows = read_csv(file, root, separator, num_classes, multi_label or self.lists, spec.reading.allow_outside_root)
        rows = rows[::val_skip] if split == "val" else rows
        labels = [numbers for _, numbers in rows]
        records = Records(
            root=root,
            paths=np.array([path.encode() for path, _ in rows]),
            labels=class_numbers(labels, num_classes) if multi_label else np.array([n[0] for n in labels], np.int64),
            classes=read_classes(class_names, file.with_name("classes.json"), num_classes),
        )
        super().__init__(spec, split, records, uniform=self.uniform, offset=offset)


@DATASETS.register("kinetics", **BOUND)
class Kinetics(Labelled):
    """Kinetics-400/600/700 and any videos of one's own: dense clips of NUM_FRAMES frames, SAMPLING_RATE apart."""


@DATASETS.register("mit", **BOUND)
class MomentsInTime(Labelled):
    """Moments in Time: 3-second videos, sampled like Kinetics."""


@DATASETS.register("mmit", **BOUND)
class MultiMomentsInTime(Labelled):
    """Multi-Moments in Time: as Moments in Time, with several labels a video (DATA.MULTI_LABEL)."""


@DATASETS.register("activitynet", **BOUND)
class ActivityNet(Labelled):
    """ActivityNet as MultiTrain lists it: lines `path l1,l2`, the first label is the class."""

    lists = True


@DATASETS.register("ssv2", **BOUND)
class SomethingSomething(Labelled):
    """Something-Something V2: one frame from each of NUM_FRAMES equal segments (TSN); whole video, no SAMPLING_RATE."""

    uniform = True


# ------------------------------------------------------------------------------------------------------------ reading


def read_csv(
    file: Path, root: str, separator: str, num_classes: int, multi_label: bool, allow_outside: bool
) -> list[tuple[str, list[int]]]:
    """(path, labels) of each line. Raises `UserError` naming file, line, and what is wrong with it."""
    lines = read_lines(file)
    check_root(root, file)
    if not lines:
        raise UserError(f"{file} holds no samples; expected lines `path{separator}label`")
    return parse_lines(file, lines, lambda line: parse_line(line, separator, num_classes, multi_label, allow_outside))


def parse_lines(
    file: Path, lines: Sequence[tuple[int, str]], parse: Callable[[str], tuple[Sample, list[int]]]
) -> list[tuple[Sample, list[int]]]:
    """What `parse` makes of each line: a sample and its labels.

    Raises `UserError` that counts the lines for which `parse` raises `ValueError`, and those that give a sample other
    labels than a line before. Paths that leave the video folder have one cause: they are told once.
    """
    rows, wrong, outside = [], [], []
    seen: dict[Sample, tuple[int, list[int]]] = {}
    for number, line in lines:
        try:
            sample, labels = parse(line)
            first, before = seen.setdefault(sample, (number, labels))
            if before != labels:
                name = str(sample)[:60]
                raise ValueError(f"{name!r} has label {_joined(labels)}, but {_joined(before)} on line {first}")
            rows.append((sample, labels))
        except OutsideError as error:
            outside.append(f"{number}: {error}")
        except ValueError as error:
            wrong.append(f"{number}: {error}")
    if len(outside) > 1:
        outside = [f"{outside[0]} ({len(outside)} of {len(lines)} lines leave it)"]
    if wrong := outside + wrong:
        more = f" (and {len(wrong) - 5} more lines)" if len(wrong) > 5 else ""
        raise UserError(f"{file}:{'; line '.join(wrong[:5])}{more}")
    return rows


def _joined(labels: list[int]) -> str:
    return ",".join(map(str, labels))


def check_root(root: str, file: Path) -> None:
    """Raises `UserError` unless the folder that the paths in `file` start from exists."""
    if not os.path.isdir(root):
        raise UserError(f"video folder {root} does not exist; set DATA.PATH_PREFIX to where the paths in {file} start")


def read_lines(file: Path) -> list[tuple[int, str]]:
    """Number (from 1) and text of each line that is not blank. Raises `UserError`: no such file, or no UTF-8 text."""
    if not file.is_file():
        raise UserError(_missing_csv(file))
    try:
        # Not splitlines, which also ends lines at characters that file names may hold.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _missing_csv(file: Path) -> str:
    if not file.parent.is_dir():
        return f"annotation folder {file.parent} does not exist; set DATA.PATH_TO_DATA_DIR to the folder of {file.name}"
    there = ", ".join(sorted(p.name for p in file.parent.glob("*.csv"))) or "no csv file"
    return (
        f"{file.absolute()} does not exist; the folder holds {there}; set DATA.PATH_TO_DATA_DIR to the folder of"
        f" {file.name}, with lines `path label`"
    )


def parse_line(
    line: str, separator: str, num_classes: int, multi_label: bool, allow_outside: bool
) -> tuple[str, list[int]]:
    """Path and labels of one line. Raises `ValueError` that says what is wrong with it."""
    path, found, label = line.rstrip().rpartition(separator)
    if not found or not path.strip():
        raise ValueError(f"expected `path{separator}label`, found {line[:60]!r} (see DATA.PATH_LABEL_SEPARATOR)")
    path = path.strip()
    check_path(path, allow_outside)
    parts = label.split(",") if multi_label else [label]
    if not all(re.fullmatch(r"[0-9]{1,9}", p) for p in parts) or (multi_label and path.endswith(",")):
        kind = "class numbers `3,14` (no spaces)" if multi_label else "a class number"
        raise ValueError(f"expected {kind} after {separator!r}, found {label[:40]!r}")
    numbers = [int(p) for p in parts]
    if max(numbers) >= num_classes:
        raise ValueError(f"label {max(numbers)} is not in 0 … {num_classes - 1}; check MODEL.NUM_CLASSES")
    return path, numbers


def check_path(path: str, allow_outside: bool) -> None:
    """Raises `ValueError` for a path that no file can have or, unless that is allowed, one that leaves its folder."""
    if "\0" in path:
        raise ValueError(f"the path {path[:60]!r} holds a NUL character")
    if not allow_outside:
        check_inside(path)


class OutsideError(ValueError):
    """A path leaves the folder of its videos."""


def check_inside(path: str) -> None:
    climbs = os.path.normpath(path).split(os.sep)[0] == ".."
    if os.path.isabs(path) or climbs or re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]*://", path):
        raise OutsideError(f"{path[:60]!r} leaves the video folder; set DATA.ALLOW_OUTSIDE_ROOT True to allow it")


def read_classes(named: str, usual: Path, num_classes: int) -> tuple[str, ...]:
    """Class names by number from a json {"name": number}: the file `named`, or else `usual` if there is one."""
    file = Path(named) if named else usual
    if named and not file.is_file():
        raise UserError(f"DATA.CLASS_NAMES {named} does not exist; name a json file, or leave it empty")
    if not file.is_file():
        return ()
    try:
        numbers = {name: int(number) for name, number in json.loads(file.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f'{file}: expected json {{"class name": number, …}}') from None
    if sorted(numbers.values()) != list(range(num_classes)):
        raise UserError(
            f"{file}: expected each number 0 … {num_classes - 1} once, found {len(numbers)} names;"
            " check MODEL.NUM_CLASSES"
        )
    return tuple(sorted(numbers, key=numbers.get))
