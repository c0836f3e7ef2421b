"""What stands in an output folder: the mark of its settings, and a json line for each finished chunk and bad source.

Each shard appends to files of its own, `manifest.K-of-N.jsonl` and `bad.K-of-N.jsonl`; all are read together. The lines
of a source come in one write, after its files have their names: a source is finished when all its lines are there.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from videorl import atomic
from videorl.loading.quarantine import Bad
from videorl.registry import UserError

MARK = "prepare.json"
PARTS = ".parts"  # files in the making, a folder for each shard, and its lock
FACTS = ("start", "end", "frames", "width", "height", "size", "sha256")
KEYS = {"path", "source", "chunk", "chunks", *FACTS}

Rows = dict[str, list[dict]]  # source -> the lines of its chunks, in order


def claim(out: Path, settings: dict, name: str = MARK, what: str = "chunks") -> None:
    """Marks a new or empty folder as that of these settings, by the file `name`.

    Raises `UserError` where another one's files stand in it, or what it holds (`what`) was made with other settings.
    """
    mark = out / name
    if not mark.exists():
        # Other processes of the same work may come first: what stands there counts where the mark is still not.
        others = out.exists() and (not out.is_dir() or any(not p.name.startswith(name) for p in out.iterdir()))
        if others and not mark.exists():
            raise UserError(f"{out} is not empty and not from this tool (no {name}); choose a new or empty folder")
        out.mkdir(parents=True, exist_ok=True)
        atomic.write(mark, json.dumps(settings, indent=1) + "\n")
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
        other = [f"{k} {found.get(k)} (asked for {v})" for k, v in settings.items() if found.get(k) != v]
    except (ValueError, AttributeError):
        raise UserError(f"{mark} is damaged; choose another folder or delete this one") from None
    if other:
        raise UserError(f"{out} holds {what} with {', '.join(other)}; give the same settings or another --out")


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count` of the work; the parts are disjoint and together all."""

    number: int
    count: int

    def __post_init__(self):
        if not 0 <= self.number < self.count:
            raise UserError(f"--shard_id {self.number}: expected 0 … {self.count - 1} (--num_shards {self.count})")

    def of(self, sources: Sequence[str]) -> Sequence[str]:
        return sources[self.number :: self.count]

    def __str__(self) -> str:
        return f"{self.number}-of-{self.count}"


def locked(file: Path, what: str, *, patient: bool = False) -> BinaryIO:
    """Holds `file` until it is closed, or its process ends. Raises `UserError` if another process works on `what`, or
    waits for it if `patient`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # lockf, not flock: workers that outlive a killed run for a moment do not inherit it. It ends when any handle of the
    # file is closed, so the file is no other.
    lock = open(file, "wb")  # noqa: SIM115
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        lock.close()
        raise UserError(f"another process works on {what}; wait for it or end it") from None
    return lock


class Record:
    """The files that a shard appends to; use it in a `with` statement. Raises `UserError` if another process has them.

    `parts` is an empty folder for files in the making, on the same disk as the finished ones.
    """

    def __init__(self, out: Path, shard: Shard):
        self.parts = out / PARTS / str(shard)
        self.parts.mkdir(parents=True, exist_ok=True)
        self.lock = locked(out / PARTS / f"{shard}.lock", f"shard {shard} in {out}")
        self.manifest = open(out / f"manifest.{shard}.jsonl", "a+b")  # noqa: SIM115
        self.bad = open(out / f"bad.{shard}.jsonl", "wb")  # noqa: SIM115  what was bad is tried again

    def __enter__(self) -> "Record":
        _drop_half_line(self.manifest)
        shutil.rmtree(self.parts, ignore_errors=True)
        self.parts.mkdir(exist_ok=True)
        return self

    def __exit__(self, *_) -> None:
        shutil.rmtree(self.parts, ignore_errors=True)
        for file in (self.bad, self.manifest, self.lock):
            file.close()

    def add(self, rows: Sequence[dict]) -> None:
        """The chunks of one source, whose files have their names."""
        _append(self.manifest, rows)

    def add_bad(self, source: str, bad: Bad) -> None:
        _append(self.bad, [{"source": source, "stage": bad.stage, "reason": bad.error}])


def _append(file, rows: Sequence[dict]) -> None:
    file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    file.flush()


def _drop_half_line(file) -> None:
    """A killed process can leave one; what is appended would become part of it."""
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)


def finished(out: Path) -> Rows:
    """The sources of which every chunk stands in a manifest and, with its size, in the folder."""
    rows: Rows = {}
    for file in sorted(out.glob("manifest.*-of-*.jsonl")):
        for row in _lines(file, KEYS):
            found = rows.setdefault(row["source"], [])
            if found and row["chunk"] <= found[-1]["chunk"]:  # it was done once more: its files were gone
                found.clear()
            found.append(row)
    return {source: found for source, found in rows.items() if _is_whole(out, found)}


def _is_whole(out: Path, rows: Sequence[dict]) -> bool:
    if len(rows) != rows[0]["chunks"]:
        return False
    try:
        return all(os.stat(out / row["path"]).st_size == row["size"] for row in rows)
    except FileNotFoundError:
        return False


def unreadable(out: Path) -> dict[str, dict]:
    """The bad sources that all shards have met in their last runs."""
    files = sorted(out.glob("bad.*-of-*.jsonl"))
    return {row["source"]: row for file in files for row in _lines(file, {"source", "stage", "reason"})}


def _lines(file: Path, keys: set[str]) -> Iterator[dict]:
    """The json lines of a file; one at its end that is not finished belongs to another shard's work."""
    *lines, _ = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            missing = keys - set(row)
        except (ValueError, TypeError):
            missing = keys
        if missing:
            raise UserError(
                f"{file}: line {number} is damaged (no {min(missing)}); remove the line: its video is redone"
            )
        yield row
