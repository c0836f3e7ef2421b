"""Subtitles as files that players take: SubRip and WebVTT."""

from collections.abc import Sequence

Cue = tuple[float, float, str]  # seconds at which it comes and goes, and its text on one line


def srt(cues: Sequence[Cue]) -> str:
    """SubRip: numbered, with a comma before the milliseconds."""
    return "".join(
        f"{k}\n{stamp(start, ',')} --> {stamp(end, ',')}\n{text}\n\n" for k, (start, end, text) in enumerate(cues, 1)
    )


def vtt(cues: Sequence[Cue]) -> str:
    """WebVTT, https://www.w3.org/TR/webvtt1: `&`, `<` and `>` are escaped."""
    return "WEBVTT\n\n" + "".join(f"{stamp(start)} --> {stamp(end)}\n{_escaped(text)}\n\n" for start, end, text in cues)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def stamp(seconds: float, mark: str = ".") -> str:
    """`01:02:03.400`"""
    minutes, milliseconds = divmod(round(1000 * seconds), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{mark}{milliseconds % 1000:03d}"
