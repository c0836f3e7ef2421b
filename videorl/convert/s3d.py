"""Files of MIL-NCE: `epoch0001.pth.tar` of antoine77340/MIL-NCE_HowTo100M, `s3d_howto100m.pth` of its release.

Their names of tensors are ours; the release has the space-to-depth stem.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from videorl.registry import UserError

NAME = "MIL-NCE"
STEM = "conv1.conv1.weight"  # [64, 3, 3, 7, 7], or [64, 24, 2, 4, 4] with space to depth


def matches(names: set[str]) -> bool:
    return {STEM, "mixed_5c.gating_b3.fc.weight", "text_module.word_embd.weight"} <= names


def says(state: Mapping, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """Its clips are RGB in 0..1 as it is."""
    return {"DATA.MEAN": [0.0, 0.0, 0.0], "DATA.STD": [1.0, 1.0, 1.0]}


def rename(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Raises `UserError` for a file with the other stem: 99.9 % of it would fit, and the model would see nothing.

    A file of another width has no tensor that fits, which the audit says.
    """
    own = model.state_dict().get(STEM)
    if own is not None and own.shape[1:] != weights[STEM].shape[1:]:
        other = weights[STEM].shape[1] == 8 * own.shape[1]
        raise UserError(
            f"{STEM}: found {tuple(weights[STEM].shape)}, expected {tuple(own.shape)}: the file has the other stem;"
            f" set S3D.SPACE_TO_DEPTH {other}"
        )
    return dict(weights)
