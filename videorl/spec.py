"""The few facts that several components share, and the one table of names that batches and model outputs use."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Names of tensors. A model's forward takes batch names and returns output names; a loss or an eval asks for either.
NAMES = {
    # batch
    "video": "[B, 3, T, H, W] float, normalised (uint8 until it is on the device)",
    "labels": "[B] int64 class numbers, or [B, C] float targets (several labels, MixUp, smoothing)",
    "index": "[B] int64, row of the sample in its annotation file",
    "view": "[B] int64, number of the test view (temporal view x crops + crop)",
    # outputs
    "logits": "[B, C] float, before softmax or sigmoid",
    "features": "[B, D] float, pooled over tokens, before the head",
}


@dataclass(frozen=True)
class Clip:
    """A clip as the model sees it: frames, frames of the source between two of them, pixels, and its normalisation."""

    frames: int
    rate: int
    train_size: int
    test_size: int
    fps: float = 30.0
    mean: tuple[float, ...] = (0.45, 0.45, 0.45)
    std: tuple[float, ...] = (0.225, 0.225, 0.225)
    channels: int = 3


@dataclass(frozen=True)
class Augment:
    """Random transforms of training clips (nodes DATA and AUG; the meaning of each stands in defaults.yaml)."""

    scales: tuple[int, int] = (256, 320)
    area: tuple[float, ...] = ()
    aspect: tuple[float, ...] = ()
    inverse_uniform: bool = False
    flip: bool = True
    color_jitter: float = 0.0
    rand_augment: str = ""
    interpolation: str = "bicubic"
    erase_prob: float = 0.0
    erase_mode: str = "pixel"
    erase_count: int = 1
    copies: int = 1


@dataclass(frozen=True)
class Views:
    """Test views of a video: temporal clips x spatial crops."""

    clips: int = 1
    crops: int = 1


@dataclass(frozen=True)
class Reading:
    """How videos are opened: backend, and limits that are checked before decoding."""

    backend: str = "pyav"
    max_pixels: int = 36_000_000
    allow_outside_root: bool = False


@dataclass(frozen=True)
class Spec:
    """What components share. `labels` maps a label space (a data set's name) to its number of classes."""

    clip: Clip
    labels: Mapping[str, int] = field(default_factory=dict)
    augment: Augment = field(default_factory=Augment)
    views: Views = field(default_factory=Views)
    reading: Reading = field(default_factory=Reading)
    act_checkpoint: bool = False
    seed: int = 0
