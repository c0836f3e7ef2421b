"""Cuts all videos of a folder or of lists into chunks: many processes, many machines, in as many runs as it takes.

In the output folder `a/b.mp4` becomes `a/b_00000.mp4`, `a/b_00001.mp4`, … (a whole video: `a/b.mp4`). See `record.py`
for the other files there. A source is finished or not: nothing of one that fails stays.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av

from videorl.data.labelled import check_inside, read_lines
from videorl.data.loader import Workers
from videorl.data.quarantine import Bad
from videorl.data.video import VideoError
from videorl.prepare.crew import Progress, Pulse, each
from videorl.prepare.cut import Encoding, cut
from videorl.prepare.record import FACTS, Record, Rows, Shard, claim, finished, replace, unreadable
from videorl.registry import UserError
from videorl.search.folder import EXTENSIONS, find

UNLABELLED = "0"  # in lists without labels, as VideoMAE writes them for pre-training
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Sources:
    """What is to be cut: paths that start from `root`, each once, and the lists that chunks get.

    `lists`: name of the csv to write -> rows of (path, label as it is written). `missing`: files of the folder that
    cannot be looked at, and why.
    """

    root: Path
    paths: list[str]
    lists: dict[str, list[tuple[str, str]]]
    separator: str = " "
    missing: dict[str, str] = field(default_factory=dict)


def read_sources(inputs: Sequence[Path], root: str, separator: str, out: Path) -> Sources:
    """The videos of one folder, or of csv files with lines `path label` or `path`. Raises `UserError`."""
    if len(inputs) == 1 and inputs[0].is_dir():
        return _of_folder(inputs[0], root, separator, out)
    lists = {}
    for file in inputs:
        if file.is_dir() or file.name in lists:
            raise UserError(f"{file}: expected one folder, or csv files of different names")
        lists[file.name] = _rows(file, separator)
    folder = Path(root or inputs[0].parent)
    if not folder.is_dir():
        raise UserError(f"--root {folder} is no folder; name the one that the paths in {inputs[0]} start from")
    paths = list(dict.fromkeys(path for rows in lists.values() for path, _ in rows))
    return _checked(Sources(folder, paths, lists, separator))


def _of_folder(folder: Path, root: str, separator: str, out: Path) -> Sources:
    if root:
        raise UserError("--root is for csv files; the paths of a folder start from it")
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"--out {out} lies in {folder}, whose videos are cut; choose a folder elsewhere")
    files, missing = find(folder)
    paths = [file.path for file in files]
    return _checked(Sources(folder, paths, {"videos.csv": [(p, UNLABELLED) for p in paths]}, separator, missing))


def _rows(file: Path, separator: str) -> list[tuple[str, str]]:
    rows, labelled = [], None
    for number, line in read_lines(file):
        path, found, label = line.rstrip().rpartition(separator)
        has_label = bool(found and path.strip() and re.fullmatch(r"[0-9]+(,[0-9]+)*", label))
        if labelled not in (None, has_label):
            raise UserError(
                f"{file}: line {number}: expected `path{separator}label` in all lines or in none: {line[:60]!r}"
            )
        labelled, path = has_label, (path if has_label else line).strip()
        try:
            check_inside(path)
        except ValueError:
            raise UserError(f"{file}: line {number}: {path[:60]!r} leaves --root; expected a path below it") from None
        rows.append((os.path.normpath(path), label if has_label else UNLABELLED))
    if not rows:
        raise UserError(f"{file} holds no rows; expected lines `path{separator}label`")
    return rows


def _checked(sources: Sources) -> Sources:
    """Raises `UserError` where two videos would become files of the same names."""
    stems: dict[str, str] = {}
    for path in sources.paths:
        if (other := stems.setdefault(stem_of(path), path)) != path:
            raise UserError(f"{other} and {path} would become files of the same name; rename one")
    return sources


def stem_of(path: str) -> str:
    """A path without the ending of a video file."""
    stem, ending = os.path.splitext(path)
    return stem if ending.lower() in EXTENSIONS else path


# ---------------------------------------------------------------------------------------------------------------- work


@dataclass(frozen=True)
class Cutter:
    """What a worker does with a source: its chunks, published in `out`, and their lines of the manifest."""

    root: Path
    out: Path
    parts: Path
    encoding: Encoding

    def __call__(self, source: str, pulse: Pulse) -> list[dict]:
        folder = self.parts / str(os.getpid())
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            return self._publish(source, cut(str(self.root / source), folder, self.encoding, pulse))
        except VideoError as error:
            if getattr(error.__cause__, "errno", None) in DISK:
                raise UserError(f"{self.out}: {error.reason}; make room and give the same command again") from None
            raise
        except OSError as error:  # of the folder: what is wrong with a video is a VideoError
            raise UserError(f"{self.out}: {error}") from None

    def _publish(self, source: str, chunks: list) -> list[dict]:
        (self.out / source).parent.mkdir(parents=True, exist_ok=True)
        rows = []
        for chunk in chunks:
            number = f"_{chunk.number:05d}" if self.encoding.seconds else ""
            path = f"{stem_of(source)}{number}.mp4"
            os.replace(chunk.file, self.out / path)
            where = {"path": path, "source": source, "chunk": chunk.number, "chunks": len(chunks)}
            rows.append({**where, **{key: getattr(chunk, key) for key in FACTS}})
        return rows


def prepare(
    sources: Sources, out: Path, encoding: Encoding, shard: Shard, workers: Workers, progress: Progress
) -> "Outcome":
    """Cuts what is not yet finished of a shard's sources; bad ones are listed and do not stop it.

    Where all shards have done their part, writes the merged manifest and the lists. Raises `UserError` for a folder
    that is not its own, or a full disk.
    """
    if "libx264" not in av.codecs_available:
        raise UserError("PyAV has no encoder libx264; install av from PyPI (pip install av)")
    claim(out, {"root": str(sources.root.resolve()), **encoding.as_dict()})
    with Record(out, shard) as record:
        before = finished(out)
        mine = shard.of(sources.paths)
        todo = [source for source in mine if source not in before]
        for source, reason in sources.missing.items() if shard.number == 0 else ():
            record.add_bad(source, Bad(-1, source, reason.removeprefix("open: "), "open"))
        cutter = Cutter(sources.root, out, record.parts, encoding)
        bad = 0
        for i, result in each(todo, cutter, workers, progress):
            if isinstance(result, Bad):
                record.add_bad(todo[i], result)
                bad += 1
            else:
                record.add(result)
        return _finish(sources, out, Outcome(len(mine), len(mine) - len(todo), bad))


# -------------------------------------------------------------------------------------------------------------- result


@dataclass
class Outcome:
    """What a run has come to: the shard's sources, those finished before and those bad; then, of all shards together:
    sources that are left, bad ones (source -> line), chunks, and lines to tell about files that were written."""

    sources: int
    before: int
    bad: int
    left: int = 0
    unreadable: dict[str, dict] = field(default_factory=dict)
    chunks: int = 0
    written: list[str] = field(default_factory=list)


def _finish(sources: Sources, out: Path, outcome: Outcome) -> Outcome:
    rows, paths = finished(out), set(sources.paths) | set(sources.missing)
    outcome.unreadable = {s: row for s, row in unreadable(out).items() if s in paths and s not in rows}
    outcome.left = len(paths - set(rows) - set(outcome.unreadable))
    outcome.chunks = sum(len(rows[s]) for s in sources.paths if s in rows)
    if not outcome.left:
        merged = [row for source in sorted(rows) for row in rows[source]]
        _write(out / "manifest.jsonl", [json.dumps(row) for row in merged], outcome)
        _write(out / "bad.jsonl", [json.dumps(row) for row in outcome.unreadable.values()], outcome)
        for name, listed in sources.lists.items():
            _write(out / name, list(_chunk_rows(listed, rows, sources.separator)), outcome)
    return outcome


def _chunk_rows(listed: Sequence[tuple[str, str]], rows: Rows, separator: str) -> Iterator[str]:
    for source, label in listed:
        for row in rows.get(source, ()):
            yield f"{row['path']}{separator}{label}"


def _write(file: Path, lines: list[str], outcome: Outcome) -> None:
    text = "".join(line + "\n" for line in lines)
    old = file.read_text(encoding="utf-8") if file.exists() else None
    if old == text:
        return
    replace(file, text)
    instead = "" if old is None else f" (in place of {old.count(chr(10))})"
    outcome.written.append(f"{file}: {len(lines)} lines{instead}")
