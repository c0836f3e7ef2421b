"""Video classification data sets in the csv layout of PySlowFast: lines `path label`, one csv per split.

Formats: https://github.com/facebookresearch/SlowFast/blob/main/slowfast/datasets/DATASET.md
"""

import json
import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from videorl.data.dataset import ClipDataset, Records, check_views
from videorl.data.lines import parse_lines, read_lines, separator_of, split_label, unquoted
from videorl.data.listing import read
from videorl.data.paths import KEYS, Paths, Settings, check_root, has_ending, shortened
from videorl.data.plain import Form
from videorl.registry import DATASETS, UserError
from videorl.spec import Spec

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
        root = os.path.abspath(root or annotations)
        file, paths = Path(annotations) / f"{split}.csv", Paths(root, spec.reading.allow_outside_root)
        reader = Csv(paths, separator_of(separator), num_classes, multi_label or self.lists, several=multi_label)
        listing = read(file, reader)
        classes = read_classes(class_names, file.with_name("classes.json"), num_classes)
        every = val_skip if split == "val" else 1
        records = Records.of(listing, root, classes, every, num_classes if multi_label else 0)
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


@dataclass
class Csv:
    """Reads lines `path label` (see `listing.Reader`). `lists`: a line has a list of labels; `several`: all count."""

    paths: Paths
    separator: str
    num_classes: int
    lists: bool
    several: bool

    extra = MappingProxyType({})
    facts = MappingProxyType({})

    @property
    def settings(self) -> dict[str, object]:
        own = {"separator": self.separator, "classes": self.num_classes, "lists": self.lists, "several": self.several}
        return {"kind": "csv", **own, **self.paths.settings}

    @property
    def example(self) -> str:
        return f"`path{self.separator}label`"

    @property
    def form(self) -> Form:
        usual = self.separator in (" ", ",", ";", "\t")
        return Form(self.separator.encode() if usual else b"", 1, outside=self.paths.allow_outside)

    def begin(self, file: Path, number: int, line: str) -> None:
        """All lists are alike."""

    def judged(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        return numbers[0] < self.num_classes, numbers[0], {}

    def parse(self, line: str) -> tuple[str, list[int]]:
        return parse_line(line, self.separator, self.num_classes, self.lists, self.paths)

    def exact(self) -> "Csv":
        return self


def read_csv(
    file: Path, root: str, separator: str, num_classes: int, multi_label: bool, allow_outside: bool
) -> list[tuple[str, list[int]]]:
    """(path, labels) of each line. Raises `UserError` naming file, line, and what is wrong with it."""
    lines, separator, paths = read_lines(file), separator_of(separator), Paths(root, allow_outside)
    check_root(root, file)
    if not lines:
        raise UserError(f"{file} holds no samples; expected lines `path{separator}label`")
    parse = partial(parse_line, separator=separator, num_classes=num_classes, multi_label=multi_label, paths=paths)
    return parse_lines(file, lines, parse, len(lines))


def parse_line(
    line: str, separator: str, num_classes: int, multi_label: bool, paths: Paths, settings: Settings = KEYS
) -> tuple[str, list[int]]:
    """Path and labels of one line. Raises `ValueError` that says what is wrong with it."""
    cells = split_label(line, separator)
    if cells is None:
        expected = f"expected `path{separator}label`, found {shortened(line)} (see {settings.separator}"
        found = re.search(r'([,;|\t])\s*"?[0-9]+"?\s*$', line)
        raise ValueError(f"{expected}: it seems to be {found[1]!r})" if found else f"{expected})")
    path, label = cells
    parts = label.split(",") if multi_label else [label]
    if not all(re.fullmatch(r"[0-9]{1,9}", p) for p in parts) or (multi_label and path.endswith(",")):
        kind = "class numbers `3,14` (no spaces)" if multi_label else "a class number"
        raise ValueError(f"expected {kind} after {separator!r}, found {shortened(label)}")
    numbers = [int(p) for p in parts]
    if max(numbers) >= num_classes:
        raise ValueError(f"label {max(numbers)} is not in 0 … {num_classes - 1}; check MODEL.NUM_CLASSES")
    return _video(path, paths), numbers


def _video(text: str, paths: Paths) -> str:
    """The path before a label. Of `path frames label`, which other toolkits read, it is the first part of `text`."""
    path = paths(text)
    longer = re.fullmatch(r"(.*?\S)((?:[\s,;]+[0-9]+)+)", text)
    if not longer or paths.is_there(path):
        return path
    start, numbers = unquoted(longer[1]), len(re.findall("[0-9]+", longer[2]))
    if has_ending(start) and numbers == 1:
        return paths(start)
    if has_ending(start) or paths.is_folder(start):
        what = "numbers before the label" if has_ending(start) else "a folder before the label"
        raise ValueError(f"{shortened(text)}: {what}: such lists are read by TRAIN.DATASET and TEST.DATASET video_list")
    return path


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
