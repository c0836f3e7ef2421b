"""Clips of decoded frames, uint8 [T, H, W, 3], to what the model's input is made of, uint8 [T, 3, S, S].

Published recipes change the colours of whole frames with PIL, make them float, and then crop and resize. Here the crop
comes first and pixels stay uint8, which is several times as fast. What that changes:
 - RandAugment's rotations, shears and shifts are still those of the whole frame, but they are joined with the crop into
   one map, so each pixel is interpolated once instead of once per operation; colours change after it;
 - operations that measure the image (AutoContrast, Equalize, Contrast) measure the crop, not the whole frame, and
   Sharpness filters pixels of the crop;
 - values are rounded to grey levels, and the noise of random erasing is cut off at black and white.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from videorl.clip.randaug import FILL, Op, RandAugment, color_jitter
from videorl.clip.regions import Axis, Cut
from videorl.registry import UserError
from videorl.spec import Augment

# Where a multi-scale crop may lie: quarters of the room below and right of it, in the published order.
PLACES = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3))
# Times a clip's pixels, or those of a part of the frames: of more the worker makes the clip, or copies that part, which
# takes it no longer than to send them, or no more memory than to keep them.
LARGEST = 2
TABLE_VALUES = 2**22  # of the table that `warp` gathers from: more would leave the cache, and large videos the memory


@dataclass(frozen=True)
class Window:
    """A square view: the region (top, left, height, width) of a frame is resized, then size x size is cut from it.

    `antialias`: as Pillow resizes, which matters where it shrinks.
    """

    region: tuple[int, int, int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]
    size: int
    antialias: bool = False

    def affine(self) -> np.ndarray:
        """The map [3, 3] from a point of the view to a point of the frame (see `randaug`)."""
        top, left, height, width = self.region
        (rows, columns), (y, x) = self.resized, self.corner
        sy, sx = height / rows, width / columns
        return np.array([(sx, 0, left + sx * x), (0, sy, top + sy * y), (0, 0, 1)])


@dataclass(frozen=True)
class Making:
    """A clip that is made part by part: `cut` of frames [t, H, W, 3], and `finish` of all that it gave, in order."""

    cut: Callable[[torch.Tensor], torch.Tensor]
    finish: Callable

    def __call__(self, frames: torch.Tensor):
        return self.finish(self.cut(frames))


class TrainTransform:
    """Random crop, RandAugment or colour jitter, flip and erasing of a training clip, the same for all its frames.

    `augment.area` and `augment.aspect` given: random resized crop; `augment.crop_scales`: multi-scale crop; neither:
    short side resized to a random one of `augment.scales`, then a random crop. Colour jitter acts only where
    RandAugment is off, as in timm; PySlowFast has the key AUG.COLOR_JITTER but its Kinetics loader never reads it.
    `mean` and `std` are those that the model's input is normalised with: erasing draws its noise in normalised values.
    """

    def __init__(self, augment: Augment, size: int, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)):
        if bool(augment.area) != bool(augment.aspect):
            raise UserError(
                f"TRAIN_JITTER_SCALES_RELATIVE {list(augment.area)} and TRAIN_JITTER_ASPECT_RELATIVE "
                f"{list(augment.aspect)}: expected both or neither"
            )
        if augment.crop_scales:
            _check_crop_scales(augment)
        elif not augment.area and augment.scales[0] < size:
            raise UserError(f"TRAIN_JITTER_SCALES {list(augment.scales)}: expected at least the crop size {size}")
        if augment.erase_mode not in ("pixel", "rand", "const"):
            raise UserError(f"AUG.RE_MODE {augment.erase_mode!r}: expected pixel, rand or const")
        self.augment, self.size = augment, size
        self.mean, self.noise = to_uint8(np.float32(mean)), _noise_levels(mean, std)
        self.policy = RandAugment(augment.rand_augment, augment.interpolation) if augment.rand_augment else None

    def __call__(self, frames: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """uint8 [T, H, W, 3] -> uint8 [T, 3, S, S] (a view of memory in the order of [T, S, S, 3])."""
        return self.begin(*frames.shape[1:3], rng)(frames)

    def region(self, frames: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, Cut]:
        """What the device makes the same clip of (see `regions`). Crop and flip alone, whatever else is switched on."""
        return self.begin_region(*frames.shape[1:3], rng)(frames)

    def begin(self, height: int, width: int, rng: np.random.Generator) -> Making:
        """The same for frames that come part by part."""
        window, operations = self._window(height, width, rng), self._operations(rng)
        return Making(lambda frames: view_of(frames, window, operations), lambda clip: self._finished(clip, rng))

    def begin_region(self, height: int, width: int, rng: np.random.Generator) -> Making:
        window, mirrored = self._window(height, width, rng), self._mirrors(rng)
        rows, columns, down, across = _region(window, mirrored)
        if down.length * across.length <= LARGEST * self.size**2:
            return Making(
                lambda frames: alone(frames[:, rows, columns], frames),
                lambda part: (part, Cut(len(part), down, across, self.size)),
            )
        ready = Window((0, 0, self.size, self.size), (self.size, self.size), (0, 0), self.size)
        return Making(lambda frames: cut(frames, window), lambda clip: taken(clip, ready, mirrored))

    def _finished(self, clip: torch.Tensor, rng) -> torch.Tensor:
        """[T, S, S, 3] -> [T, 3, S, S]"""
        if self._mirrors(rng):
            clip = clip.flip(2)
        if rng.random() < self.augment.erase_prob:
            clip = clip.clone(memory_format=torch.contiguous_format)  # it may be a view of the frames
            self._erase(clip.numpy(), rng)
        return clip.permute(0, 3, 1, 2)

    def _mirrors(self, rng) -> bool:
        return self.augment.flip and rng.random() < 0.5

    def _window(self, height: int, width: int, rng) -> Window:
        if self.augment.crop_scales:
            return multi_scale_crop(height, width, self.size, self.augment.crop_scales, rng)
        if self.augment.area:
            return random_resized_crop(height, width, self.size, self.augment.area, self.augment.aspect, rng)
        short = random_short_side(*self.augment.scales, self.augment.inverse_uniform, rng)
        return random_crop(height, width, short, self.size, rng)

    def _operations(self, rng) -> list[Op]:
        if self.policy:
            return self.policy.draw(rng)
        return color_jitter(self.augment.color_jitter, rng) if self.augment.color_jitter else []

    def _erase(self, clip: np.ndarray, rng) -> None:
        """Fills boxes of the clip [T, S, S, 3] with noise ('pixel'), a colour for each frame ('rand'), or the mean."""
        for top, left, height, width in erase_boxes(self.size, self.size, self.augment.erase_count, rng):
            box = clip[:, top : top + height, left : left + width]
            if self.augment.erase_mode == "const":
                box[...] = self.mean
            else:
                shape = box.shape if self.augment.erase_mode == "pixel" else (len(box), 1, 1, 3)
                box[...] = self.noise[rng.integers(2**16, size=shape, dtype=np.uint16), np.arange(3)]


def _check_crop_scales(augment: Augment) -> None:
    scales = list(augment.crop_scales)
    if augment.area:
        raise UserError(
            f"TRAIN_CROP_SCALES {scales} and TRAIN_JITTER_SCALES_RELATIVE {list(augment.area)}: expected one of them;"
            " empty the other"
        )
    if not all(0 < scale <= 1 for scale in scales):
        raise UserError(f"TRAIN_CROP_SCALES {scales}: expected parts of the short side, above 0 and at most 1")


def to_uint8(values: np.ndarray) -> np.ndarray:
    """0..1 -> grey levels."""
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)


def _noise_levels(mean, std) -> np.ndarray:
    """2**16 equally likely grey levels of normal noise [2**16, 3]: picking from them is faster than drawing normals."""
    quantiles = torch.special.ndtri((torch.arange(2**16) + 0.5) / 2**16).numpy()
    return to_uint8(np.float32(mean) + np.float32(std) * quantiles[:, None])


def test_view(
    frames: torch.Tensor,
    *,
    short_side: int,
    size: int,
    position: int,
    antialias: bool = False,  # noqa: PT028
) -> torch.Tensor:
    """uint8 [T, H, W, 3] -> uint8 [T, 3, size, size]: short side resized, then one of three crops along the long side.

    `position` 0 is left (top of an upright video), 1 the centre, 2 right (bottom). float frames give float views.
    """
    window = replace(uniform_crop(*frames.shape[1:3], short_side, size, position), antialias=antialias)
    return view_of(frames, window, []).permute(0, 3, 1, 2)


test_view.__test__ = False  # pytest takes the name for a test where it is imported


# --- where to cut: PySlowFast's rules; `rng` needs random, uniform and integers only ---------------------------------


def resize_short_side(height: int, width: int, short: int) -> tuple[int, int]:
    """(height, width) after the short side is resized to `short`; the long side is rounded down."""
    if width < height:
        return math.floor(height / width * short), short
    return short, math.floor(width / height * short)


def random_short_side(low: int, high: int, inverse_uniform: bool, rng) -> int:
    """A length between two: uniform, or with its inverse uniform (DATA.INV_UNIFORM_SAMPLE), which favours small."""
    return round(1 / rng.uniform(1 / high, 1 / low) if inverse_uniform else rng.uniform(low, high))


def random_crop(height: int, width: int, short: int, size: int, rng) -> Window:
    rows, columns = resize_short_side(height, width, short)
    y = int(rng.integers(0, rows - size + 1)) if rows > size else 0
    x = int(rng.integers(0, columns - size + 1)) if columns > size else 0
    return Window((0, 0, height, width), (rows, columns), (y, x), size)


def random_resized_crop(height: int, width: int, size: int, area, aspect, rng) -> Window:
    """A box of `area` (part of the frame) and `aspect` (width / height, uniform in its logarithm), made square."""
    for _ in range(10):
        pixels = rng.uniform(*area) * height * width
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            return Window((top, left, h, w), (size, size), (0, 0), size)
    return _largest_crop(height, width, size, aspect)


def _largest_crop(height: int, width: int, size: int, aspect) -> Window:
    """The largest central box of an allowed aspect, for frames so narrow that no draw fits."""
    w = min(width, max(1, round(height * max(aspect))))
    h = min(height, max(1, round(width / min(aspect))))
    return Window(((height - h) // 2, (width - w) // 2, h, w), (size, size), (0, 0), size)


def multi_scale_crop(height: int, width: int, size: int, scales, rng) -> Window:
    """A box whose sides are parts of the short side, made square: VideoMAE's pre-training, after Wang et al., TSN.

    Height and width take scales that stand at most one apart in the list, and sides that `size` misses by less than
    three pixels become it. The box lies at one of 13 places: at borders and middles, or a quarter of the way between.
    """
    short = min(height, width)
    sides = [max(int(short * scale), 1) for scale in scales]
    sides = [min(size, short) if abs(side - size) < 3 else side for side in sides]
    boxes = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    h, w = boxes[rng.integers(0, len(boxes))]
    down, right = PLACES[rng.integers(0, len(PLACES))]
    return Window(((height - h) // 4 * down, (width - w) // 4 * right, h, w), (size, size), (0, 0), size, True)


def uniform_crop(height: int, width: int, short: int, size: int, position: int) -> Window:
    if short < size or position not in (0, 1, 2):
        raise UserError(f"test crop {position} of {size} pixels at short side {short}: expected 0..2 and size <= short")
    rows, columns = resize_short_side(height, width, short)
    y, x = math.ceil((rows - size) / 2), math.ceil((columns - size) / 2)
    if position != 1:
        along = 0 if position == 0 else max(rows, columns) - size
        y, x = (along, x) if rows > columns else (y, along)
    return Window((0, 0, height, width), (rows, columns), (y, x), size)


def erase_boxes(height: int, width: int, count: int, rng) -> list[tuple[int, int, int, int]]:
    """Boxes (top, left, height, width) of random erasing: 1..count of them, 2 % to 33 % of the picture in all."""
    boxes = []
    count = int(rng.integers(1, count + 1)) if count > 1 else 1
    for _ in range(10 * count):
        pixels = rng.uniform(0.02, 1 / 3) * height * width / count
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if h < height and w < width:
            boxes.append((int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w))
        if len(boxes) == count:
            break
    return boxes


# --- cutting ---------------------------------------------------------------------------------------------------------


def view_of(frames: torch.Tensor, window: Window, operations: list[Op]) -> torch.Tensor:
    """The window of the frames [T, H, W, 3] after the operations: [T, S, S, 3]."""
    height, width = frames.shape[1:3]
    maps = _maps_to_frame(width, height, window, operations)
    warps = [op for op in operations if op.geometric]
    clip = warp(frames, maps[0], window.size, warps[0].options["resample"]) if warps else cut(frames, window)
    for op, affine in zip(operations, maps, strict=True):
        if op.geometric:
            # earlier operations must not recolour what this one brings in from outside, so it is painted in its turn
            clip[:, _outside(affine, window.size, width, height)] = torch.tensor(FILL, dtype=torch.uint8)
        else:
            clip = torch.from_numpy(op.on_clip(clip.numpy()))
    return clip


def cut(frames: torch.Tensor, window: Window) -> torch.Tensor:
    """Bilinear, as published without antialiasing but for multi-scale crops; uint8 is within one grey level of float.

    [T, S, S, 3]
    """
    top, left, height, width = window.region
    (y, x), size = window.corner, window.size
    region = frames[:, top : top + height, left : left + width].permute(0, 3, 1, 2)  # channels last: the fast kernel
    if (height, width) != window.resized:
        region = F.interpolate(region, window.resized, mode="bilinear", align_corners=False, antialias=window.antialias)
    return alone(region[:, :, y : y + size, x : x + size].permute(0, 2, 3, 1), region)


def alone(part: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """A part of frames, copied unless it is most of them: a view keeps all in memory until the batch is full."""
    if frames.untyped_storage().nbytes() <= LARGEST * part.nbytes:
        return part
    return part.clone(memory_format=torch.contiguous_format)


def taken(frames: torch.Tensor, window: Window, mirrored: bool) -> tuple[torch.Tensor, Cut]:
    """The part of the frames [T, H, W, 3] that the window shows, a view of them, and how the clip is made of it."""
    rows, columns, down, across = _region(window, mirrored)
    return frames[:, rows, columns], Cut(len(frames), down, across, window.size)


def _region(window: Window, mirrored: bool) -> tuple[slice, slice, Axis, Axis]:
    """Rows and columns of the frame that the window shows, and how the clip's are made of them."""
    top, left, height, width = window.region
    (sx, _, x), (_, sy, y), _ = window.affine().tolist()
    rows, down = _shown(top, height, y, sy, window)
    columns, across = _shown(left, width, x, sx, window)
    if mirrored:
        across = across._replace(first=across.first + window.size * across.step, step=-across.step)
    return rows, columns, down, across


def _shown(low: int, length: int, first: float, step: float, window: Window) -> tuple[slice, Axis]:
    """The pixels along an axis of the frame, from `low` on, that the window's pixels are means of, and these as axis.

    `first` and `step`: the map from the window's pixels to the frame's.
    """
    reach = max(step, 1.0) if window.antialias else 1.0
    start = max(low, math.floor(first + step / 2 - reach))
    stop = min(low + length, math.ceil(first + step * (window.size - 0.5) + reach))
    return slice(start, stop), Axis(stop - start, first - start, step, reach)


def warp(frames: torch.Tensor, affine: np.ndarray, size: int, resample: Image.Resampling) -> torch.Tensor:
    """Frames uint8 [T, H, W, 3] sampled where the map says, which past the border repeats the nearest pixel.

    Within one grey level of `PIL.Image.transform` inside the frame, in a third of its time: all frames are sampled at
    the same points with the same weights, so a picture is a weighted sum of rows of a table [pixels, T * 3].
    """
    affine = torch.from_numpy(affine).float()
    centre = torch.arange(size) + 0.5
    x, y = (row[0] * centre[None, :] + row[1] * centre[:, None] + row[2] for row in affine[:2])
    columns, across = _taps(x, frames.shape[2], resample)
    rows, down = _taps(y, frames.shape[1], resample)  # [S, S, K]
    (left, right), (top, bottom) = columns.aminmax(), rows.aminmax()
    region = frames[:, top : bottom + 1, left : right + 1]
    index = (rows - top)[..., :, None] * (right - left + 1) + (columns - left)[..., None, :]
    weight = down[..., :, None] * across[..., None, :]
    index, weight = index.flatten(2).flatten(0, 1), weight.flatten(2).flatten(0, 1)  # [S * S, K * K]
    at_once = max(1, TABLE_VALUES // region[0].numel())
    return torch.cat([_weighted(part, index, weight, size) for part in region.split(at_once)])


def _weighted(frames: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, size: int) -> torch.Tensor:
    table = frames.permute(1, 2, 0, 3).flatten(2).flatten(0, 1).float()  # [pixels, T * 3]
    sums = F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)
    return sums.round_().clamp_(0, 255).byte().view(size, size, -1, 3).permute(2, 0, 1, 3)


def _taps(at: torch.Tensor, length: int, resample: Image.Resampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels around the points [S, S] of one axis, and their weights: PIL's bilinear or cubic (a = -1). [S, S, K]"""
    first = (at - 0.5).floor()
    d = at - 0.5 - first
    if resample == Image.Resampling.BILINEAR:
        offsets, weights = (0, 1), (1 - d, d)
    else:
        e = 1 - d
        offsets, weights = (-1, 0, 1, 2), (-d * e * e, 1 - d * d * (2 - d), 1 - e * e * (2 - e), -e * d * d)
    pixels = first.int()[..., None] + torch.tensor(offsets, dtype=torch.int32)
    return pixels.clamp_(0, length - 1), torch.stack(weights, -1)


def _maps_to_frame(width: int, height: int, window: Window, operations: list[Op]) -> list[np.ndarray]:
    """For each operation, the map from a point of the final view to a point of the frame that the operation gets."""
    maps, affine = [], window.affine()
    for op in reversed(operations):
        affine = op.affine(width, height) @ affine if op.geometric else affine
        maps.append(affine)
    return maps[::-1]


def _outside(affine: np.ndarray, size: int, width: int, height: int) -> np.ndarray:
    """Pixels of the view, bool [S, S], that the map takes out of the frame."""
    centre = np.arange(size) + 0.5
    x, y = (row[0] * centre[None, :] + row[1] * centre[:, None] + row[2] for row in affine[:2])
    return (x < 0) | (x >= width) | (y < 0) | (y >= height)
