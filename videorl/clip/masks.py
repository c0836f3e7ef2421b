"""Which tokens of a clip a masked autoencoder sees, and which it predicts.

Tokens are numbered by time, row and column on the grid of a clip. Tong et al., VideoMAE, NeurIPS 2022 (tubes), and Wang
et al., VideoMAE V2, CVPR 2023 (running cells); OpenGVLab/VideoMAEv2, deepglint/V-SWIFT.
"""

import math

import numpy as np

from videorl.registry import UserError, did_you_mean
from videorl.spec import Masking, Spec

Grid = tuple[int, int, int]

CHOICES = {
    "kind": ("tube", "random"),
    "rounding": ("keep", "mask"),
    "decoder": ("all", "running_cell"),
    "target": ("tubelet", "frame"),
}
# Tokens of a cell that are left out, in reading order; one frame later they are those of the numbers rolled by one.
CELL = (True, False, False, True)


def draw(rng, grid: Grid, masking: Masking) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that the encoder sees and tokens to be predicted, int64, ascending; their numbers depend on no draw.

    With the running cell, tokens to be predicted may be visible too. `rng`: a numpy Generator.
    """
    places = grid[1] * grid[2] if masking.kind == "tube" else math.prod(grid)
    visible = seen(rng.permutation(places), grid, masking)
    left_out = visible if masking.decoder == "all" else running_cell(grid, int(rng.integers(len(CELL))))
    return np.flatnonzero(visible), np.flatnonzero(~left_out)


def seen(order: np.ndarray, grid: Grid, masking: Masking) -> np.ndarray:
    """Which tokens are visible, bool [tokens], when `order` shuffles the places of a frame (tube) or of the clip."""
    return np.tile(order < kept(len(order), masking), math.prod(grid) // len(order))


def kept(places: int, masking: Masking) -> int:
    """How many of so many places stay visible. The two published roundings differ by one at most ratios."""
    if masking.rounding == "keep":
        return int(places * (1 - masking.ratio))
    return places - int(masking.ratio * places)


def running_cell(grid: Grid, phase: int) -> np.ndarray:
    """Which tokens V2's decoder leaves out, bool [tokens]: two in each 2 x 2, others in each of four frames.

    `phase` 0..3: where in this cycle the first frame stands.
    """
    frames, rows, columns = grid
    cells = np.stack([np.roll(CELL, -(phase + t)).reshape(2, 2) for t in range(frames)])
    return np.tile(cells, (1, rows // 2, columns // 2)).reshape(-1)


def lengths(spec: Spec) -> tuple[int, int]:
    """How many tokens of a training clip are visible and how many are predicted. Raises as `checked_grid` does."""
    grid = checked_grid(spec, spec.clip.train_size)
    visible, masked = draw(np.random.default_rng(0), grid, spec.masking)
    return len(visible), len(masked)


def token_grid(spec: Spec, size: int) -> Grid:
    """Tokens of a clip of `size` pixels along time, rows, columns. Raises `UserError` where patches do not fill it."""
    clip = (spec.clip.frames, size, size)
    if any(length % part for length, part in zip(clip, spec.patch, strict=True)):
        raise UserError(
            f"clips of frames, rows, columns {clip}: expected multiples of MODEL.PATCH_SIZE {tuple(spec.patch)};"
            " change DATA.NUM_FRAMES, DATA.TRAIN_CROP_SIZE, DATA.TEST_CROP_SIZE or MODEL.PATCH_SIZE"
        )
    return tuple(length // part for length, part in zip(clip, spec.patch, strict=True))


def checked_grid(spec: Spec, size: int) -> Grid:
    """`token_grid`. Raises `UserError` for masks that cannot be drawn on it, too."""
    grid = token_grid(spec, size)
    _check(spec.masking, grid)
    return grid


def _check(masking: Masking, grid: Grid) -> None:
    for key, known in CHOICES.items():
        value = getattr(masking, key)
        if value not in known:
            raise UserError(f"MASK.{key.upper()} {value!r}: expected {' or '.join(known)}{did_you_mean(value, known)}")
    if not 0 <= masking.ratio < 1:
        raise UserError(f"MASK.RATIO {masking.ratio}: expected above 0 and below 1 (0: no masks, for other models)")
    places = grid[1] * grid[2] if masking.kind == "tube" else math.prod(grid)
    if not 0 < kept(places, masking) < places:
        found = f"{kept(places, masking)} of {places} tokens"
        raise UserError(f"MASK.RATIO {masking.ratio} leaves {found} visible: expected some, not all")
    if masking.decoder == "running_cell" and (grid[1] % 2 or grid[2] % 2):
        raise UserError(
            f"MASK.DECODER running_cell: expected even rows and columns of tokens, found {grid[1]} x {grid[2]}; use all"
        )
