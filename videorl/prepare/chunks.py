"""Cuts all videos of a folder or of lists into chunks: many processes, many machines, in as many runs as it takes.

In the output folder `a/b.mp4` becomes `a/b_00000.mp4`, `a/b_00001.mp4`, … (a whole video: `a/b.mp4`), and its frames
10 to 19 become `a/b_10-20_00000.mp4`, …; by seconds `a/b.mp4/0.mp4`, `a/b.mp4/300.mp4`, …. See `record.py` for the
other files there. A source is finished or not: nothing of one that fails stays.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import av

from videorl import atomic
from videorl.data.lines import line_of, read_lines, separator_of, split_label, unquoted
from videorl.data.listed import Layout, Part, detect
from videorl.data.paths import OutsideError, Paths, shortened
from videorl.loading.pool import Workers
from videorl.loading.quarantine import Bad
from videorl.prepare.crew import Progress, Pulse, each
from videorl.prepare.cut import Encoding, cut
from videorl.prepare.record import FACTS, Record, Rows, Shard, claim, finished, unreadable
from videorl.registry import UserError
from videorl.video.errors import VideoError
from videorl.video.folder import EXTENSIONS, find

UNLABELLED = "0"  # in lists without labels, as VideoMAE writes them for pre-training
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Sources:
    """What is to be cut: files below `root`, whole or in part, and the lists that chunks get.

    `parts`: by name, each once; the name of a part of a file is `path[first:stop]`. `lists`: name of the csv to write
    -> rows of (name of the source, separator and label as the list has them). `missing`: files of the folder that
    cannot be looked at, and why.
    """

    root: Path
    parts: dict[str, Part]
    lists: dict[str, list[tuple[str, str]]]
    missing: dict[str, str] = field(default_factory=dict)

    def file(self, name: str) -> str:
        """The absolute path of a source's file."""
        return os.path.abspath(self.root / self.parts[name].path)


def read_sources(inputs: Sequence[Path], root: str, separator: str, out: Path) -> Sources:
    """The videos of one folder, or of csv files, or single files. Raises `UserError`.

    A csv has the layouts of `video_list` (videorl/data/listed.py) with video files, of which the frames that it names
    are cut; or lines `path`, or `path label` with several labels `1,2`. A `separator` says that its lines are such.
    """
    separator = separator_of(separator)
    if len(inputs) == 1 and inputs[0].is_dir():
        return _of_folder(inputs[0], root, separator, out)
    if all(file.suffix.lower() in EXTENSIONS for file in inputs):
        return _of_files(inputs, separator)
    parts, lists, folder = {}, {}, Path(root or inputs[0].parent)
    for file in inputs:
        if file.is_dir() or file.name in lists:
            raise UserError(f"{file}: expected one folder, or csv files of different names")
        rows = _rows(file, separator, Paths(str(folder), allow_outside=False))
        parts |= {_name(part): part for part, _ in rows}
        lists[file.name] = [(_name(part), label) for part, label in rows]
    if not folder.is_dir():
        raise UserError(f"--root {folder} is no folder; name the one that the paths in {inputs[0]} start from")
    return _checked(Sources(folder, parts, lists))


def _of_folder(folder: Path, root: str, separator: str, out: Path) -> Sources:
    if root:
        raise UserError("--root is for csv files; the paths of a folder start from it")
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"--out {out} lies in {folder}, whose videos are cut; choose a folder elsewhere")
    files, missing = find(folder)
    parts, label = {}, (separator or " ") + UNLABELLED
    for file in files:
        try:
            line_of(file.path, separator or " ", UNLABELLED)
            parts[file.path] = Part(file.path)
        except ValueError as error:
            missing[file.path] = f"open: {error}"
    return _checked(Sources(folder, parts, {"videos.csv": [(path, label) for path in parts]}, missing))


def _of_files(files: Sequence[Path], separator: str) -> Sources:
    above = os.path.commonpath([os.path.abspath(file.parent) for file in files])
    parts = {path: Part(path) for path in (os.path.relpath(file, above) for file in files)}
    return _checked(
        Sources(Path(above), parts, {"videos.csv": [(path, (separator or " ") + UNLABELLED) for path in parts]})
    )


def _rows(file: Path, separator: str, paths: Paths) -> list[tuple[Part, str]]:
    """The source of each line, with separator and label for its chunks."""
    lines = read_lines(file)
    if not lines:
        raise UserError(f"{file} holds no rows; expected lines `path{separator or ' '}label`")
    read, rows = _reader([line for _, line in lines], separator, paths), []
    for number, line in lines:
        try:
            part, label = read(line)
            name = os.path.normpath(part.path)
            line_of(name, " ", UNLABELLED)
        except OutsideError as error:
            path = str(error).partition(" leaves ")[0]
            raise UserError(f"{file}: line {number}: {path} leaves --root; expected a path below it") from None
        except ValueError as error:
            raise UserError(f"{file}: line {number}: {error}") from None
        rows.append((Part(name, part.first, part.stop), label))
    return rows


def _reader(lines: Sequence[str], separator: str, paths: Paths) -> Callable[[str], tuple[Part, str]]:
    """How the lines of a list are read."""
    ends_in_number = re.search(r'\S[\s,]\s*"?-?[0-9]{1,9}"?\s*$', lines[0])
    several = any(re.search(r'[^\s,]\s+"?[0-9]+(,[0-9]+)+"?\s*$|,"[0-9]+(,[0-9]+)+"\s*$', line) for line in lines)
    if ends_in_number and not (separator or several):
        return partial(_of_layout, detect(lines[0], None, paths))
    separator = separator or ("," if re.search(r',"?[0-9,]+"$', lines[0].rstrip()) else " ")
    return partial(_of_path, separator, _label(separator, lines[0]) is not None, paths)


def _of_layout(layout: Layout, line: str) -> tuple[Part, str]:
    part, _ = layout.parse(line)
    if part.folder:
        raise ValueError(
            f"expected a video file, found a folder of frames: {shortened(line.strip())};"
            " if these lines are `path label`, give --separator"
        )
    label = UNLABELLED
    if "label" in layout.columns:  # it and what is behind it are numbers, so only the path may hold separators
        label = unquoted(re.split(r"[\s,]+", line.strip())[layout.columns.index("label") - len(layout.columns)])
    return part, ("," if layout.comma else " ") + label


def _of_path(separator: str, labelled: bool, paths: Paths, line: str) -> tuple[Part, str]:
    label = _label(separator, line)
    if labelled != (label is not None):
        raise ValueError(f"expected `path{separator}label` in all lines or in none: {shortened(line)}")
    path = split_label(line, separator)[0] if labelled else unquoted(line)
    label = label or UNLABELLED
    return Part(paths(path)), separator + (f'"{label}"' if separator in label else label)


def _label(separator: str, line: str) -> str | None:
    _, label = split_label(line, separator) or ("", "")
    return label if re.fullmatch(r"[0-9]+(,[0-9]+)*", label) else None


def _checked(sources: Sources) -> Sources:
    """Raises `UserError` where two sources would become files of the same names."""
    stems: dict[str, str] = {}
    for name, part in sources.parts.items():
        if (other := stems.setdefault(stem_of(part), name)) != name:
            raise UserError(f"{other} and {name} would become files of the same name; rename one")
    return sources


def _name(part: Part) -> str:
    return part.path if part.stop < 0 else f"{part.path}[{part.first}:{part.stop}]"


def stem_of(part: Part) -> str:
    """The path of a source without the ending of a video file; of a part of it with `_first-stop`."""
    stem, ending = os.path.splitext(part.path)
    stem = stem if ending.lower() in EXTENSIONS else part.path
    return stem if part.stop < 0 else f"{stem}_{part.first}-{part.stop}"


# ---------------------------------------------------------------------------------------------------------------- work


@dataclass(frozen=True)
class Cutter:
    """What a worker does with a source: its chunks, published in `out`, and their lines of the manifest."""

    root: Path
    out: Path
    making: Path
    encoding: Encoding
    parts: dict[str, Part]

    def __call__(self, source: str, pulse: Pulse) -> list[dict]:
        folder, part = self.making / str(os.getpid()), self.parts[source]
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            chunks = cut(str(self.root / part.path), folder, self.encoding, pulse, part.first, part.stop)
            return self._publish(source, stem_of(part), chunks)
        except VideoError as error:
            if getattr(error.__cause__, "errno", None) in DISK:
                raise UserError(f"{self.out}: {error.reason}; make room and give the same command again") from None
            raise
        except OSError as error:  # of the folder: what is wrong with a video is a VideoError
            raise UserError(f"{self.out}: {error}") from None

    def _publish(self, source: str, stem: str, chunks: list) -> list[dict]:
        rows = []
        for chunk in chunks:
            path = f"{stem}{self.encoding.name(chunk.number)}"
            (self.out / path).parent.mkdir(parents=True, exist_ok=True)
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
    made = {"colours": "as tagged", **encoding.as_dict()}  # before, they were converted to BT.601
    claim(out, {"root": str(sources.root.resolve()), **made})
    with Record(out, shard) as record:
        before = finished(out)
        mine = shard.of(list(sources.parts))
        todo = [source for source in mine if source not in before]
        for source, reason in sources.missing.items() if shard.number == 0 else ():
            record.add_bad(source, Bad(-1, source, reason.removeprefix("open: "), "open"))
        cutter = Cutter(sources.root, out, record.parts, encoding, sources.parts)
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
    rows, paths = finished(out), set(sources.parts) | set(sources.missing)
    outcome.unreadable = {s: row for s, row in unreadable(out).items() if s in paths and s not in rows}
    outcome.left = len(paths - set(rows) - set(outcome.unreadable))
    outcome.chunks = sum(len(rows[s]) for s in sources.parts if s in rows)
    if not outcome.left:
        merged = [row for source in sorted(rows) for row in rows[source]]
        _write(out / "manifest.jsonl", [json.dumps(row) for row in merged], outcome)
        _write(out / "bad.jsonl", [json.dumps(row) for row in outcome.unreadable.values()], outcome)
        for name, listed in sources.lists.items():
            _write(out / name, list(_chunk_rows(listed, rows)), outcome)
    return outcome


def _chunk_rows(listed: Sequence[tuple[str, str]], rows: Rows) -> Iterator[str]:
    for source, label in listed:
        for row in rows.get(source, ()):
            yield row["path"] + label


def _write(file: Path, lines: list[str], outcome: Outcome) -> None:
    text = "".join(line + "\n" for line in lines)
    old = file.read_text(encoding="utf-8") if file.exists() else None
    if old == text:
        return
    atomic.write(file, text)
    instead = "" if old is None else f" (in place of {old.count(chr(10))})"
    outcome.written.append(f"{file}: {len(lines)} lines{instead}")
