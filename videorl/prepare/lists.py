"""Lists in PySlowFast's layout, `path label`, from the annotations that data sets are published with.

Each maker gives `Lists`; `write` puts them into a folder with classes.json and report.json.
"""

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from videorl import atomic
from videorl.data.labelled import read_csv
from videorl.data.lines import line_of
from videorl.data.lists import read_list
from videorl.loading.pool import Workers
from videorl.loading.quarantine import Bad
from videorl.prepare.crew import Progress, Pulse, each
from videorl.prepare.manifest import refuse_existing
from videorl.registry import UserError
from videorl.video.errors import VideoError
from videorl.video.folder import find
from videorl.video.reader import open_video

SPLITS = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}


@dataclass
class Lists:
    """Lines of each list, class numbers by name, videos that were annotated and not found, or left out (split ->
    names), and videos that no annotation names, or whose own names no list can hold, with reasons."""

    rows: dict[str, list[str]]
    classes: dict[str, int] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    unlisted: list[str] = field(default_factory=list)
    unnameable: dict[str, str] = field(default_factory=dict)

    def text(self) -> Iterable[str]:
        for split, rows in self.rows.items():
            missing, dropped = len(self.missing.get(split, ())), len(self.dropped.get(split, ()))
            yield f"{split}: {len(rows)} rows, {missing} videos missing, {dropped} left out"
        yield f"{len(self.classes)} classes, {len(self.unlisted)} videos in no list (names: report.json)"
        if self.unnameable:
            path, reason = next(iter(self.unnameable.items()))
            yield f"{len(self.unnameable)} videos that no list can name; first: {path}: {reason}"


def write(lists: Lists, out: Path) -> None:
    """Writes `<split>.csv`, classes.json where there are classes, and report.json. Raises `UserError`: one exists."""
    report = {"missing": lists.missing, "left_out": lists.dropped, "unlisted": lists.unlisted}
    report["unnameable"] = lists.unnameable
    files = {f"{split}.csv": "".join(row + "\n" for row in rows) for split, rows in lists.rows.items()}
    if lists.classes:
        files["classes.json"] = json.dumps(lists.classes, indent=1) + "\n"
    files["report.json"] = json.dumps(report, indent=1) + "\n"
    for name in files:
        refuse_existing(out / name)
    if empty := [split for split, rows in lists.rows.items() if not rows]:
        raise UserError(f"{empty[0]}.csv would be empty: none of its videos was found; nothing is written")
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        atomic.write(out / name, text)


class Folder:
    """The videos of a folder by name without ending; remembers which were asked for."""

    def __init__(self, folder: Path):
        self.paths: dict[str, list[str]] = defaultdict(list)
        self.unnameable: dict[str, str] = {}
        self.asked: set[str] = set()
        for file in find(folder)[0]:
            try:
                line_of(file.path, " ", "0")
                self.paths[Path(file.path).stem].append(file.path)
            except ValueError as error:
                self.unnameable[file.path] = str(error)

    def get(self, names: Sequence[str], split: str = "") -> str | None:
        """The video of the first of these names; of several, the one in a folder of the split's name."""
        for name in names:
            if found := self.paths.get(name):
                self.asked.update(found)
                return min(found, key=lambda path: (split not in Path(path).parts, path))
        return None

    def tell(self, lists: "Lists") -> None:
        """Notes the videos that stand in no list."""
        lists.unlisted = sorted(path for found in self.paths.values() for path in found if path not in self.asked)
        lists.unnameable = self.unnameable


def read_class_file(file: Path) -> dict[str, int]:
    """Class numbers by name, from json {"name": number} or a text with a name in each line, from number 0."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".json":
            classes = {name: int(number) for name, number in json.loads(text).items()}
        else:
            classes = {name.strip(): number for number, name in enumerate(filter(str.strip, text.split("\n")))}
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError):
        raise UserError(f'{file}: expected json {{"class name": number, …}} or a class name in each line') from None
    if sorted(classes.values()) != list(range(len(classes))):
        raise UserError(f"{file}: expected the numbers 0 … {len(classes) - 1} once each")
    return classes


def numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(sorted(set(names)))}


def with_test(lists: Lists) -> Lists:
    """Results are reported on val where the test set has no public labels."""
    if "test" not in lists.rows and "val" in lists.rows:
        for part in (lists.rows, lists.missing, lists.dropped):
            part["test"] = part.get("val", [])
    return lists


# ------------------------------------------------------------------------------------------------------------ Kinetics


def kinetics(annotations: Sequence[Path], videos: Path, classes: Path | None = None) -> Lists:
    """Kinetics-400/600/700 from the official csv files.

    Videos are found in any sub-folder as `<id>_<start, 6 digits>_<end, 6 digits>` or `<id>`. Class numbers are the
    alphabetical order of the names, or those of the file `classes`.
    """
    names, columns = Folder(videos), ("label", "youtube_id", "time_start", "time_end", "split")
    rows = [(f, n, *row) for f in annotations for n, row in enumerate(read_list(str(f), columns, "--annotations"), 2)]
    numbers = read_class_file(classes) if classes else numbered(label for _, _, label, *_ in rows if label)
    lists = Lists({}, numbers, missing={"train": [], "val": [], "test": []})
    for file, line, label, youtube, start, end, split in rows:
        with _at_line(file, line):
            split, number = _known(SPLITS, split, "split"), _known(numbers, label, "class")
            full = f"{youtube}_{_seconds(start):06.0f}_{_seconds(end):06.0f}"
        path = names.get((full, youtube), split)
        lists.rows.setdefault(split, [])
        if path is None:
            lists.missing[split].append(full)
        else:
            lists.rows[split].append(f"{path} {number}")
    names.tell(lists)
    return with_test(lists)


@contextmanager
def _at_line(file: Path, line: int):
    """Turns a `ValueError` into a `UserError` that names file and row."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{file}: row {line}: {error}") from None


def _known(table: Mapping, name: str, what: str):
    if name not in table:
        shown = ", ".join(list(table)[:4])
        raise ValueError(f"expected a {what} such as {shown}, found {name[:60]!r}")
    return table[name]


def _seconds(text: str) -> float:
    """Seconds of `12`, `12.5`, `1:23.4` or `0:01:23.456`."""
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d+)?", text.strip()):
        raise ValueError(f"expected a time, seconds or h:mm:ss.sss, found {text[:40]!r}")
    value = 0.0
    for part in text.split(":"):
        value = 60 * value + float(part)
    return value


# ------------------------------------------------------------------------------------------------ Something-Something


def ssv2(annotations: Path, videos: Path) -> Lists:
    """Something-Something v2 from its json files in the folder `annotations`; videos are called `<id>`."""
    names = Folder(videos)
    labels = _read_json(annotations / "something-something-v2-labels.json", dict)
    lists = Lists({}, {name: int(number) for name, number in labels.items()})
    for split, source in {"train": "train", "val": "validation"}.items():
        file = annotations / f"something-something-v2-{source}.json"
        lists.rows[split], lists.missing[split] = [], []
        for place, row in enumerate(_read_json(file, list), 1):
            with _at_line(file, place):
                if not isinstance(row, dict) or not {"id", "template"} <= set(row):
                    raise ValueError("expected an object with id and template")
                number = _known(lists.classes, row["template"].replace("[", "").replace("]", ""), "class")
            path = names.get((str(row["id"]),))
            if path is None:
                lists.missing[split].append(str(row["id"]))
            else:
                lists.rows[split].append(f"{path} {number}")
    names.tell(lists)
    return with_test(lists)


def _read_json(file: Path, *kinds: type):
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file}: no json ({error})") from None
    if not isinstance(content, kinds):
        raise UserError(
            f"{file}: expected a json {' or '.join(k.__name__ for k in kinds)}, found {type(content).__name__}"
        )
    return content


# -------------------------------------------------------------------------------------------------------- Kinetics-710


def k710(sets: Sequence[tuple[Path, str]], merge: Path | None, classes: Path | None = None) -> Lists:
    """Kinetics-400, 600 and 700 in one, as VideoMAE V2 and UniFormerV2 join them.

    `sets`: folders with train.csv, val.csv, classes.json as `kinetics` makes them, and what to put before their paths.
    Classes of one name are one, and so are those that the file `merge` groups. A YouTube video is taken from the
    first set that has it, and out of train if any val list has it.
    """
    same, numbers = _groups(merge), read_class_file(classes) if classes else None
    own = [_read_json(folder / "classes.json", dict) for folder, _ in sets]
    if numbers is None:
        numbers = numbered(same.get(name, [name])[0] for names in own for name in names)
    lists, taken = Lists({"train": [], "val": []}, numbers), {"train": {}, "val": {}}
    for split in ("val", "train"):
        lists.dropped[split] = []
        for k, ((folder, prefix), names) in enumerate(zip(sets, own)):
            file = folder / f"{split}.csv"
            to_joint = [_joint(name, same, numbers, folder) for name in sorted(names, key=names.get)]
            for path, (label,) in read_csv(file, str(folder), " ", len(to_joint), False, True):
                youtube, path = _youtube(path, file), os.path.join(prefix, path)
                in_val = split == "train" and youtube in taken["val"]
                if in_val or taken[split].setdefault(youtube, k) != k:
                    lists.dropped[split].append(path)
                else:
                    lists.rows[split].append(f"{path} {to_joint[label]}")
    return with_test(lists)


def _groups(file: Path | None) -> dict[str, list[str]]:
    """Class name -> all names of its class, the joint one first.

    From json: [[name, name], …], {anything: [name, name], …} or {name: joint name, …}.
    """
    content = _read_json(file, list, dict) if file else []
    if isinstance(content, dict) and all(isinstance(value, str) for value in content.values()):
        content = [[joint, name] for name, joint in content.items()]
    groups = list(content.values()) if isinstance(content, dict) else content
    if not all(isinstance(group, list) and all(isinstance(name, str) for name in group) for group in groups):
        raise UserError(f'{file}: expected json [["name", "same class"], …] or {{"name": "joint name", …}}')
    return {name: group for group in groups for name in group}


def _joint(name: str, same: Mapping[str, list[str]], numbers: Mapping[str, int], folder: Path) -> int:
    for other in [name, *same.get(name, ())]:
        if other in numbers:
            return numbers[other]
    raise UserError(f"{folder / 'classes.json'}: class {name!r} is not among the joint classes (--classes, --merge)")


def _youtube(path: str, file: Path) -> str:
    """The id in `<id>`, `<id>_<start>_<end>` and chunks of these."""
    found = re.fullmatch(r"(.{11})(_\d{6}_\d{6})?(_\d{5})?", Path(path).stem)
    if not found:
        raise UserError(f"{file}: {path[:80]!r}: expected a name `<YouTube id>` or `<YouTube id>_000010_000020`")
    return found[1]


# ------------------------------------------------------------------------------------------------------------ InternVid


def internvid(annotations: Sequence[Path], videos: Path, workers: Workers, progress: Progress) -> Lists:
    """Clips of whole videos `<id>`, from csv files with YoutubeID, Start_timestamp and End_timestamp.

    Lines `path 0 first end`: frames first … end - 1 of the video; 0 stands for a label. Videos are opened for the
    times of their frames. Left out: clips that end before they begin, or lie behind the end.
    """
    names, columns = Folder(videos), ("YoutubeID", "Start_timestamp", "End_timestamp")
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    lists = Lists({"train": []}, missing={"train": []}, dropped={"train": []})
    for file in annotations:
        for line, (youtube, start, end) in enumerate(read_list(str(file), columns, "--annotations"), 2):
            with _at_line(file, line):
                span = _seconds(start), _seconds(end)
            path = names.get((youtube,))
            lists.missing["train"] += [youtube] if path is None else []
            if path is not None:
                spans[path].append(span)
    paths = [str(videos / path) for path in spans]
    found = dict(each(paths, partial(_frame_times, dict(zip(paths, spans.values()))), workers, progress))
    for k, path in enumerate(spans):
        if isinstance(found[k], Bad):
            lists.dropped["train"].append(f"{path}: {found[k].stage}: {found[k].error}")
            continue
        for (start, end), (first, stop) in zip(spans[path], found[k]):
            if first < stop:
                lists.rows["train"].append(f"{path} 0 {first} {stop}")
            else:
                lists.dropped["train"].append(f"{path}: no frames from {start:g} to {end:g} s")
    names.tell(lists)
    return lists


def _frame_times(spans: Mapping[str, Sequence[tuple[float, float]]], path: str, pulse: Pulse) -> list[tuple[int, int]]:
    """Of each span, the number of its first frame and of the first one behind it."""
    with open_video(path, "pyav") as video:
        times = video.times
    if not math.isfinite(times[-1]):
        raise VideoError(path, "index", "its frames have no times")
    return [tuple(int(n) for n in times.searchsorted([s - 1e-6 for s in span])) for span in spans[path]]
