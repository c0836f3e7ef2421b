"""Training clips that the device resizes: workers hand over the part of the frames that a clip is made of, as it is.

That saves the workers more than half of their time after decoding (DATA.RESIZE_ON_DEVICE). In a batch, `regions` is
uint8 [N], the parts of all samples end to end, and `cuts` says of each how the clip is made of it. Both are what the
loader knows anyway, a tensor and a list: nothing between collate and `to_device` has to know of ragged batches.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Axis(NamedTuple):
    """Rows or columns of a region, as many as `length`, and how those of the clip lie on them.

    Pixel k of the clip has its centre at `first + step * (k + 1/2)`, pixel j of the region at j + 1/2. The one is the
    mean of those that are nearer than `reach`, weighted by what their distance lacks of it: linear interpolation, and
    with a reach above one pixel antialiased, as Pillow's. A negative step mirrors.
    """

    length: int
    first: float
    step: float
    reach: float


class Cut(NamedTuple):
    """How a clip of `size` x `size` pixels is made of a region, uint8 [frames, rows.length, columns.length, 3]."""

    frames: int
    rows: Axis
    columns: Axis
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.frames, self.rows.length, self.columns.length, 3


def end_to_end(regions: Sequence[Tensor]) -> Tensor:
    """Tensors of any shape as one, [N]."""
    sizes = [region.numel() for region in regions]
    out = torch.empty(sum(sizes), dtype=regions[0].dtype)
    for part, region in zip(out.split(sizes), regions, strict=True):
        part.view(region.shape).copy_(region)
    return out


def clips(regions: Tensor, cuts: Sequence[Cut]) -> Tensor:
    """The clips, uint8 [B, T, 3, S, S], of the first B regions, on their device; not for use under autocast.

    Within a grey level of what `TrainTransform` makes of the same draws.
    """
    frames, size = cuts[0].frames, cuts[0].size
    down = _weights([cut.rows for cut in cuts], size, regions.device)
    across = _weights([cut.columns for cut in cuts], size, regions.device)
    out = torch.empty((len(cuts), frames, 3, size, size), dtype=torch.uint8, device=regions.device)
    start = 0
    # One by one, for the regions differ in size; all of a sample is two products of matrices, enough for a GPU.
    for clip, cut, rows, columns in zip(out, cuts, down, across, strict=True):
        stop = start + math.prod(cut.shape)
        region = regions[start:stop].view(cut.shape).permute(0, 3, 1, 2).float()  # [T, 3, h, w]
        clip.copy_((rows[:, : cut.rows.length] @ region @ columns[:, : cut.columns.length].T).round_())
        start = stop
    return out


def _weights(axes: Sequence[Axis], size: int, device: torch.device) -> Tensor:
    """How much of each pixel of an axis is in each pixel of the clip: [B, S, longest axis], of which each sum is 1."""
    length, first, step, reach = torch.tensor(axes).to(device, non_blocking=True).T[..., None, None]  # [B, 1, 1]
    centre = first + step * (torch.arange(size, device=device)[:, None] + 0.5)  # [B, S, 1]
    pixel = torch.arange(max(axis.length for axis in axes), device=device) + 0.5
    near = (1 - (centre - pixel).abs() / reach).clamp_(min=0) * (pixel < length)
    return near / near.sum(2, keepdim=True)
