"""Files of VideoMAE in transformers (huggingface/transformers): `model.safetensors` and `pytorch_model.bin`.

The network of VideoMAE V1 under other names, with queries, keys and values apart. Its clips are RGB, normalised with
ImageNet's mean and deviation (DATA.MEAN 0.485, 0.456, 0.406; DATA.STD 0.229, 0.224, 0.225), and its own code takes
other epsilons than the training did and ours does: 1e-12 in blocks, 1e-5 in `fc_norm` and `decoder.norm`, for 1e-6.
The files hold no positions: `config.json` beside them says what clips these are for.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from videorl.convert import substitute, videomae
from videorl.registry import UserError

NAME = "transformers' VideoMAE"
LARGEST = 4096  # frames or pixels: more is a mistake, and its table would fill the memory
QUERY = ".attention.attention.query.weight"
TABLE = [
    (r"^videomae\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "encoder.patch_embed.proj."),
    (r"^encoder\.layer\.", "encoder.blocks."),
    (r"^decoder\.decoder_layers\.", "decoder.blocks."),
    (r"^layernorm\.", "encoder.norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.([qv])(uery\.|alue\.|_)bias$", r".attn.\1_bias"),  # since version 5, and before it
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^classifier\.", "head."),
]


def matches(names: set[str]) -> bool:
    return {
        "videomae.embeddings.patch_embeddings.projection.weight",
        "videomae.encoder.layer.0" + QUERY,
    } <= names


def afresh(names: set[str]) -> tuple[str, ...]:
    return () if _is_finetuned(names) else videomae.AFRESH


def clip_of(state: Mapping) -> tuple[int, int, int]:
    """Frames, rows, columns of the file's clips as its `config.json` says, or as published. Raises `UserError`."""
    settings = state.get("config.json")
    if not isinstance(settings, Mapping) or settings.get("model_type") != "videomae":
        return videomae.CLIP
    frames, size = settings.get("num_frames", videomae.CLIP[0]), settings.get("image_size", videomae.CLIP[1])
    clip = (frames, *size) if isinstance(size, list) else (frames, size, size)
    if len(clip) != 3 or not all(type(length) is int and 0 < length <= LARGEST for length in clip):
        raise UserError(
            f"config.json beside the file: num_frames {frames!r}, image_size {size!r}: expected whole numbers of"
            f" frames and pixels, at most {LARGEST}"
        )
    return clip


def remarks(names: set[str], clip: tuple[int, int, int] = videomae.CLIP) -> list[str]:
    return videomae.remarks(names, clip)


def rename(
    weights: Mapping[str, Tensor], model: nn.Module, clip: tuple[int, int, int] = videomae.CLIP
) -> dict[str, Tensor]:
    """As VideoMAE's own layout, with the names of VideoMAE V1 in between."""
    named = substitute(TABLE, _joined(weights))
    if _is_finetuned(weights):
        named = substitute([(r"^encoder\.", "")], named)
    return videomae.rename(named, model, clip)


def _is_finetuned(names: Iterable[str]) -> bool:
    return "classifier.weight" in names


def _joined(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with those of queries, keys and values stacked. Keys have no bias."""
    joined = dict(weights)
    for layer in [name.removesuffix(QUERY) for name in weights if name.endswith(QUERY)]:
        parts = [f"{layer}.attention.attention.{part}.weight" for part in ("query", "key", "value")]
        if all(part in joined for part in parts):
            joined[f"{layer}.attn.qkv.weight"] = torch.cat([joined.pop(part) for part in parts])  # [3D, D]
    return joined
