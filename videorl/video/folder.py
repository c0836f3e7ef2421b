"""The videos of a folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from videorl.registry import UserError

# Of the containers that `container.py` knows; what a file really holds is seen when it is opened.
EXTENSIONS = {
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v"),
    *(".mkv", ".webm", ".avi", ".flv", ".wmv", ".asf", ".ogv", ".ogg", ".gif"),
    *(".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".m1v", ".m2v", ".h264", ".264", ".h265", ".265", ".hevc"),
}


@dataclass(frozen=True)
class File:
    """A file of a folder: path below it, bytes, time of the last change (ns). Equal ones are taken for the same."""

    path: str
    size: int
    changed: int


def find(folder: Path) -> tuple[list[File], dict[str, str]]:
    """The video files at any depth, by path, and why others could not be looked at (path -> reason).

    Links to folders are not followed. Raises `UserError` if there is no folder or no video in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name one that holds videos")
    files, unreadable = [], {}

    def note(error: OSError) -> None:
        unreadable[os.path.relpath(error.filename, folder)] = f"open: {error.strerror}"

    for parent, _, names in os.walk(folder, onerror=note):
        for name in names:
            if os.path.splitext(name)[1].lower() in EXTENSIONS:
                path = os.path.join(parent, name)
                try:
                    status = os.stat(path)
                except OSError as error:
                    note(error)
                else:
                    files.append(File(os.path.relpath(path, folder), status.st_size, status.st_mtime_ns))
    if not files:
        first = "".join(f"; {path}: {reason}" for path, reason in list(unreadable.items())[:1])
        raise UserError(f"{folder}: no videos found{first} (expected files like .mp4, .mkv, .webm, .avi, .ts)")
    return sorted(files, key=lambda file: file.path), unreadable
