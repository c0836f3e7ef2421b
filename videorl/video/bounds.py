"""What a file claims, held against its bytes before FFmpeg believes it: its size, and the samples of an mp4.

FFmpeg lists all frames that a header names before it reads one: a file of 4 kB whose frames lie upon each other had
800,000, and took 12 s to open. It reads the zeros of 2 GiB that were never written for half a minute.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterator

MOST_HOLES = 2**26  # bytes; a file system stores nothing where nobody wrote
MOST_INFLATED = 2**26  # bytes of a header that is kept compressed
DEEPEST = 10  # boxes in boxes, as FFmpeg goes down
# Boxes that hold the tables of samples, or boxes that do (ISO/IEC 14496-12)
NESTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"mvex", b"edts", b"udta", b"dinf", b"wave"}

Read = Callable[[int, int], bytes]  # (place, bytes) -> those that are there


def holes(file: int) -> int:
    """Bytes of an open file that were never written, as far as its file system tells; counted until there are many."""
    end, at, found = os.fstat(file).st_size, 0, 0
    while at < end and found <= MOST_HOLES:
        hole = _next(file, at, os.SEEK_HOLE, end)
        at = _next(file, hole, os.SEEK_DATA, end)
        found += at - hole
    return found


def _next(file: int, at: int, kind: int, end: int) -> int:
    try:
        return os.lseek(file, at, kind)
    except OSError:  # none, or the file system does not know
        return end


def promised(file: int) -> int:
    """Samples of all tracks that the headers of an mp4 or mov file name, those of fragments among them."""
    return _samples(lambda at, count: os.pread(file, count, at), 0, os.fstat(file).st_size, 0)


def _samples(read: Read, at: int, end: int, depth: int) -> int:
    return sum(_samples_of(name, read, start, stop, depth) for name, start, stop in _boxes(read, at, end))


def _samples_of(name: bytes, read: Read, at: int, end: int, depth: int) -> int:
    if name in NESTS and depth < DEEPEST:
        return _samples(read, at, end, depth + 1)
    if name == b"cmov":  # a compressed movie header
        header = _inflated(read, at, end)
        return _samples(lambda at, count: header[at : at + count], 0, len(header), depth + 1)
    places = {b"stsz": 8, b"stz2": 8, b"trun": 4}  # of the count, behind the version and flags
    return int.from_bytes(read(at + places[name], 4), "big") if name in places else 0


def _boxes(read: Read, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and end of what is in each box."""
    while at + 8 <= end:
        head = read(at, 16)
        if len(head) < 8:
            return
        length, name = struct.unpack_from(">I4s", head)
        size = 8
        if length == 1 and len(head) == 16:
            length, size = struct.unpack_from(">Q", head, 8)[0], 16
        length = length or end - at
        if length < size:
            return
        yield name, at + size, min(at + length, end)
        at += length


def _inflated(read: Read, at: int, end: int) -> bytes:
    for name, start, stop in _boxes(read, at, end):
        if name == b"cmvd":
            try:
                return zlib.decompressobj().decompress(read(start + 4, min(stop - start, MOST_INFLATED)), MOST_INFLATED)
            except zlib.error:
                return b""
    return b""
