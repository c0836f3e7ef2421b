"""Clips as patches of pixels, the targets of masked autoencoders, and the way back.

Tong et al., VideoMAE, NeurIPS 2022. Tokens are numbered by time, row and column on the grid (T/t, H/p, W/p); the values
of a patch are in order of frame, row, column, colour.
"""

import torch
from torch import Tensor

EPS = 1e-6
Grid = tuple[int, int, int]


def patches(pixels: Tensor, index: Tensor, patch: Grid) -> Tensor:
    """Tokens `index` `[B, K]` of clips `[B, T, C, H, W]` in 0..255, as `[B, K, t*p*p*C]` in 0..1 (float32 of uint8).

    `patch` is (t, p, p): frames, rows and columns of a token, which divide those of the clip.
    """
    cells = _cells(pixels, patch)
    chosen = cells[_place(index, cells)]  # [B, K, t, C, p, p]
    return chosen.movedim(3, -1).flatten(2) / 255


def painted(pixels: Tensor, index: Tensor, values: Tensor, patch: Grid) -> Tensor:
    """The way back of `patches`: a copy of the clips with `values` `[B, K, t*p*p*C]` in 0..1 as tokens `index`.

    For uint8 clips the values are clamped and rounded.
    """
    pixels = pixels.clone()
    cells = _cells(pixels, patch)
    values = values.unflatten(2, (*patch, pixels.shape[2])).movedim(-1, 3) * 255
    if not pixels.is_floating_point():
        values = values.round().clamp(0, 255)
    cells[_place(index, cells)] = values.to(pixels.dtype)
    return pixels


def places(index: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Time, row and column of tokens `index` on a grid of so many rows and columns, each of the shape of `index`."""
    return index // (rows * columns), index // columns % rows, index % columns


def unseen(masked: Tensor, visible: Tensor) -> Tensor:
    """[B, M] bool: which of the tokens `masked` [B, M] are not among `visible` [B, V]; both ascending."""
    place = torch.searchsorted(visible, masked).clamp(max=visible.shape[1] - 1)
    return visible.gather(1, place) != masked


def standardised(patches: Tensor, colours: int = 3) -> Tensor:
    """`[..., P]` with (x - mean) / (sqrt(unbiased variance) + 1e-6) taken over each patch and colour."""
    centred, _, spread = _moments(patches, colours)
    return centred.div_(spread).flatten(-2)


def restored(values: Tensor, like: Tensor, colours: int = 3) -> Tensor:
    """The way back of `standardised`: `values` `[..., P]` with mean and variance of the patches `like` `[..., P]`."""
    _, mean, spread = _moments(like, colours)
    return (values.unflatten(-1, (-1, colours)) * spread + mean).flatten(-2)


def _cells(pixels: Tensor, patch: Grid) -> Tensor:
    """A view of clips `[B, T, C, H, W]` as `[B, T/t, H/p, W/p, t, C, p, p]`."""
    frames, rows, columns = patch
    cells = pixels.unflatten(4, (-1, columns)).unflatten(3, (-1, rows)).unflatten(1, (-1, frames))
    return cells.permute(0, 1, 4, 6, 2, 3, 5, 7)


def _place(index: Tensor, cells: Tensor) -> tuple[Tensor, ...]:
    """Sample, time, row and column of the tokens `[B, K]` among cells, each of a shape that broadcasts to `[B, K]`."""
    sample = torch.arange(len(index), device=index.device)[:, None]
    return sample, *places(index, *cells.shape[2:4])


def _moments(patches: Tensor, colours: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values less their mean `[..., n, colours]`, the mean, and sqrt(unbiased variance) + 1e-6 `[..., 1, colours]`."""
    values = patches.unflatten(-1, (-1, colours))
    mean = values.mean(-2, keepdim=True)
    centred = values - mean
    # Along an axis that is not the last, the norm is several times as fast as the variance.
    norm = torch.linalg.vector_norm(centred, dim=-2, keepdim=True)
    return centred, mean, norm / (values.shape[-2] - 1) ** 0.5 + EPS
