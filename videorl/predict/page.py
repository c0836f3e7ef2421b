"""Predictions as one HTML file that loads nothing: the clips play in it, and over time there are curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videorl.predict.classifier import Curve, Prediction
from videorl.predict.segments import segments
from videorl.report.gallery import link, preview
from videorl.report.pages import save, templates

WIDTH, HEIGHT = 600, 120  # of a curve, in its own units
MOST = 200  # clips on a page: each takes some 50 kB
COLOURS = 6  # of the report's style


@dataclass(frozen=True)
class Line:
    """A class over time: its colour, and its path in SVG."""

    name: str
    colour: int
    path: str


@dataclass(frozen=True)
class Block:
    """A segment as a bar: place and width in parts of 100, colour (none: a class without a line), what it says."""

    left: float
    width: float
    colour: int | None
    text: str


@dataclass(frozen=True)
class Tile:
    """A video on the page. Pictures are data URIs; where none can be made, `reason` says why."""

    path: str
    link: str
    top: Sequence[tuple[str, float]]
    moving: str
    still: str
    reason: str
    lines: Sequence[Line]
    blocks: Sequence[Block]
    seconds: float


def write(file: Path, found: Sequence[Prediction], *, top: int, source: str, unreadable: Mapping[str, str]) -> None:
    """Writes the page of the first MOST predictions. `unreadable`: path -> reason. Raises `OSError`."""
    template = templates(Path(__file__).parent).get_template("page.html.j2")
    text = template.render(
        tiles=[_tile(one, top) for one in found[:MOST]],
        videos=len(found),
        source=source,
        unreadable=unreadable,
        **{"width": WIDTH, "height": HEIGHT},
    )
    save(file, text)


def _tile(one: Prediction, top: int) -> Tile:
    moving, still, reason = preview(one.path)
    curve, best = one.windows, one.top(top)
    colours = {one.classes.index(name): k for k, (name, _) in enumerate(best[:COLOURS])}
    lines = [Line(one.classes[c], k, _path(curve, c)) for c, k in colours.items()] if curve else []
    blocks = _blocks(one, colours) if curve else []
    seconds = float(curve.times[-1, 1]) if curve else 0.0
    return Tile(one.path, link(one.path), best, moving, still, reason, lines, blocks, seconds)


def _path(curve: Curve, label: int) -> str:
    """A point for each window, in its middle."""
    x = WIDTH * curve.times.mean(1) / curve.times[-1, 1]
    y = HEIGHT * (1 - curve.scores[:, label])
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in np.stack([x, y], 1)) + "h0"


def _blocks(one: Prediction, colours: Mapping[int, int]) -> list[Block]:
    end = one.windows.times[-1, 1]
    return [
        Block(
            100 * s.start / end,
            100 * (s.end - s.start) / end,
            colours.get(s.label),
            f"{one.classes[s.label]}, {s.start:.1f} to {s.end:.1f} s, {100 * s.score:.0f} %",
        )
        for s in segments(one.windows)
    ]
