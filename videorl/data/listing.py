"""The samples of a list as columns, parsed once on a machine: `read` gives them.

Of a list of LEAST bytes or more they go into a file of arrays (see `columns`) beside it, or, where nothing can be
written there, in the cache folder of the user. Its name tells how the list was read, its json of which bytes and with
which folders of videos: a list that has changed is parsed again. Ten million lines are read in a moment then, and all
processes share their pages.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from videorl.data import columns, plain
from videorl.data.lines import parse_lines, read_lines
from videorl.data.paths import Paths, changed, check_root
from videorl.registry import UserError

log = logging.getLogger("videorl")

FORMAT = "videorl list 1"
LEAST = 2**20  # bytes of a list that is worth a file beside it
SETTLED = 5.0  # seconds after which a folder that changes again shows another time
SAY = 10.0  # seconds between two lines of the log


class Reader(Protocol):
    """How the lines of a list are read: `parse` knows all of them, `judged` many at once.

    `settings` tell all that the meaning of a line depends on but for the folders that `paths` looks into. `extra` are
    the attributes of a sample beside its path, and their types. `several`: all labels of a line count, not the first
    alone. `facts` are kept with the columns.
    """

    paths: Paths
    settings: Mapping[str, object]
    extra: Mapping[str, type]
    several: bool
    example: str
    facts: Mapping[str, object]
    form: plain.Form

    def begin(self, file: Path, number: int, line: str) -> None:
        """Looks at the first line. Raises `UserError`."""

    def judged(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]:
        """Of lines with `numbers` [K, N] after their paths: which may be right [N], labels int64 [N], `extra` [N]."""

    def parse(self, line: str) -> tuple[object, list[int]]:
        """Sample (its text is its path) and labels of a line. Raises `ValueError` that says what is wrong with it."""

    def exact(self) -> "Reader":
        """When all lines were parsed: one that may find more of them wrong, or the same."""


@dataclass(frozen=True)
class Listing:
    """The columns of a list, and what else is known of it.

    Paths are the `letters` from one of `bounds` [N + 1] to the next, with a line end behind each; `labels` [N] the
    first of each; where several count, all of them are `numbers` from one of `first_number` [N + 1] to the next.
    `file`: where all that is mapped from, or nothing; `sha256`: of the list; `folders`: those that tell what its lines
    mean, and when they had changed last.
    """

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, object]
    file: str = ""
    sha256: str = ""
    folders: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.arrays["labels"])


def read(file: Path, reader: Reader) -> Listing:
    """The columns of a list. Raises `UserError` as `parse_lines`, for no such list, and for an empty one."""
    if not file.is_file():
        read_lines(file)  # says what there is instead
    check_root(reader.paths.root, file)
    if file.stat().st_size < LEAST:
        return _in_memory(*_parsed(file, reader))
    source = {"settings": reader.settings, "source": str(file.absolute()), "source_sha256": columns.sha256(file)}
    places = _places(file, source)
    if found := _kept(places, source):
        return found
    if not (places := list(filter(_is_writable, places))):
        log.warning(
            "%s: parsed into the memory of each process, for neither its folder nor ~/.cache can be written; make one"
            " so, or set XDG_CACHE_HOME",
            file,
        )
        return _in_memory(*_parsed(file, reader))
    with _alone(file):
        return _kept(places, source) or _written(file, reader, places, source)


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process of this machine at a time: the others find what the first has written."""
    with open(file, "rb") as handle:
        with contextlib.suppress(OSError):  # a disk without locks: each parses, and what it writes is whole
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _places(file: Path, source: Mapping) -> list[Path]:
    """Where the arrays may be: beside the list, or in the cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "videorl" / "lists"
    ours, its = (_digest(what) for what in (source["settings"], [source["settings"], source["source"]]))
    return [file.with_name(f"{file.name}.{ours}.columns"), cache / f"{file.name}.{its}.columns"]


def _is_writable(place: Path) -> bool:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place.parent):
            return True
    except OSError:
        return False


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def _kept(places: Iterable[Path], source: Mapping) -> Listing | None:
    """The columns, if they were made of this list, and the folders that it names are as they were."""
    for place in places:
        found = opened(place, source["source_sha256"])
        if found and all(changed(folder) == at for folder, at in found.folders.items()):
            log.info("%s: %d lines, kept in %s", source["source"], len(found), place)
            return found
    return None


def opened(file: Path, sha256: str) -> Listing | None:
    """The columns in a file, if it is there, whole, and was made of a list of that hash."""
    try:
        head = columns.read_head(file, FORMAT, "columns of a list", "reading the list")
        if head["source_sha256"] != sha256:
            return None
        return Listing(columns.mapped(file, head), head["facts"], str(file.absolute()), sha256, head["folders"])
    except (UserError, KeyError, TypeError, ValueError):
        return None


def _written(file: Path, reader: Reader, places: Sequence[Path], source: Mapping) -> Listing:
    """The columns, mapped from the first of the places where they can be written and change nothing."""
    settled = (time.time() - SETTLED) * 1e9
    log.info("%s: parsed for the first time, or it has changed", file)
    pieces, facts = _parsed(file, reader)
    folders = reader.paths.folders
    looked_into = set(map(os.path.realpath, folders))
    places = [place for place in places if os.path.realpath(place.parent) not in looked_into]
    if any(at > settled for at in folders.values()):
        log.info("%s: a folder that it names has just changed: parsed again at the next start", file)
        return _in_memory(pieces, facts)
    head = {"format": FORMAT, **source, "folders": folders, "facts": facts}
    for place in places:
        try:
            columns.write(place, pieces, head)
        except OSError as error:
            log.warning("%s cannot be written: %s", place, error.strerror or error)
        else:
            if found := _kept([place], source):
                return found
    log.warning("%s: parsed into the memory of this process, and again at each start", file)
    return _in_memory(pieces, facts)


def _in_memory(pieces: Mapping[str, Sequence[np.ndarray]], facts: Mapping[str, object]) -> Listing:
    return Listing({name: np.concatenate(parts) for name, parts in pieces.items()}, facts)


# ------------------------------------------------------------------------------------------------------------- parsing


# Columns with several entries a sample: how many stand in another column.
RAGGED = {"letters": "lengths", "numbers": "counts"}


def _parsed(file: Path, reader: Reader) -> tuple[dict[str, list[np.ndarray]], dict[str, object]]:
    """The columns of a list, each in pieces, and the facts."""
    size, done, wrong, begun = file.stat().st_size, 0, 0, False
    pieces: dict[str, list[np.ndarray]] = defaultdict(list)
    started = said = time.monotonic()
    try:
        for block in plain.blocks(file):
            begun = begun or _begin(file, reader, block)
            if begun:
                found, more = _columns(block, reader)
                wrong += more
                for name, piece in found.items():
                    pieces[name].append(piece)
            done += len(block.data)
            if (now := time.monotonic()) - said > SAY:
                left = (now - started) * max(size - done, 0) / done
                log.info("%s: %d of %d MB parsed, %.0f s left", file, done / 1e6, size / 1e6, left)
                said = now
    except UnicodeDecodeError:
        read_lines(file)  # says so, with the place
        raise
    if not begun:
        raise UserError(f"{file} holds no samples; expected lines {reader.example}")
    conflicts = _conflicts(*(np.concatenate(pieces.pop(name)) for name in ("samples", "said")))
    if wrong or len(conflicts) or reader.exact() is not reader:
        _refuse(file, reader, conflicts, wrong + sum(map(len, pieces["labels"])))
    return pieces, _finished(pieces, reader)


def _finished(pieces: dict[str, list[np.ndarray]], reader: Reader) -> dict[str, object]:
    """The facts. Of `pieces`, numbers of entries become bounds."""
    facts = dict(reader.facts)
    if not reader.several:
        *letters, last = pieces["letters"]
        more = [pieces[name] for name in reader.extra]
        facts["fingerprint"] = fingerprint([*letters, last[:-1], *pieces["labels"]], *more)
    for counts, bounds in (("lengths", "bounds"), ("counts", "first_number")):
        if counts in pieces:
            pieces[bounds] = [np.zeros(1, np.int64), *_sums(pieces.pop(counts))]
    return facts


def _sums(pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    total = 0
    for piece in pieces:
        yield np.cumsum(piece, dtype=np.int64) + total
        total += int(piece.sum())


def _begin(file: Path, reader: Reader, block: plain.Block) -> bool:
    """Shows the reader the first line that is not blank, and returns whether this block has it."""
    for k in range(len(block.ends)):
        if (line := block.line(k)).strip():
            reader.begin(file, block.number + k, line)
            return True
    return False


def _columns(block: plain.Block, reader: Reader) -> tuple[dict[str, np.ndarray], int]:
    """The columns of a block, with a hash of each sample and one of its labels; and how many lines are wrong."""
    rows, found = _of_plain(block, reader)
    odd = np.ones(len(block.ends), bool)
    odd[rows] = False
    others = np.flatnonzero(odd & (block.ends > block.begins)).tolist()
    if not others:
        return found, 0
    right, more, wrong = _of_odd([(k, block.line(k)) for k in others], reader)
    kinds = np.zeros(len(block.ends), np.int8)
    kinds[rows], kinds[right] = 1, 2
    return _merged(kinds[kinds > 0] == 2, found, more), wrong


def _of_plain(block: plain.Block, reader: Reader) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The plain lines of a block [N], and their columns."""
    lines = plain.find(block, reader.form)
    right, labels, extra = reader.judged(lines.numbers)
    rows = np.flatnonzero(lines.found & right)
    starts, stops, labels = lines.starts[rows], lines.stops[rows], labels[rows]
    found = {
        "letters": plain.gathered(block.data, starts, stops),
        "labels": labels,
        "said": labels.view(np.uint64),
        **{name: column[rows].astype(reader.extra[name]) for name, column in extra.items()},
    }
    if reader.several:
        found |= {"counts": np.ones(len(rows), np.int32), "numbers": labels}
    return rows, found | _of_texts(block.data, starts, stops, found, reader)


def _of_odd(lines: Sequence[tuple[int, str]], reader: Reader) -> tuple[list[int], dict[str, np.ndarray], int]:
    """The same of other lines, one at a time; and how many are neither samples nor blank."""
    rows, samples, labels, wrong = [], [], [], 0
    for k, line in lines:
        try:
            if line.strip():
                sample, numbers = reader.parse(line)
                rows.append(k)
                samples.append(sample)
                labels.append(numbers)
        except ValueError:
            wrong += 1
    data, starts, stops = plain.joined([str(sample).encode() for sample in samples])
    found = {
        "letters": data[plain.MARGIN : -plain.MARGIN],
        "labels": np.array([numbers[0] for numbers in labels], np.int64),
        "said": np.array([_hash_of(numbers) for numbers in labels], np.uint64),
        **{name: np.array([getattr(sample, name) for sample in samples], t) for name, t in reader.extra.items()},
    }
    if reader.several:
        found["counts"] = np.array([len(numbers) for numbers in labels], np.int32)
        found["numbers"] = np.array([n for numbers in labels for n in numbers], np.int64)
    return rows, found | _of_texts(data, starts, stops, found, reader), wrong


def _of_texts(data, starts, stops, found: Mapping, reader: Reader) -> dict[str, np.ndarray]:
    """Lengths of paths, with the line end behind them, and hashes of the samples: of path and all of `extra`."""
    samples = plain.hashes(data, starts, stops)
    for name in reader.extra:
        samples = plain.mixed(samples ^ found[name].astype(np.uint64))
    return {"lengths": (stops - starts + 1).astype(np.int32), "samples": samples}


def _hash_of(labels: list[int]) -> int:
    return labels[0] if len(labels) == 1 else hash(tuple(labels)) & (2**64 - 1)


def _merged(second: np.ndarray, one: Mapping, other: Mapping) -> dict[str, np.ndarray]:
    """The columns of two as one: `second` [N] tells which samples are those of the other."""
    merged = {name: _alternating(second, one[name], other[name]) for name in one if name not in RAGGED}
    for name in one.keys() & RAGGED.keys():
        merged[name] = _alternating(np.repeat(second, merged[RAGGED[name]]), one[name], other[name])
    return merged


def _alternating(second: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    found = np.empty(len(second), one.dtype)
    found[~second], found[second] = one, other
    return found


def _conflicts(samples: np.ndarray, said: np.ndarray) -> np.ndarray:
    """The hashes of samples that come with several hashes of labels."""
    pairs = plain.mixed(samples ^ plain.mixed(said))
    pairs.sort()
    alone = np.sort(samples)
    if _different(alone) == _different(pairs):
        return alone[:0]
    order = np.argsort(samples, kind="stable")
    samples, said = samples[order], said[order]
    return np.unique(samples[1:][(samples[1:] == samples[:-1]) & (said[1:] != said[:-1])])


def _different(numbers: np.ndarray) -> int:
    """How many different ones there are among sorted numbers."""
    return len(numbers[:1]) + int(np.count_nonzero(numbers[1:] != numbers[:-1]))


def _refuse(file: Path, reader: Reader, conflicts: np.ndarray, total: int) -> None:
    """Raises `UserError` with what is wrong with a list: plain lines alone, of other samples than `conflicts`, are not.

    Nothing, where the hashes were equal and the samples are not.
    """
    parse_lines(file, _doubtful(file, reader, conflicts), reader.exact().parse, total)


def _doubtful(file: Path, reader: Reader, conflicts: np.ndarray) -> Iterator[tuple[int, str]]:
    for block in plain.blocks(file):
        rows, found = _of_plain(block, reader)
        doubtful = np.ones(len(block.ends), bool)
        doubtful[rows] = np.isin(found["samples"], conflicts)
        for k in np.flatnonzero(doubtful).tolist():
            if (line := block.line(k)).strip():
                yield block.number + k, line


def fingerprint(samples: Iterable, *more: Iterable) -> str:
    """Hash of samples in order, from pieces of bytes: paths, with a line end between two, then labels; other columns
    apart."""
    digest = hashlib.sha256()
    for piece in samples:
        digest.update(piece)
    if more:
        digest = hashlib.sha256(digest.hexdigest()[:16].encode())
    for column in more:
        for piece in column:
            digest.update(piece)
    return digest.hexdigest()[:16]
