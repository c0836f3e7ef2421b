"""Files of PySlowFast (facebookresearch/SlowFast), whose names of tensors are ours.

MViTv1, MViTv2, and the ViTs and MViTs of MAE and MaskFeat; of the pre-training files the decoder is not used.
"""

from collections.abc import Mapping

from torch import Tensor, nn

NAME = "PySlowFast"


def matches(names: set[str]) -> bool:
    own = {"head.projection.weight", "pos_embed_spatial", "mask_token", "blocks.0.attn.pool_k.weight"}
    others = any(".proj_max_pool." in name or name.startswith("head.heads.") for name in names)
    return {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= names and bool(own & names) and not others


def rename(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return dict(weights)
