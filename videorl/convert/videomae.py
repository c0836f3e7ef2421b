"""Files of VideoMAE V1 and V2 and of V-SWIFT, pre-trained and fine-tuned, and our own pre-trained ones.

MCG-NJU/VideoMAE, OpenGVLab/VideoMAEv2, deepglint/V-SWIFT. Our names are V1's and V2's, which are the same, but for the
classifier. Pre-trained files fit VideoMAE and, without decoder and last norm, ViT; fine-tuned ones fit ViT.

Positions are fixed sines and cosines. V-SWIFT's files hold them as flat tables, V1's and V2's not at all: they get the
table of the published clips, 16 frames of 224 x 224 pixels, which the model then resizes to its own clips.
"""

import math
from collections.abc import Mapping

from torch import Tensor, nn

from videorl.convert import substitute
from videorl.models.vit import sincos_positions
from videorl.registry import UserError

NAME = "VideoMAE"
CLIP = (16, 224, 224)  # frames, rows, columns of the published clips
AFRESH = ("fc_norm.", "head.")  # what fine-tuning starts with its first values
PATCHES = "patch_embed.proj.weight"  # [D, 3, frames, rows, columns]
PRETRAINED = [
    (r"^pos_embed$", "decoder.positions"),
    (r"^encoder\.pos_embed$", "encoder.positions"),
    (r"^decoder\.mask_token$", "mask_token"),
]
FINETUNED = [
    (r"^pos_embed$", "positions"),
    (r"^head\.(weight|bias)$", r"head.projection.\1"),
]


def matches(names: set[str]) -> bool:
    ours = any(name.startswith(("head.projection.", "head.heads.")) for name in names)  # a fine-tuned file of ours
    return not ours and any({p + PATCHES, p + "blocks.0.attn.q_bias"} <= names for p in ("", "encoder."))


def afresh(names: set[str]) -> tuple[str, ...]:
    """What the names of those parameters begin with that a file with these names leaves to fine-tuning."""
    return AFRESH if f"encoder.{PATCHES}" in names else ()


def remarks(names: set[str], clip: tuple[int, int, int] = CLIP) -> list[str]:
    """What to say of a file with these names of tensors."""
    if any(name.rpartition(".")[2] in ("pos_embed", "positions") for name in names):
        return []
    return [f"positions: the file has none; it is taken for one of clips of {' x '.join(map(str, clip))}"]


def rename(weights: Mapping[str, Tensor], model: nn.Module, clip: tuple[int, int, int] = CLIP) -> dict[str, Tensor]:
    """`clip`: frames, rows, columns of the file's clips, where it has no tables of positions.

    Raises `UserError` for a fine-tuned file where the model pre-trains, and for tables of an unknown grid.
    """
    own = model.state_dict()
    pretrained = f"encoder.{PATCHES}" in weights
    if f"encoder.{PATCHES}" in own:
        if not pretrained:
            raise UserError(
                "the file is a fine-tuned one, without decoder: expected a pre-trained one for VideoMAE; to fine-tune"
                " or test, set MODEL.MODEL_NAME ViT"
            )
        return _with_positions(substitute(PRETRAINED, weights), own, clip)
    named = substitute(PRETRAINED if pretrained else FINETUNED, weights)
    named = {_in_vit(name, own): value for name, value in named.items()}
    return _with_positions(named, own, clip)


def _in_vit(name: str, own: Mapping[str, Tensor]) -> str:
    """The name of an encoder's tensor in ViT. What ViT does not have keeps its own: the audit says so."""
    short = name.removeprefix("encoder.")
    return short if short in own else name


def _with_positions(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], clip: tuple[int, int, int]
) -> dict[str, Tensor]:
    """The weights, under the model's names, with every table of positions that the model has, as `[T, H, W, D]`."""
    patch = next(value for name, value in weights.items() if name.endswith(PATCHES)).shape[2:]
    published = tuple(size // step for size, step in zip(clip, patch))
    if 0 in published:
        raise UserError(f"clips of {clip} frames, rows, columns hold no patch of {tuple(patch)}: see its config.json")
    filled = dict(weights)
    for name in [name for name in own if name.rpartition(".")[2] == "positions"]:
        if name not in weights:
            filled[name] = sincos_positions(published, own[name].shape[-1])
        elif weights[name].ndim == 3:  # [1, N, D]
            filled[name] = weights[name].reshape(*_grid(name, weights[name], published, own[name].shape[:3]), -1)
    return filled


def _grid(name: str, table: Tensor, published: tuple[int, ...], here: tuple[int, ...]) -> tuple[int, ...]:
    """The grid of a flat table: the published one or else the model's, if it has as many tokens, or that of so many
    frames of published size."""
    tokens, (_, rows, columns) = table.shape[1], published
    for grid in (published, here):
        if tokens == math.prod(grid):
            return grid
    if tokens % (rows * columns):
        raise UserError(
            f"{name}: found {tokens} positions, expected {math.prod(here)} as here, or some times {rows} x {columns};"
            " set the clip shape of the file"
        )
    return tokens // (rows * columns), rows, columns
