"""RandAugment for clips: timm's policy and PIL operations, drawn once for all frames.

A policy string such as `rand-m7-n4-mstd0.5-inc1` is timm's (`timm.data.auto_augment`), which PySlowFast's is a copy of.
Here drawing is apart from applying, so that a transform can join the geometric operations of a draw with its crop.

Geometric operations are known by the affine map that they sample with: output point -> input point, in pixels from the
corner of the image (the centre of the first pixel is (0.5, 0.5)), the convention of `PIL.Image.transform`.
"""

import math
import random
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from PIL import Image

from videorl.registry import UserError

FILL = (128, 128, 128)  # what geometric operations bring in from outside the frame


@dataclass(frozen=True)
class Op:
    """An operation with its magnitude; calling it applies it to one PIL image."""

    name: str
    function: Callable
    args: tuple
    options: dict = field(default_factory=dict)

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.function(image, *self.args, **self.options)

    def on_clip(self, clip: np.ndarray) -> np.ndarray:
        """Applies it to each frame of uint8 [T, H, W, 3]."""
        if self.name in _POINTWISE:
            frames, height, width, _ = clip.shape
            # one tall picture: PIL spends longer on setting up these operations than on the pixels of a frame
            return np.array(self(Image.fromarray(clip.reshape(frames * height, width, 3)))).reshape(clip.shape)
        return np.stack([np.asarray(self(Image.fromarray(frame))) for frame in clip])

    @property
    def geometric(self) -> bool:
        return self.name in _AFFINE

    def affine(self, width: int, height: int) -> np.ndarray:
        """The map [3, 3] from an output point to the point of the input frame where it is sampled."""
        return np.array([*_AFFINE[self.name](width, height, *self.args), (0, 0, 1)], dtype=np.float64)


class RandAugment:
    """A policy string of timm; `interpolation` (bilinear, bicubic or random) is that of its geometric operations."""

    def __init__(self, policy: str, interpolation: str = "bicubic"):
        from timm.data.auto_augment import rand_augment_transform

        if not policy.startswith("rand-"):
            raise UserError(f"AUG.AA_TYPE {policy!r}: expected a RandAugment policy such as 'rand-m7-n4-mstd0.5-inc1'")
        known = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "random": None}
        if interpolation not in known:
            raise UserError(f"AUG.INTERPOLATION {interpolation!r}: expected one of {', '.join(known)}")
        resample = known[interpolation]
        self._policy = rand_augment_transform(policy, {} if resample is None else {"interpolation": resample})
        for op in self._policy.ops:
            op.aug_fn = partial(_record, op.name, op.aug_fn)

    def draw(self, rng) -> list[Op]:
        """The operations of one clip, in order. `rng`: a numpy Generator, the only source of chance."""
        with _seeded(int(rng.integers(2**32))):
            return self._policy([])


def _record(name: str, function: Callable, drawn: list[Op], *args, resample, fillcolor) -> list[Op]:
    """Stands in for timm's image function: timm makes its draws and this notes them instead of changing an image."""
    if isinstance(resample, tuple):
        resample = random.choice(resample)
    if name.startswith("Posterize"):
        args = (max(1, args[0]),)  # timm asks for 0 bits at high magnitudes, which Pillow refuses
    return [*drawn, Op(name, function, args, {"resample": resample, "fillcolor": fillcolor})]


@contextmanager
def _seeded(seed: int):
    """timm draws from Python's and NumPy's global generators: seeds them, and puts their states back afterwards."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def color_jitter(strength: float, rng) -> list[Op]:
    """Brightness, contrast and saturation in a random order, each by a factor of 1 - strength .. 1 + strength."""
    from timm.data.auto_augment import NAME_TO_OP

    names = rng.permutation(["Brightness", "Contrast", "Color"])
    return [Op(n, NAME_TO_OP[n], (rng.uniform(max(0.0, 1 - strength), 1 + strength),)) for n in map(str, names)]


def _rotation(width: int, height: int, degrees: float) -> tuple:
    """About the centre of the frame, counter-clockwise as seen."""
    sin, cos = math.sin(-math.radians(degrees)), math.cos(math.radians(degrees))
    x, y = width / 2, height / 2
    return (cos, sin, x - cos * x - sin * y), (-sin, cos, y + sin * x - cos * y)


# a pixel's new colour depends on its old colour only
_POINTWISE = {"Invert", "Color", "ColorIncreasing", "Brightness", "BrightnessIncreasing", "Desaturate"} | {
    "Solarize", "SolarizeIncreasing", "SolarizeAdd", "Posterize", "PosterizeIncreasing", "PosterizeOriginal"
}  # fmt: skip

_AFFINE = {
    "Rotate": _rotation,
    "ShearX": lambda width, height, factor: ((1, factor, 0), (0, 1, 0)),
    "ShearY": lambda width, height, factor: ((1, 0, 0), (factor, 1, 0)),
    "TranslateXRel": lambda width, height, part: ((1, 0, part * width), (0, 1, 0)),
    "TranslateYRel": lambda width, height, part: ((1, 0, 0), (0, 1, part * height)),
}
