"""Texts with the seconds in which they are spoken, in SubRip (.srt), WebVTT (.vtt) or csv (start,end,text)."""

import html
import re
from collections.abc import Sequence
from pathlib import Path

from videorl.data.deduplicate import Caption
from videorl.data.lists import read_columns
from videorl.registry import UserError

TIMES = re.compile(r"^\s*([\d:]+[.,]\d+)\s*-->\s*([\d:]+[.,]\d+)")
MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


def read(file: Path) -> list[Caption]:
    """The lines of a file that have a text, by time. Raises `UserError`: no such file, no line, a time that is none."""
    try:
        if file.suffix == ".csv":
            found = [(start, end, text) for start, end, text in read_columns(file, ("start", "end", "text"))]
        else:
            found = _cues(file.read_text(encoding="utf-8-sig").splitlines())
            if file.suffix == ".vtt":
                found = [(start, end, html.unescape(text)) for start, end, text in found]
        captions = [
            Caption(_seconds(start), _seconds(end), " ".join(text.split()))
            for start, end, text in found
            if text.strip()
        ]
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; name a .srt, .vtt or .csv of what is said") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    if not captions:
        raise UserError(f"{file}: no line of text with times; expected a .srt, .vtt or .csv of what is said")
    return sorted(captions)


def _cues(lines: Sequence[str]) -> list[tuple[str, str, str]]:
    """Start, end and text of each cue: the lines below its times, up to an empty one."""
    found: list[tuple[str, str, list[str]]] = []
    inside = False
    for line in lines:
        if times := TIMES.match(line):
            found.append((times[1], times[2], []))
            inside = True
        elif inside and line.strip():
            found[-1][2].append(MARKUP.sub("", line).strip())
        else:
            inside = False
    return [(start, end, " ".join(filter(None, text))) for start, end, text in found]


def _seconds(text: str) -> float:
    """`1:02:03,5`, `62:03.5` or `3723.5`."""
    parts = text.strip().replace(",", ".").split(":")
    try:
        seconds = sum(float(part) * 60**k for k, part in enumerate(reversed(parts)))
    except ValueError:
        seconds = -1.0
    if len(parts) > 3 or not 0 <= seconds < 1e7:
        raise ValueError(f"{text[:20]!r} is no time")
    return seconds
