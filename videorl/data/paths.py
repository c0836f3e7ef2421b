"""Paths as people write them into lists, and the files that they mean."""

import os
import re
from collections import defaultdict
from typing import NamedTuple

from videorl.registry import UserError, printable
from videorl.video.folder import EXTENSIONS


class Settings(NamedTuple):
    """What a message tells the user to set: keys of a config, or the flags of a command."""

    annotations: str = "DATA.PATH_TO_DATA_DIR"
    root: str = "DATA.PATH_PREFIX"
    separator: str = "DATA.PATH_LABEL_SEPARATOR"


KEYS = Settings()


def shortened(text: str, most: int = 60) -> str:
    """Text of a list in quotation marks, without its middle if it is long: what is wrong mostly stands at its end."""
    half = most // 2
    return f"'{printable(text if len(text) <= most else f'{text[:half]} … {text[-half:]}')}'"


class OutsideError(ValueError):
    """A path leaves the folder of its videos."""


def check_inside(path: str, written: str = "") -> None:
    """Raises `OutsideError` for a path, which the list has as `written`, that leaves the folder it starts from."""
    climbs = os.path.normpath(path).split(os.sep)[0] == ".."
    if os.path.isabs(path) or climbs or re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]*://", path):
        raise OutsideError(
            f"{shortened(written or path)} leaves the video folder; set DATA.ALLOW_OUTSIDE_ROOT True to allow it"
        )


def check_root(root: str, file: str | os.PathLike, settings: Settings = KEYS) -> None:
    """Raises `UserError` unless the folder that the paths in `file` start from exists."""
    if not os.path.isdir(root):
        raise UserError(f"video folder {root} does not exist; set {settings.root} to where the paths in {file} start")


def changed(folder: str) -> int:
    """When a folder has changed last, in ns; -1 where there is none."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return -1


def has_ending(path: str) -> bool:
    """Whether a path ends like that of a video file."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


class Paths:
    r"""What the paths of a list mean, which start from the folder `root`.

    `~/` is the home folder, and `\` stands between folders unless there is a file of that very name. A path without the
    ending of a video file, where there is nothing of that name, is the one file that has it beside an ending.

    Only for such paths the folder that they name is listed, once: to look at each of 500,000 videos on a network disk
    would take the first hour of a run. `folders` are these, with the time at which each had changed last.
    """

    def __init__(self, root: str, allow_outside: bool):
        self.root, self.allow_outside = root, allow_outside
        self.folders: dict[str, int] = {}
        self._folders: dict[str, tuple[dict[str, bool], dict[str, list[str]]]] = {}

    @property
    def settings(self) -> dict[str, object]:
        """What the meaning of a path depends on but for what is on the disk."""
        return {"root": self.root, "home": os.path.expanduser("~"), "outside": self.allow_outside}

    def __call__(self, text: str) -> str:
        """The path that `text` means. Raises `ValueError` for one that no file can have or that may not be read."""
        if "\0" in text:
            raise ValueError(f"the path {shortened(text)} holds a NUL character")
        if '"' in text[:1] + text[-1:] and not self.is_there(text):
            raise ValueError(f"the quotation mark of {shortened(text)} is not closed; write both or none")
        if re.match(r"[a-zA-Z]:[\\/]", text):
            raise ValueError(f"{shortened(text)} is a path of Windows; write paths from the video folder on")
        path = os.path.expanduser(text) if text.startswith("~/") else text
        slashed = path.replace("\\", "/")
        if not self.allow_outside:
            check_inside(slashed, text)
        if slashed != path and not self.is_there(path):
            path = slashed
        return path if has_ending(path) or self.is_there(path) else self._with_ending(path)

    def is_there(self, path: str) -> bool:
        return os.path.basename(path) in self._names(path)[0]

    def is_folder(self, path: str) -> bool:
        return self._names(path)[0].get(os.path.basename(path), False)

    def _with_ending(self, path: str) -> str:
        found = self._names(path)[1].get(os.path.basename(path), [])
        if len(found) > 1:
            raise ValueError(f"{shortened(path)} may be {' or '.join(sorted(found))}; write the ending")
        return os.path.join(os.path.dirname(path), found[0]) if found else path

    def _names(self, path: str) -> tuple[dict[str, bool], dict[str, list[str]]]:
        """What the folder of a path holds: name -> whether it is a folder, and videos by name without ending."""
        folder = os.path.join(self.root, os.path.dirname(path))
        if folder not in self._folders:
            self.folders[folder] = changed(folder)
            try:
                with os.scandir(folder) as entries:
                    names = {entry.name: entry.is_dir() for entry in entries}
            except OSError:  # what cannot be listed, cannot be read: that is said of each of its videos
                names = {}
            stems = defaultdict(list)
            for name in filter(has_ending, names):
                stems[os.path.splitext(name)[0]].append(name)
            self._folders[folder] = names, dict(stems)
        return self._folders[folder]
