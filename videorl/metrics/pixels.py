"""Clips as patches of pixels, the targets of masked autoencoders, and the way back.

Tong et al., VideoMAE, NeurIPS 2022. Tokens are numbered by time, row and column on the grid (T/t, H/p, W/p); the values
of a patch are in order of frame, row, column, colour.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-6
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Targets:
    """What a masked autoencoder predicts of a token of shape `patch`: P values.

    Its pixels in 0..1 and, if `standard`, with mean 0 and variance 1 for each colour, as in VideoMAE. Or, with
    `first_frame`, those of its first frame alone, less `mean` and divided by `std`, with mean 0 and variance 1 over all
    colours: as in PySlowFast, after Feichtenhofer et al., Masked Autoencoders As Spatiotemporal Learners, NeurIPS 2022.
    """

    patch: Grid
    standard: bool = True
    first_frame: bool = False
    mean: tuple[float, ...] = (0.45, 0.45, 0.45)
    std: tuple[float, ...] = (0.225, 0.225, 0.225)

    @classmethod
    def of(cls, spec) -> "Targets":
        """Those of a `videorl.spec.Spec`."""
        masking, clip = spec.masking, spec.clip
        return cls(tuple(spec.patch), masking.normalise, masking.target == "frame", clip.mean, clip.std)

    @property
    def step(self) -> int:
        """Frames from one that is predicted to the next."""
        return self.patch[0] if self.first_frame else 1

    @property
    def shape(self) -> Grid:
        """Frames, rows and columns that are predicted of a token."""
        return (1, *self.patch[1:]) if self.first_frame else self.patch

    @property
    def size(self) -> int:
        """P."""
        return math.prod(self.shape) * len(self.mean)

    def __call__(self, pixels: Tensor, index: Tensor) -> Tensor:
        """Of tokens `index` `[B, K]` of clips `[B, T, C, H, W]` in 0..255: `[B, K, P]`."""
        values = self.scaled(patches(pixels[:, :: self.step], index, self.shape))
        return self.standardised(values) if self.standard else values

    def standardised(self, values: Tensor) -> Tensor:
        """`[..., P]` with (x - mean) / spread, of which the sums go over a patch (and colour)."""
        centred, _, spread = self._moments(values)
        return centred.div_(spread).flatten(-2)

    def statistics(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread of patches `[..., P]`, each `[..., 1, colours]` or, over all colours, `[..., 1, 1]`."""
        return self._moments(values)[1:]

    def restored(self, values: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        """The way back of `standardised`, with these statistics."""
        return (values.unflatten(-1, (-1, mean.shape[-1])) * spread + mean).flatten(-2)

    def scaled(self, values: Tensor) -> Tensor:
        """Pixels `[..., P]` in 0..1 in the units that are predicted."""
        return normalised(values, *map(values.new_tensor, (self.mean, self.std))) if self.first_frame else values

    def unscaled(self, values: Tensor) -> Tensor:
        """The way back of `scaled`."""
        if not self.first_frame:
            return values
        mean, std = map(values.new_tensor, (self.mean, self.std))
        return (values.unflatten(-1, (-1, len(mean))) * std + mean).flatten(-2)

    def _moments(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values less their mean `[..., n, G]`, the mean and the spread `[..., 1, G]`; G groups of colours."""
        values = values.unflatten(-1, (-1, 1 if self.first_frame else len(self.mean)))
        mean = values.mean(-2, keepdim=True)
        centred = values - mean
        # Along an axis that is not the last, the norm is several times as fast as the variance, which is unbiased here.
        norm = torch.linalg.vector_norm(centred, dim=-2, keepdim=True) / (values.shape[-2] - 1) ** 0.5
        # Both as published.
        return centred, mean, (norm.square() + EPS).sqrt() if self.first_frame else norm + EPS


def normalised(patches: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Patches `[..., P]` less the mean and divided by the deviation of each colour."""
    return ((patches.unflatten(-1, (-1, len(mean))) - mean) / std).flatten(-2)


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


def _cells(pixels: Tensor, patch: Grid) -> Tensor:
    """A view of clips `[B, T, C, H, W]` as `[B, T/t, H/p, W/p, t, C, p, p]`."""
    frames, rows, columns = patch
    cells = pixels.unflatten(4, (-1, columns)).unflatten(3, (-1, rows)).unflatten(1, (-1, frames))
    return cells.permute(0, 1, 4, 6, 2, 3, 5, 7)


def _place(index: Tensor, cells: Tensor) -> tuple[Tensor, ...]:
    """Sample, time, row and column of the tokens `[B, K]` among cells, each of a shape that broadcasts to `[B, K]`."""
    sample = torch.arange(len(index), device=index.device)[:, None]
    return sample, *places(index, *cells.shape[2:4])
