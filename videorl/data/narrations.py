"""Narrations of long videos: lists of (video, start, end, text or texts), as LaViLa publishes them for Ego4D.

A list is a pickle of tuples: of people, `(video, start, end, text)`; rephrased, with a list of texts; by a narrator,
`(video, start, end, texts, numbers)`. Four million tuples take 0.75 GB in each process, and minutes to read:
`videorl convert-metadata` writes them once into a file of arrays beside the list (see `columns.py`), which is then
read in its place.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from videorl.data import columns
from videorl.data.pickles import load_plain
from videorl.registry import UserError

FORMAT = "videorl narrations 1"
TOOL = "videorl convert-metadata"
ROWS = "(video, start, end, text) or (video, start, end, [texts]) or (video, start, end, [texts], [numbers])"


@dataclass(frozen=True)
class Narration:
    """One row: its video, its seconds, its texts (none: nothing was narrated), and whether a model wrote them."""

    video: str
    start: float
    end: float
    texts: tuple[str, ...]
    pseudo: bool


class Narrations:
    """The rows of one or more lists, in order. Pickles as the names of the lists where these are files of arrays."""

    def __init__(self, arrays: dict[str, np.ndarray], fingerprint: str, source: str = ""):
        self.arrays, self.fingerprint, self.source = arrays, fingerprint, source

    def __len__(self) -> int:
        return len(self.arrays["video"])

    def __getitem__(self, i: int) -> Narration:
        a = self.arrays
        first, last = int(a["first_text"][i]), int(a["first_text"][i + 1])
        bounds = a["first_byte"][first : last + 1].tolist()
        texts = tuple(bytes(a["text"][b:e]).decode() for b, e in zip(bounds, bounds[1:]))
        return Narration(self.name(i), float(a["start"][i]), float(a["end"][i]), texts, bool(a["pseudo"][i]))

    def name(self, i: int) -> str:
        """The video of row i."""
        number = int(self.arrays["video"][i])
        first, last = self.arrays["first_letter"][number : number + 2].tolist()
        return bytes(self.arrays["letters"][first:last]).decode()

    def __reduce__(self):
        if self.source:
            return read, (self.source,)
        return Narrations, (self.arrays, self.fingerprint)


def read(path: str | Path, key: str = "METADATA") -> Narrations:
    """A list by the name of its pickle or of the file made from it. Raises `UserError` (see `load_plain`, `packed`).

    Of a pickle, the file of arrays beside it is read if it was made from these very bytes.
    """
    if not os.path.isfile(path):
        raise UserError(f"{key} {str(path)!r}: no such file; name a list of narrations, e.g. ego4d_train.pkl")
    path = Path(path)
    if path.suffix == ".columns":
        return _mapped(path)
    made, digest = columns_of(path), columns.sha256(path)
    if columns.head_of(made).is_file() and (found := _mapped(made)).fingerprint == digest[:16]:
        return found
    return Narrations(packed(load_plain(path), path), digest[:16])


def _mapped(file: Path) -> Narrations:
    head = columns.read_head(file, FORMAT, "narrations", TOOL)
    return Narrations(columns.mapped(file, head), head["source_sha256"][:16], str(file.absolute()))


def convert(path: Path) -> str:
    """Writes the file of arrays beside a pickle; what there is to tell of it. Raises `UserError`, and OSError."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a list of narrations, e.g. ego4d_train.pkl")
    made, digest = columns_of(path), columns.sha256(path)
    if columns.head_of(made).is_file() and _mapped(made).fingerprint == digest[:16]:
        return f"{made}: there already, from this very list"
    arrays = packed(load_plain(path), path)
    head = {"format": FORMAT, "source": path.name, "source_sha256": digest, "rows": len(arrays["video"])}
    size = columns.write(made, {name: [array] for name, array in arrays.items()}, head)["bytes"]
    rows, videos = len(arrays["video"]), len(arrays["first_letter"]) - 1
    return f"{made}: {rows} rows of {videos} videos, {size / 1e6:.1f} MB"


def columns_of(path: Path) -> Path:
    """The file of arrays that is made from a list."""
    return path.with_name(path.name + ".columns")


def packed(rows: Sequence, path: Path) -> dict[str, np.ndarray]:
    """The rows as arrays. Raises `UserError` for the first that is none: its number from 0, what is wrong with it.

    Rows that cannot be trained on but are well formed stay (no text, an end before the start): a data set says so of
    each when it comes to it.
    """
    if not isinstance(rows, (list, tuple)) or not rows:
        raise UserError(f"{path}: expected a list of rows {ROWS}, found {_kind(rows)}")
    numbers: dict[str, int] = {}
    video, times = np.empty(len(rows), np.int32), np.empty((len(rows), 2))
    counts, pseudo = np.empty(len(rows), np.int64), np.empty(len(rows), bool)
    texts: list[bytes] = []
    for i, row in enumerate(rows):
        name, start, end, own = _checked(row, i, path)
        video[i], times[i] = numbers.setdefault(name, len(numbers)), (start, end)
        counts[i], pseudo[i] = len(own), len(row) == 5
        texts += own
    first_byte, text = _joined(texts)
    first_letter, letters = _joined([name.encode() for name in numbers])
    return {
        "video": video,
        "start": times[:, 0].copy(),
        "end": times[:, 1].copy(),
        "pseudo": pseudo,
        "first_text": np.concatenate([[0], np.cumsum(counts)]),
        "first_byte": first_byte,
        "text": text,
        "first_letter": first_letter,
        "letters": letters,
    }


def _checked(row, i: int, path: Path) -> tuple[str, float, float, list[bytes]]:
    if not isinstance(row, (list, tuple)) or len(row) not in (4, 5):
        raise UserError(f"{path}: row {i}: expected {ROWS}, found {_kind(row)}")
    name, start, end, text = row[:4]
    if not isinstance(name, str) or not name or os.path.basename(name) != name or name in (".", "..") or "\0" in name:
        raise UserError(f"{path}: row {i}: expected the name of a video, found {str(name)[:40]!r}")
    if not all(isinstance(t, (int, float)) and math.isfinite(t) and t >= 0 for t in (start, end)):
        raise UserError(f"{path}: row {i}: expected seconds of start and end, found {start!r:.20} and {end!r:.20}")
    texts = [text] if isinstance(text, str) else [] if text is None else text
    if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) for t in texts):
        raise UserError(f"{path}: row {i}: expected a text or a list of texts, found {_kind(text)}")
    try:
        name.encode()
        return name, float(start), float(end), [t.encode() for t in texts if t.strip()]
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: row {i}: expected text, found half a character in {error.object[:40]!r}") from None


def _kind(value) -> str:
    size = f" of {len(value)}" if isinstance(value, (list, tuple, dict, set)) else ""
    return f"{type(value).__name__}{size}"


def _joined(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Where each of the texts begins, and all of them end to end."""
    bounds = np.fromiter(accumulate(map(len, texts), initial=0), np.int64, len(texts) + 1)
    return bounds, np.frombuffer(b"".join(texts), np.uint8)


class Together:
    """Several lists, one after the other, as one; of their rows the first of every `every`."""

    def __init__(self, lists: Sequence[Narrations], every: int = 1):
        self.lists, self.every = list(lists), every
        self.ends = list(accumulate(map(len, self.lists)))
        parts = [part.fingerprint for part in self.lists] + [f"every {every}"] * (every > 1)
        joined = " ".join(parts)
        self.fingerprint = hashlib.sha256(joined.encode()).hexdigest()[:16] if len(parts) > 1 else joined

    def __len__(self) -> int:
        return -(-self.ends[-1] // self.every)

    def _find(self, i: int) -> tuple[Narrations, int]:
        i *= self.every
        k = int(np.searchsorted(self.ends, i, side="right"))
        return self.lists[k], i - (self.ends[k - 1] if k else 0)

    def __getitem__(self, i: int) -> Narration:
        own, row = self._find(i)
        return own[row]

    def name(self, i: int) -> str:
        own, row = self._find(i)
        return own.name(row)
