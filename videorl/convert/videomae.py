"""Files of VideoMAE V1 and V2 and of V-SWIFT, pre-trained and fine-tuned, and our own pre-trained ones.

MCG-NJU/VideoMAE, OpenGVLab/VideoMAEv2, deepglint/V-SWIFT. Our names are V1's and V2's, which are the same, but for the
classifier. Pre-trained files fit VideoMAE and, without decoder and last norm, ViT; fine-tuned ones fit ViT.

Positions are fixed sines and cosines. V-SWIFT's files hold them as flat tables, V1's and V2's not at all: the model
makes its own, for any clips.
"""

import argparse
from collections.abc import Mapping

from torch import Tensor, nn

from videorl.convert import substitute
from videorl.registry import UserError

NAME = "VideoMAE"
AFRESH = ("fc_norm.", "head.")  # what fine-tuning starts with its first values
PATCHES = "patch_embed.proj.weight"  # [D, 3, frames, rows, columns]
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}  # of the published models S, B, L, H and g, by their width
COLOURS = {"DATA.MEAN": [0.485, 0.456, 0.406], "DATA.STD": [0.229, 0.224, 0.225]}  # as they were all trained
ARGS = {  # of the command that made the file
    "DATA.NUM_FRAMES": "num_frames",
    "DATA.SAMPLING_RATE": "sampling_rate",
    "DATA.TRAIN_CROP_SIZE": "input_size",
}
CONFIG = {  # of V2's `config.json`, in its `model_config`
    "NUM_HEADS": "num_heads",
    "DEPTH": "depth",
    "MLP_RATIO": "mlp_ratio",
    "DATA.TRAIN_CROP_SIZE": "img_size",
    "DATA.NUM_FRAMES": "num_frames",
}
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


def says(state: Mapping, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """What the kind of the file, its `args` and its `config.json` say of it."""
    patch = next(value for name, value in weights.items() if name.endswith(PATCHES))
    width = len(patch)
    found = {**COLOURS, "EMBED_DIM": width, "MODEL.PATCH_SIZE": list(patch.shape[2:])}
    found |= {"NUM_HEADS": HEADS[width]} if width in HEADS else {}
    settings = state.get("config.json")
    named = settings.get("model_config") if isinstance(settings, Mapping) else None
    return found | of_args(state) | _named(named if isinstance(named, Mapping) else {}, CONFIG)


def of_args(state: Mapping) -> dict[str, object]:
    """What the `args` of a file say: those of the command that made it."""
    args = state.get("args")
    return _named(vars(args) if isinstance(args, argparse.Namespace) else {}, ARGS)


def _named(values: Mapping[str, object], table: Mapping[str, str]) -> dict[str, object]:
    """The settings of the table that the file has; clips are tested in the size that they are trained in."""
    found = {key: values[name] for key, name in table.items() if values.get(name) is not None}
    size = found.get("DATA.TRAIN_CROP_SIZE")
    return found if size is None else {**found, "DATA.TEST_CROP_SIZE": size}


def rename(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Raises `UserError` for a fine-tuned file where the model pre-trains."""
    own = model.state_dict()
    pretrained = f"encoder.{PATCHES}" in weights
    if f"encoder.{PATCHES}" in own:
        if not pretrained:
            raise UserError(
                "the file is a fine-tuned one, without decoder: expected a pre-trained one for VideoMAE; to fine-tune"
                " or test, set MODEL.MODEL_NAME ViT"
            )
        return substitute(PRETRAINED, weights)
    named = substitute(PRETRAINED if pretrained else FINETUNED, weights)
    return {_in_vit(name, own): value for name, value in named.items()}


def _in_vit(name: str, own: Mapping[str, Tensor]) -> str:
    """The name of an encoder's tensor in ViT. What ViT does not have keeps its own: the audit says so."""
    short = name.removeprefix("encoder.")
    return short if short in own else name
