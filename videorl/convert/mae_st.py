"""Files of MAE's own video code (facebookresearch/mae_st), pre-trained and fine-tuned: plain ViTs for MViT.

The names are PySlowFast's, but for the classifier; queries, keys and values stand apart. The decoder, which has a class
token of its own, fits no model of ours. The settings are those of PySlowFast's `k400_VIT_B_16x4_FT.yaml` and its like.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from videorl.convert import pyslowfast, substitute, videomae

NAME = "mae_st"
COLOURS = {"DATA.MEAN": [0.45, 0.45, 0.45], "DATA.STD": [0.225, 0.225, 0.225]}


def matches(names: set[str]) -> bool:
    return {"patch_embed.proj.weight", "blocks.0.attn.q.weight"} <= names and bool(
        {"decoder_pred.weight", "head.weight"} & names
    )


def afresh(names: set[str]) -> tuple[str, ...]:
    return ("head.",) if "decoder_pred.weight" in names else ()


def says(state: Mapping, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """What the tensors, the published sizes and the `args` of the file say."""
    width, _, *patch = weights["patch_embed.proj.weight"].shape
    found = {**COLOURS, "EMBED_DIM": width, "PATCH_KERNEL": patch, "PATCH_STRIDE": patch, "PATCH_PADDING": [0, 0, 0]}
    found |= {"CLS_EMBED_ON": "cls_token" in weights, "SEP_POS_EMBED": "pos_embed_spatial" in weights}
    found |= {"USE_MEAN_POOLING": True}
    found |= {"NUM_HEADS": videomae.HEADS[width]} if width in videomae.HEADS else {}
    return found | videomae.of_args(state)


def rename(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return substitute([(r"^head\.(weight|bias)$", r"head.projection.\1")], pyslowfast.joined(weights))
