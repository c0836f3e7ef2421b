"""The videos that a command names: files, folders at any depth, and lists with or without labels."""

import os
from collections.abc import Sequence
from pathlib import Path

from videorl.prepare.chunks import read_sources
from videorl.registry import UserError
from videorl.video import folder
from videorl.video.folder import EXTENSIONS


def find(inputs: Sequence[Path], root: str = "") -> tuple[list[str], dict[str, str]]:
    """Paths of all videos in the order of the inputs, each once, and of those that cannot be looked at the reasons.

    A list (csv, txt) has lines `path` or `path label`, of which the label is not read; its paths start from `root`, or
    else from its own folder. Raises `UserError`.
    """
    found: dict[str, None] = {}
    unreadable: dict[str, str] = {}
    for source in inputs:
        if source.is_dir():
            files, bad = folder.find(source)
            found |= dict.fromkeys(os.path.join(source, file.path) for file in files)
            unreadable |= {os.path.join(source, path): reason for path, reason in bad.items()}
        elif source.suffix.lower() in EXTENSIONS:
            found[str(source)] = None
        elif source.suffix.lower() in (".csv", ".txt"):
            found |= dict.fromkeys(_listed(source, root))
        else:
            raise UserError(f"{source}: expected a video, a folder of videos, or a list of paths (.csv, .txt)")
    return list(found), unreadable


def _listed(file: Path, root: str) -> list[str]:
    sources = read_sources([file], root, "", Path())
    if parts := [name for name, part in sources.parts.items() if part.span]:
        raise UserError(f"{file} names parts of videos ({parts[0]}); `videorl prepare` cuts them, or list whole ones")
    return [os.path.join(sources.root, part.path) for part in sources.parts.values()]
