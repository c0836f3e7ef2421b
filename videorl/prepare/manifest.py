"""Sizes and hashes of video files in a list, a json line each: damage that no decoder notices shows against it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from videorl import atomic
from videorl.prepare.files import Facts
from videorl.registry import UserError

Manifest = Mapping[str, tuple[int, str]]  # path to size and SHA-256


def refuse_existing(file: Path) -> None:
    """Raises `UserError` if there is such a file: nothing is overwritten."""
    if os.path.lexists(file):
        raise UserError(f"{file} exists and is not overwritten; remove it or give another name")


def write(file: Path, files: Mapping[str, Facts], base: str) -> int:
    """Writes path, size and SHA-256 of every file that has one, a json line each; returns how many there are."""
    refuse_existing(file)
    known = sorted((os.path.relpath(path, base), facts) for path, facts in files.items() if facts.sha256)
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = (json.dumps({"path": path, "size": facts.size, "sha256": facts.sha256}) + "\n" for path, facts in known)
    atomic.write(file, "".join(rows))
    return len(known)


def read(file: Path) -> dict[str, tuple[int, str]]:
    """Path to (size, SHA-256). Raises `UserError` that names the first line which is none of a manifest."""
    listed = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
            listed[str(entry["path"])] = int(entry["size"]), str(entry["sha256"])
        except (ValueError, KeyError, TypeError):
            expected = '{"path": …, "size": …, "sha256": …}'
            raise UserError(f"{file}: line {number} is not {expected}; is this a manifest of --hash?") from None
    return listed


def difference(path: str, facts: Facts, manifest: Manifest, base: str) -> tuple[str, str] | None:
    """How a file differs from the manifest: a kind of finding ("changed", "unlisted") and the reason; None if not.

    Paths in the manifest start from the folder `base`. A file that could not be hashed is left to other findings.
    """
    name = os.path.relpath(path, base)
    if not facts.sha256:
        return None
    if name not in manifest:
        return "unlisted", "it was not there when the manifest was written"
    size, sha256 = manifest[name]
    if size != facts.size:
        return "changed", f"{facts.size} bytes, {size} in the manifest"
    return None if sha256 == facts.sha256 else ("changed", "other bytes than in the manifest (same size)")
