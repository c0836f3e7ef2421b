"""Captions of narrated videos: one csv file for each video, or one file for all, mapped into memory.

1.2 million small files are slow to open from a network disk, so `videorl index-captions` reads them once, into a file
of arrays (see `columns.py`)."""

import hashlib
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from videorl import atomic
from videorl.data import columns
from videorl.data.lists import read_columns, text_of
from videorl.registry import UserError
from videorl.video.errors import VideoError

FORMAT = "videorl captions 1"
PART = 10_000  # videos of one part: what is lost when the tool is killed
THREADS = 8  # files read at once: on a network disk each is mostly waited for


@dataclass(frozen=True)
class Captions:
    """The captions of one video: seconds [N] at which they start and end, and N texts. N >= 1."""

    starts: np.ndarray
    ends: np.ndarray
    texts: list[str]


def name_of(video_path: str) -> str:
    """The name under which a video's captions stand: its path up to the first dot, wherever that is."""
    return video_path.split(".")[0]


class CaptionFiles:
    """`<root>/<name>.csv` for each video, with the columns start, end (seconds) and text."""

    def __init__(self, root: str, key: str = "HOWTO100M.CAPTION_ROOT"):
        if not os.path.isdir(root):
            raise UserError(f"{key} {root!r} is no folder; name that of the caption csv files")
        self.root, self.fingerprint = Path(root), ""

    def of(self, name: str) -> Captions:
        """Raises `VideoError`, stage "index": no such file, a column is missing, no captions, a time that is none."""
        try:
            return self.read(name)
        except (OSError, ValueError) as error:
            raise _unreadable(name, error) from None

    def read(self, name: str) -> Captions:
        """The same, but raises OSError, and ValueError that says what is wrong with the file."""
        return _captions(list(read_columns(self.root / f"{name}.csv", ("start", "end", "text"))))


def _captions(rows: list[tuple[str, str, str]]) -> Captions:
    if not rows:
        raise ValueError("no captions")
    times = np.empty((2, len(rows)))
    for k, row in enumerate(rows):
        for column in (0, 1):
            times[column, k] = _seconds(row[column], k)
    texts = [text_of(text) for _, _, text in rows]
    if any("\0" in text for text in texts):
        raise ValueError("a text holds a NUL character")
    return Captions(times[0], times[1], texts)


def _seconds(cell: str, row: int) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"caption {row}: {cell[:20]!r} is no time in seconds")
    return value


def _unreadable(name: str, error: OSError | ValueError) -> VideoError:
    reason = getattr(error, "strerror", None) or error
    return VideoError(name, "index", f"captions {name}.csv: {reason}")


class CaptionIndex:
    """The same from the file that `build_index` writes. Raises `UserError` if it or its json is missing or cut."""

    def __init__(self, file: str | Path):
        self.file = Path(file)
        head = read_head(self.file)
        self.fingerprint = head["sha256"][:16]
        arrays = columns.mapped(self.file, head)
        self.names, self.order = arrays["names"], arrays["order"]
        self.first_caption, self.first_byte = arrays["first_caption"], arrays["first_byte"]
        self.starts, self.ends, self.text = arrays["starts"], arrays["ends"], arrays["text"]

    def __reduce__(self):
        return CaptionIndex, (str(self.file),)  # else the arrays themselves would go to the workers

    @property
    def unread(self) -> int:
        """Number of videos whose captions could not be read."""
        return int((np.diff(self.first_caption) == 0).sum())

    def of(self, name: str) -> Captions:
        """Raises `VideoError` for a video that is not in the index, and with the reason for one that could not be."""
        row = self._row(name.encode())
        if row is None:
            raise _unreadable(name, ValueError(f"not in {self.file.name}; make the index again"))
        rows = slice(self.first_caption[row], self.first_caption[row + 1])
        text = bytes(self.text[self.first_byte[row] : self.first_byte[row + 1]]).decode()
        if rows.start == rows.stop:
            raise VideoError(name, "index", text)
        return Captions(np.array(self.starts[rows]), np.array(self.ends[rows]), text.split("\0"))

    def _row(self, name: bytes) -> int | None:
        if len(name) > self.names.itemsize:
            return None
        place = int(np.searchsorted(self.names, np.array(name, self.names.dtype), sorter=self.order))
        found = place < len(self.order) and self.names[self.order[place]] == name
        return int(self.order[place]) if found else None


def read_head(file: Path) -> dict:
    """What the json beside an index says. Raises `UserError` unless both are there, whole by their size."""
    return columns.read_head(file, FORMAT, "caption index", "videorl index-captions")


# ------------------------------------------------------------------------------------------------------ making the file

Progress = Callable[[Iterable, int], Iterable]


def build_index(names: Sequence[str], root: str, out: Path, progress: Progress) -> dict:
    """Reads the captions of all videos into the file `out`, part by part; a run that was killed goes on where it was.

    A video whose captions are missing or wrong stands in it with the reason. `progress(parts, total)` gives the parts
    on. Returns the head. Raises `UserError` where the parts were made from another list or folder or no video has
    captions, and the OSError of a disk that fails.
    """
    captions, parts = CaptionFiles(root, "CAPTION_ROOT"), _parts_of(out)
    _claim(parts, names, root)
    files = [parts / f"{first:010d}.npz" for first in range(0, len(names), PART)]
    with ThreadPoolExecutor(THREADS) as pool:
        for k, file in progress(enumerate(files), len(files)):
            if not file.exists():
                _write_part(file, list(pool.map(lambda name: _read(captions, name), names[k * PART : (k + 1) * PART])))
    if not any(_load(file, "captions").any() for file in files):
        reason = bytes(_load(files[0], "text")[: _load(files[0], "bytes")[0]]).decode()
        shutil.rmtree(parts)
        raise UserError(f"CAPTION_ROOT {root}: none of {len(names)} videos has captions there; first: {reason}")
    head = _join(files, names, out, {"format": FORMAT, **_sources(names, root)})
    shutil.rmtree(parts)
    return head


def verify(file: Path, names: Sequence[str], root: str) -> dict:
    """The head of a finished index, of whose making nothing is left then.

    Raises `UserError` if its bytes have changed, or it was made from another list or folder.
    """
    head = read_head(file)
    if columns.sha256(file) != head["sha256"]:
        raise UserError(f"caption index {file} has changed since it was made; delete it and run again")
    _expect_sources(head, names, root, f"caption index {file}")
    if _parts_of(file).exists():
        shutil.rmtree(_parts_of(file))
    return head


def _sources(names: Sequence[str], root: str) -> dict[str, str]:
    """What an index is made from."""
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return {"list_sha256": digest, "caption_root": os.path.abspath(root)}


def _expect_sources(found: dict, names: Sequence[str], root: str, what: str) -> None:
    expected = _sources(names, root)
    if found["list_sha256"] != expected["list_sha256"]:
        raise UserError(f"{what} was made from another list; delete it, or write to another OUT")
    if found.get("caption_root") != expected["caption_root"]:
        raise UserError(
            f"{what} was made from CAPTION_ROOT {found.get('caption_root', '(unknown)')}, not"
            f" {expected['caption_root']}; delete it, or write to another OUT"
        )


def _parts_of(file: Path) -> Path:
    return file.with_name(file.name + ".parts")


def _claim(parts: Path, names: Sequence[str], root: str) -> None:
    """Marks the folder of parts as that of this list and folder of captions."""
    mark = parts / "list.json"
    if mark.exists():
        _expect_sources(json.loads(mark.read_text(encoding="utf-8")), names, root, str(parts))
        return
    parts.mkdir(parents=True, exist_ok=True)
    atomic.write(mark, json.dumps(_sources(names, root)))


def _read(captions: CaptionFiles, name: str) -> Captions | str:
    """The captions, or why there are none. Other errors than these two may be gone when the disk is read again."""
    try:
        return captions.read(name)
    except (FileNotFoundError, ValueError) as error:
        return _unreadable(name, error).reason


def _write_part(file: Path, found: list[Captions | str]) -> None:
    read = [c for c in found if isinstance(c, Captions)]
    texts = [("\0".join(c.texts) if isinstance(c, Captions) else c).encode() for c in found]
    arrays = {
        "captions": np.array([len(c.texts) if isinstance(c, Captions) else 0 for c in found], np.int64),
        "bytes": np.array([len(text) for text in texts], np.int64),
        "starts": np.concatenate([c.starts for c in read] or [np.empty(0)]),
        "ends": np.concatenate([c.ends for c in read] or [np.empty(0)]),
        "text": np.frombuffer(b"".join(texts), np.uint8),
    }
    with atomic.writing(file) as stream:
        np.savez(stream, **arrays)


def _join(files: list[Path], names: Sequence[str], out: Path, head: dict) -> dict:
    """Writes the parts, array by array, to `out`; returns what its json says of it."""
    encoded = np.array([name.encode() for name in names])
    arrays = {"names": [encoded], "order": [np.argsort(encoded, kind="stable")]}
    for key, counts in (("first_caption", "captions"), ("first_byte", "bytes")):
        arrays[key] = [np.concatenate([[0], *(_load(file, counts) for file in files)]).cumsum()]
    total = int(arrays["first_caption"][0][-1])
    arrays |= {key: map(partial(_load, key=key), files) for key in ("starts", "ends", "text")}
    return columns.write(out, arrays, {**head, "videos": len(names), "captions": total})


def _load(file: Path, key: str) -> np.ndarray:
    try:
        with np.load(file) as part:
            return part[key]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{file} is damaged; delete it and run again") from None
