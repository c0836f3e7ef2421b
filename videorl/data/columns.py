"""Arrays in one file, mapped into memory, and the json beside it that says where each begins.

Processes that map the file share its pages, so memory stays the same however many they are and however long they run.
The json is written last: it marks the file as complete, and holds its SHA-256.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from videorl import atomic
from videorl.registry import UserError

ALIGNED = 64  # bytes


def head_of(file: Path) -> Path:
    """The json beside a file of arrays."""
    return file.with_name(file.name + ".json")


def read_head(file: Path, format: str, what: str, tool: str) -> dict:
    """What the json beside a file says. Raises `UserError` unless both are there, of that format, whole by their size.

    `what` and `tool` are for the message: what the file is called, and what makes it.
    """
    try:
        head = json.loads(head_of(file).read_text(encoding="utf-8"))
        size = file.stat().st_size
    except OSError as error:
        raise UserError(f"{what} {file}: {error.filename}: {error.strerror}; {tool} makes it") from None
    except ValueError:
        head, size = {}, -1
    if not isinstance(head, dict) or head.get("format") != format or head.get("bytes") != size:
        raise UserError(f"{what} {file} does not fit its json; delete both and run {tool} again")
    return head


def mapped(file: Path, head: Mapping) -> dict[str, np.ndarray]:
    """The arrays of a file by name; their pages are read as they are used."""
    data = np.memmap(file, np.uint8, mode="r")
    return {name: _array(data, **place) for name, place in head["arrays"].items()}


def _array(data: np.ndarray, dtype: str, shape: list[int], offset: int) -> np.ndarray:
    size = np.dtype(dtype).itemsize * math.prod(shape)
    return data[offset : offset + size].view(np.ndarray).view(dtype).reshape(shape)


def write(file: Path, arrays: Mapping[str, Iterable[np.ndarray]], head: Mapping) -> dict:
    """Writes arrays, each of which comes in pieces, and then the json with `head`; returns what it says."""
    digest, places = hashlib.sha256(), {}
    with atomic.writing(file) as stream:
        for name, pieces in arrays.items():
            places[name] = _append(stream, digest, pieces)
        size = stream.tell()
        head_of(file).unlink(missing_ok=True)  # that of an older file
    head = {**head, "bytes": size, "sha256": digest.hexdigest(), "arrays": places}
    atomic.write(head_of(file), json.dumps(head, indent=1))
    return head


def _append(stream, digest, pieces: Iterable[np.ndarray]) -> dict:
    """Writes one array that comes in pieces; returns its type, shape and place."""
    padding = bytes(-stream.tell() % ALIGNED)
    stream.write(padding)
    digest.update(padding)
    offset, length, kind = stream.tell(), 0, ""
    for piece in pieces:
        piece = np.ascontiguousarray(piece)
        stream.write(piece)
        digest.update(piece)
        length, kind = length + len(piece), piece.dtype.str
    return {"dtype": kind, "shape": [length], "offset": offset}


def sha256(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
