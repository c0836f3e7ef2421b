"""Files of VideoMAE in transformers (huggingface/transformers): `model.safetensors` and `pytorch_model.bin`.

The network of VideoMAE V1 under other names, with queries, keys and values apart. Its own code takes other epsilons
than the training did and ours does: 1e-12 in blocks, 1e-5 in `fc_norm` and `decoder.norm`, for 1e-6. What clips the
files are for, and how these are normalised, stands in `config.json` and `preprocessor_config.json` beside them.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from videorl.convert import substitute, videomae

NAME = "transformers' VideoMAE"
QUERY = ".attention.attention.query.weight"
SETTINGS = {
    "EMBED_DIM": "hidden_size",
    "DEPTH": "num_hidden_layers",
    "NUM_HEADS": "num_attention_heads",
    "DECODER_DIM": "decoder_hidden_size",
    "DECODER_DEPTH": "decoder_num_hidden_layers",
    "DECODER_HEADS": "decoder_num_attention_heads",
    "DATA.NUM_FRAMES": "num_frames",
    "DATA.TRAIN_CROP_SIZE": "image_size",
    "DATA.TEST_CROP_SIZE": "image_size",
}
COLOURS = {"DATA.MEAN": "image_mean", "DATA.STD": "image_std"}
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


def says(state: Mapping, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """What `config.json` and `preprocessor_config.json` say."""
    settings, colours = state.get("config.json"), state.get("preprocessor_config.json")
    found = dict(videomae.COLOURS)
    if isinstance(colours, Mapping):
        found |= {key: colours[name] for key, name in COLOURS.items() if name in colours}
    if not isinstance(settings, Mapping) or settings.get("model_type") != "videomae":
        return found
    found |= {key: settings[name] for key, name in SETTINGS.items() if name in settings}
    found["MODEL.PATCH_SIZE"] = [settings.get("tubelet_size", 2), *[settings.get("patch_size", 16)] * 2]
    width, hidden = settings.get("hidden_size"), settings.get("intermediate_size")
    if type(width) is type(hidden) is int and width > 0:
        found["MLP_RATIO"] = hidden / width
    return found


def rename(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """As VideoMAE's own layout, with the names of VideoMAE V1 in between."""
    named = substitute(TABLE, _joined(weights))
    if _is_finetuned(weights):
        named = substitute([(r"^encoder\.", "")], named)
    return videomae.rename(named, model)


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
