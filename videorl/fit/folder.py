"""Which videos a folder or a list holds, and of which classes: whatever is left out is named."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from videorl.data.lines import line_of, read_lines, split_label
from videorl.registry import UserError
from videorl.video.folder import EXTENSIONS

LEAST = 3  # videos of a class: one to train on, one to choose by, one to test
PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"} | dict.fromkeys(
    ("test", "testing"), "test"
)  # names of folders, of which two or more are no classes but parts of a data set


@dataclass
class Found:
    """Class of each video, by its path below `root`, and why other files are none (path -> reason).

    `parts`: train, val or test of each video, where the folders say it.
    """

    root: Path
    classes: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, name: str) -> None:
        """Takes a video in, or says why not."""
        try:
            line_of(path, " ", "0")
        except ValueError as error:
            self.skipped[path] = str(error)
        else:
            self.classes[path] = name

    def drop(self, path: str, reason: str) -> None:
        del self.classes[path]
        self.parts.pop(path, None)
        self.skipped[path] = reason


def find(source: Path, root: str = "") -> Found:
    """The videos of a folder of class folders, of a folder of files `class_….mp4`, or of a list `path,class`.

    Class folders may stand in folders train, val and test: see `Found.parts`.

    A list's paths start from `root`, or else from its own folder. Raises `UserError` where there are no two classes.
    """
    if source.is_dir():
        if root:
            raise UserError("--root is for a list; the paths of a folder start from it")
        found = _of_folder(source)
    elif source.is_file():
        found = _of_list(source, Path(root or source.parent))
    else:
        raise UserError(f"{source} does not exist; name a folder of class folders, or a csv of lines `path,class`")
    if not found.classes:
        first = "".join(f"; {path}: {reason}" for path, reason in list(found.skipped.items())[:1])
        raise UserError(f"{source} holds no videos{first}; expected CLASS/NAME.mp4, or CLASS_NAME.mp4")
    return found


def check_classes(found: Found) -> None:
    """Raises `UserError` for fewer than two classes, names that differ in capitals only, and classes too small."""
    counts = Counter(found.classes.values())
    if len(counts) < 2:
        raise UserError(
            f"{found.root}: all {counts.total()} videos are of class {next(iter(counts))}; expected two classes or more"
        )
    names: dict[str, str] = {}
    for name in sorted(counts):
        other = names.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(f"classes {other} and {name} differ in capital letters only; rename one, or join them")
    for name, count in sorted(counts.items()):
        if count < LEAST:
            raise UserError(
                f"class {name} has {count} video{'s' * (count > 1)} that can be read; expected {LEAST} or more, to"
                " train, validate and test: add some, or move it away"
            )


def _of_folder(folder: Path) -> Found:
    found, files = Found(folder), list(_files(folder))
    videos = [path for path, reason in files if not reason]
    found.skipped = {path: reason for path, reason in files if reason}
    if parts := _parts(folder, videos):
        return _of_parts(found, videos, parts)
    in_folders = [path for path in videos if os.sep in path]
    for path in videos:
        if os.sep in path:
            found.add(path, path.split(os.sep)[0])
        elif in_folders:
            found.skipped[path] = "in no class folder"
        elif name := os.path.splitext(path)[0].rpartition("_")[0]:
            found.add(path, name)
        else:
            found.skipped[path] = "no class before an underscore in its name"
    return found


def _parts(folder: Path, videos: list[str]) -> dict[str, str]:
    """Part of each folder that is named after one, if there are two or more such parts."""
    tops = dict.fromkeys(path.split(os.sep)[0] for path in videos if os.sep in path)
    parts = {top: PARTS[top.lower()] for top in tops if top.lower() in PARTS}
    if len(set(parts.values())) < 2:
        return {}
    if "train" not in parts.values():
        raise UserError(f"{folder} holds {' and '.join(parts)}, but no train; add it, or rename them")
    return parts


def _of_parts(found: Found, videos: list[str], parts: dict[str, str]) -> Found:
    for path in videos:
        top, *below = path.split(os.sep)
        if top not in parts:
            found.skipped[path] = f"in none of {', '.join(parts)}"
        elif len(below) < 2:
            raise UserError(
                f"{found.root / path}: expected {top}/CLASS/NAME.mp4, for {' and '.join(parts)} are parts of a data"
                " set; rename them if they are classes"
            )
        else:
            found.add(path, below[0])
            found.parts[path] = parts[top]
    return found


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """Path of each file at any depth, in order, and why it is no video that is wanted; hidden folders as one."""
    for parent, folders, names in os.walk(folder):
        hidden = sorted(name for name in folders if _is_hidden(name))
        folders[:] = sorted(set(folders) - {*hidden})
        for name in hidden:
            yield os.path.relpath(os.path.join(parent, name), folder) + os.sep, "hidden"
        for name in sorted(names):
            path = os.path.relpath(os.path.join(parent, name), folder)
            foreign = "" if os.path.splitext(name)[1].lower() in EXTENSIONS else "no video by its ending"
            yield path, "hidden" if _is_hidden(name) else foreign


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _of_list(file: Path, root: Path) -> Found:
    found, lines = Found(root), read_lines(file)
    separator = _separator([line for _, line in lines], root)
    rows = [split_label(line, separator) or ("", "") for _, line in lines]
    for (number, line), row in zip(lines, rows):
        if not all(row):
            form = f"path{separator}class".replace("\t", "<TAB>")
            raise UserError(f"{file}:{number}: expected `{form}` in each line, found {line.strip()[:60]!r}")
    there = [os.path.isfile(os.path.join(root, path)) for path, _ in rows]
    if rows and not there[0] and any(there):
        (path, _), *rows = rows
        found.skipped[path] = f"no file, so line {lines.pop(0)[0]} of {file.name} is taken for a header"
    for (number, _), (path, name) in zip(lines, rows):
        if found.classes.get(path, name) != name:
            raise UserError(
                f"{file}:{number}: {path[:60]} is of class {name}, but of {found.classes[path]} on a line before"
            )
        if os.path.isabs(path) or re.match(r"\.\.(/|$)", os.path.normpath(path)):
            raise UserError(f"{file}:{number}: {path[:60]} leaves {root}; give --root, and paths from there on")
        found.add(path, name)
    return found


def _separator(lines: list[str], root: Path) -> str:
    """The one by which most lines name a file; where none does, by which most have a path with the ending of videos."""

    def fits(mark: str) -> tuple[int, int, int]:
        paths = [row[0] for line in lines if (row := split_label(line, mark))]
        videos = sum(os.path.splitext(path)[1].lower() in EXTENSIONS for path in paths)
        return sum(os.path.isfile(os.path.join(root, path)) for path in paths), videos, len(paths)

    return max((",", "\t", ";", " "), key=fits)
