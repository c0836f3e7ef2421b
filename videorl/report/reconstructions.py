"""Reconstructions of masked clips as pictures that play: the clip, what the model saw of it, what it made of that."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from videorl.report.gallery import webp
from videorl.report.pages import save, templates

GAP = 6  # transparent pixels between the four of a strip


@dataclass(frozen=True)
class Strip:
    """The four pictures of a clip side by side, in one that plays: so they stay in step. `facts`: its figures."""

    path: str
    facts: Sequence[tuple[str, str]]
    moving: str
    still: str


def strip(path: str, pictures: np.ndarray, facts: Sequence[tuple[str, str]]) -> Strip:
    """`pictures`: uint8 `[4, T, H, W, 3]`: the clip, what is visible, reconstructed, the same with true statistics."""
    frames = [Image.fromarray(frame) for frame in side_by_side(pictures)]
    return Strip(path, facts, webp(frames), webp(frames[len(frames) // 2 :][:1]))


def side_by_side(pictures: np.ndarray) -> np.ndarray:
    """uint8 `[4, T, H, W, 3]` -> `[T, H, 4 W + gaps, 4]`, the last being transparency."""
    opaque = np.full((*pictures.shape[:-1], 4), 255, np.uint8)
    opaque[..., :3] = pictures
    gap = np.zeros((*opaque.shape[1:3], GAP, 4), np.uint8)
    return np.concatenate([part for picture in opaque for part in (picture, gap)][:-1], axis=2)


def write(file: Path, strips: Sequence[Strip], *, title: str, notes: Sequence[str], unreadable: dict[str, str]) -> None:
    """A page of strips alone, which loads nothing. `unreadable`: path -> reason."""
    text = (
        templates()
        .get_template("reconstructions.html.j2")
        .render(
            strips=strips,
            title=title,
            notes=notes,
            unreadable=unreadable,
        )
    )
    save(file, text)
