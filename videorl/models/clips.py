"""Whether a batch of clips is what a model takes, and what to change where it is not."""

from torch import Tensor, nn

from videorl.registry import UserError

# What says how long each axis of a clip is.
KEYS = {
    "C": "DATA.INPUT_CHANNEL_NUM (decoded videos have 3 channels)",
    "T": "DATA.NUM_FRAMES",
    "H": "DATA.TEST_CROP_SIZE, which must be DATA.TRAIN_CROP_SIZE",
}


def check_clip(model: nn.Module, clips: Tensor, axes: str = "CTHW") -> None:
    """Raises `UserError` where `clips` have another shape than `model.clip`, the one that the model is built for.

    `axes` of a clip: CTHW of normalised floats, or TCHW of grey levels as they are decoded.
    """
    if axes == "CTHW":
        check_pixels(model, clips)
    expected, found = tuple(model.clip), tuple(clips.shape[1:])
    if found != expected:
        raise UserError(
            f"{type(model).__name__} was built for clips {expected}, found {found}: {_cure(axes, expected, found)}"
            f" (the axes of a clip are {', '.join(axes)})"
        )


def check_pixels(model: nn.Module, clips: Tensor) -> None:
    """Raises `UserError` unless `clips` are floats [B, C, T, H, W]."""
    if clips.ndim != 5 or not clips.is_floating_point():
        kind = str(clips.dtype).removeprefix("torch.")
        raise UserError(
            f"{type(model).__name__} takes clips [B, C, T, H, W] of floats, (pixel / 255 - DATA.MEAN) / DATA.STD, found"
            f" {kind} {list(clips.shape)}: videorl.engine.step.normalise makes them of uint8 [B, T, C, H, W]"
        )


def _cure(axes: str, expected: tuple[int, ...], found: tuple[int, ...]) -> str:
    if len(found) != len(axes):
        return f"expected {len(axes) + 1} axes, with that of the batch"
    if sorted(found) == sorted(expected):
        return "the axes stand in another order; permute them"
    wrong = {axis for axis, wanted, there in zip(axes, expected, found, strict=True) if wanted != there}
    keys = [key for axis, key in KEYS.items() if axis in wrong or (axis == "H" and "W" in wrong)]
    return f"change {' and '.join(keys)}"
