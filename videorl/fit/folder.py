"""Which videos a folder or a list holds, and of which classes: whatever is left out is named."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from videorl.data.lines import line_of, read_lines, unquoted
from videorl.registry import UserError
from videorl.video.folder import EXTENSIONS

LEAST = 3  # videos of a class: one to train on, one to choose by, one to test


@dataclass
class Found:
    """Class of each video, by its path below `root`, and why other files are none (path -> reason)."""

    root: Path
    classes: dict[str, str] = field(default_factory=dict)
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
        self.skipped[path] = reason


def find(source: Path, root: str = "") -> Found:
    """The videos of a folder of class folders, of a folder of files `class_….mp4`, or of a list `path,class`.

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
    for number, line in lines:
        separator = next((mark for mark in (",", "\t", ";") if mark in line), " ")
        path, _, name = line.strip().rpartition(separator)
        path, name = unquoted(path), unquoted(name)
        if not path or not name:
            raise UserError(f"{file}:{number}: expected `path,class`, found {line.strip()[:60]!r}")
        if number == lines[0][0] and os.path.splitext(path)[1].lower() not in EXTENSIONS:
            continue  # a header
        if found.classes.get(path, name) != name:
            raise UserError(
                f"{file}:{number}: {path[:60]} is of class {name}, but of {found.classes[path]} on a line before"
            )
        if os.path.isabs(path) or re.match(r"\.\.(/|$)", os.path.normpath(path)):
            raise UserError(f"{file}:{number}: {path[:60]} leaves {root}; give --root, and paths from there on")
        found.add(path, name)
    return found
