"""Lines of text and the seconds of a video as one page: their similarities, and when each line is shown."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from videorl.report.pages import templates

INK = (46, 110, 200)  # of the highest similarity; the lowest is transparent, so that the page may be light or dark
TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)  # seconds between two marks of time
MARKS = 8  # of time, at most


@dataclass(frozen=True)
class Row:
    """A line: its text, when it is spoken and when it happens or might (seconds), its best cosine, and the verdict."""

    text: str
    spoken: tuple[float, float]
    found: tuple[float, float]
    score: float
    shown: bool


def page(title: str, rows: Sequence[Row], similarity: np.ndarray, notes: Sequence[str]) -> str:
    """HTML that loads nothing. similarity [rows, seconds]; `notes` stand below the title."""
    seconds = similarity.shape[1]
    path = [(sum(row.found) / 2, k + 0.5) for k, row in enumerate(rows) if row.shown]
    return (
        templates()
        .get_template("alignment.html.j2")
        .render(
            title=title,
            rows=rows,
            notes=notes,
            seconds=seconds,
            matrix=_picture(similarity),
            path=" ".join(f"{x:g},{y:g}" for x, y in path),
            ticks=_ticks(seconds),
            clock=clock,
        )
    )


def clock(seconds: float) -> str:
    """`0:07`, `1:02:03`"""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _ticks(seconds: int) -> list[int]:
    step = next((step for step in TICKS if seconds / step <= MARKS), seconds)
    return list(range(0, seconds, step))


def _picture(values: np.ndarray) -> str:
    """A data URI: one pixel a value."""
    low, high = float(values.min()), float(values.max())
    pixels = np.empty((*values.shape, 4), np.uint8)
    pixels[..., :3] = INK
    pixels[..., 3] = np.rint(255 * (values - low) / (high - low or 1.0))
    out = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
