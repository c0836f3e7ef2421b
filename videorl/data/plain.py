"""Plain lines of a list, a block of them at once: a path with the ending of a video, and whole numbers after it.

Most lines of most lists are so; what they mean is told from their bytes. Whatever else may stand on a line (quotation
marks, white space at its ends, a path without ending or to outside …) is for the reader of one line: to both, a plain
line means the same.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videorl.video.folder import EXTENSIONS

SIZE = 2**20  # bytes of a block: what is made of it on the way stays in the cache of a core
MARGIN = 8  # bytes before and behind a block, so that words of 8 bytes may reach beyond it

ZEROS, TENS, HIGH, CASE = (np.uint64(int(byte * 8, 16)) for byte in ("30", "76", "80", "20"))
MIX = np.uint64(0x9E3779B97F4A7C15)


def _endings() -> dict[int, np.ndarray]:
    """Length -> the endings of video files of that length, as numbers of their bytes."""
    found: dict[int, list[int]] = {}
    for ending in sorted(EXTENSIONS):
        found.setdefault(len(ending), []).append(int.from_bytes(ending.encode(), "little"))
    return {length: np.array(codes, np.uint64) for length, codes in found.items()}


ENDINGS = _endings()


@dataclass(frozen=True)
class Block:
    """Whole lines: their bytes [MARGIN + … + MARGIN], where each begins and ends there, and the number of the first."""

    data: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    number: int

    @classmethod
    def of(cls, text: bytes, number: int) -> "Block":
        data = np.frombuffer(bytes(MARGIN) + text + bytes(MARGIN), np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        return cls(data, np.concatenate([[MARGIN], ends[:-1] + 1]), ends, number)

    def line(self, k: int) -> str:
        return self.data[self.begins[k] : self.ends[k]].tobytes().decode()


def blocks(file: Path) -> Iterator[Block]:
    """The lines of a list. Raises `UnicodeDecodeError` where it is no UTF-8 text."""
    number, rest = 1, b""
    with open(file, "rb") as stream:
        start = stream.read(len(codecs.BOM_UTF8))
        rest = b"" if start == codecs.BOM_UTF8 else start
        while True:
            piece = stream.read(SIZE)
            whole, newline, behind = (rest + piece).rpartition(b"\n") if piece else (rest, b"\n", b"")
            if newline:
                # Line ends as Python reads text; at no others, for file names may hold them.
                text = (whole + newline).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
                if not text.isascii():
                    text.decode()
                block = Block.of(text, number)
                number += len(block.ends)
                yield block
            if not piece:
                return
            rest = behind


@dataclass(frozen=True)
class Form:
    """What a plain line is made of: `numbers` whole numbers behind the path, one of `separators` in front of each.

    `signed`: they may be negative. `source`: a word stands before the path. `outside`: paths may be absolute. Where
    there are no separators, no line is plain.
    """

    separators: bytes
    numbers: int
    signed: bool = False
    source: bool = False
    outside: bool = False


@dataclass(frozen=True)
class Plain:
    """Of each line whether it is plain [N], where its path begins and ends in the block [N], and its numbers [K, N]."""

    found: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    numbers: np.ndarray


def find(block: Block, form: Form) -> Plain:
    """The plain lines of a block. What stands for the others means nothing."""
    data, starts, words = block.data, block.begins, _words(block.data)
    numbers = np.zeros((form.numbers, len(starts)), np.int64)
    places = np.flatnonzero(np.logical_or.reduce([data == byte for byte in form.separators or b"\n"]))
    if not form.separators or len(places) < form.numbers:
        return Plain(np.zeros(len(starts), bool), starts, starts, numbers)
    before = np.searchsorted(places, block.ends)  # separators up to the end of each line
    bounds = [places[np.maximum(before - k, 0)] for k in range(form.numbers, 0, -1)] + [block.ends]
    stops = bounds[0]
    found = (before >= form.numbers) & (stops > starts)
    for k in range(form.numbers):
        numbers[k], good = _numbers(data, words, bounds[k] + 1, bounds[k + 1], form.signed)
        found &= good
    if form.source:
        first = places[np.minimum(np.searchsorted(places, starts), len(places) - 1)]
        found &= (first > starts) & (first + 1 < stops) & (data[starts] > ord(" "))
        starts = first + 1
    stops = np.maximum(stops, starts)
    found &= _have_ending(data, words, starts, stops) & _begin_well(data, starts, form)
    found[np.searchsorted(block.ends, _odd(data[MARGIN:-MARGIN], form) + MARGIN)] = False
    return Plain(found, starts, stops, numbers)


def _words(data: np.ndarray) -> np.ndarray:
    """The 8 bytes from each byte on as a number, the first byte the lowest."""
    return np.ndarray(len(data) - 7, "<u8", data, strides=(1,))


def _numbers(data, words, starts, stops, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """The number that stands at each place, of 8 digits at the most, and whether there is one."""
    negative = (data[starts] == ord("-")) & signed
    digits = stops - starts - negative
    good = (digits >= 1) & (digits <= 8)
    shift = (64 - 8 * np.clip(digits, 1, 8)).astype(np.uint64)
    value = (words[stops - 8] >> shift << shift) - (ZEROS >> shift << shift)
    good &= ((value + TENS) | value) & HIGH == 0
    for mask, factor, bits in (
        (0x0F0F0F0F0F0F0F0F, 10 * 2**8 + 1, 8),
        (0x00FF00FF00FF00FF, 100 * 2**16 + 1, 16),
        (0x0000FFFF0000FFFF, 10000 * 2**32 + 1, 32),
    ):
        value = (value & np.uint64(mask)) * np.uint64(factor) >> np.uint64(bits)
    value = value.astype(np.int64)
    return np.where(negative, -value, value), good


def _have_ending(data, words, starts, stops) -> np.ndarray:
    """Whether a name with the ending of a video file stands at each place."""
    found, rest, tails = np.zeros(len(starts), bool), np.arange(len(starts)), words[stops - 8] | CASE
    for length, codes in ENDINGS.items():
        hit = np.isin(tails[rest] >> np.uint64(64 - 8 * length), codes)
        rows, rest = rest[hit], rest[~hit]
        dots = stops[rows] - length
        stem = data[dots - 1]
        found[rows] = (dots > starts[rows]) & (stem != ord("/")) & (stem != ord("."))
    return found


def _begin_well(data, starts, form: Form) -> np.ndarray:
    """Whether a path from here on is no home folder, none of Windows, and none to outside unless that is allowed."""
    first = data[starts]
    good = (first > ord(" ")) & (first < 127) & (first != ord("~")) & (data[starts + 1] != ord(":"))
    return good if form.outside else good & (first != ord("/"))


def _odd(data, form: Form) -> np.ndarray:
    """Places of bytes that no plain line has."""
    odd = ((data < ord(" ")) & (data != ord("\n"))) | (data == ord('"')) | (data == ord("\\"))
    if ord("\t") in form.separators:
        odd &= data != ord("\t")
    if form.source:  # white space that is no ASCII would end the first word
        odd |= data >= 128
    if not form.outside:  # `..` and `://`
        dot, slash = data == ord("."), data == ord("/")
        odd[1:] |= (dot[1:] & dot[:-1]) | (slash[1:] & (data[:-1] == ord(":")))
    return np.flatnonzero(odd)


def hashes(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """A number uint64 [N] for the bytes from each start to its stop, of which equal ones have the same."""
    words, found, at, rows = _words(data), mixed((stops - starts).astype(np.uint64)), starts, np.arange(len(starts))
    while len(rows):
        left = stops[rows] - at
        unused = (64 - 8 * np.clip(left, 1, 8)).astype(np.uint64)
        found[rows] = mixed(found[rows] ^ (words[at] << unused))
        more = left > 8
        rows, at = rows[more], at[more] + 8
    return found


def mixed(numbers: np.ndarray) -> np.ndarray:
    """Other numbers [N], of which each bit depends on most of those of the number: one to one."""
    numbers = (numbers ^ (numbers >> np.uint64(32))) * MIX
    return numbers ^ (numbers >> np.uint64(29))


def gathered(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The bytes from each start to its stop, a line end behind each. They lie in order, and one byte apart or more."""
    change = np.zeros(len(data) + 1, np.int8)
    change[starts] = 1
    change[stops + 1] -= 1
    letters = data[np.cumsum(change[:-1], dtype=np.int8).view(bool)]
    letters[np.cumsum(stops - starts + 1) - 1] = ord("\n")
    return letters


def joined(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts end to end between margins, and where each starts and stops: a line end stands behind each."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    stops = MARGIN + np.cumsum(lengths + 1) - 1
    data = np.frombuffer(bytes(MARGIN) + b"".join(text + b"\n" for text in texts) + bytes(MARGIN), np.uint8)
    return data, stops - lengths, stops
