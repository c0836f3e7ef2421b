"""Files of PySlowFast (facebookresearch/SlowFast), whose names of tensors are ours.

MViTv1, MViTv2, and the ViTs and MViTs of MAE and MaskFeat; of the pre-training files the decoder is not used. Queries,
keys and values may stand apart (MVIT.SEPARATE_QKV).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from videorl.registry import UserError

NAME = "PySlowFast"


def matches(names: set[str]) -> bool:
    own = {"head.projection.weight", "pos_embed_spatial", "mask_token", "blocks.0.attn.pool_k.weight"}
    foreign = (".proj_max_pool.", "head.heads.", ".attn.q_bias")
    others = {"decoder_pred.weight", "head.weight"} & names or any(part in name for name in names for part in foreign)
    attention = {"blocks.0.attn.qkv.weight", "blocks.0.attn.q.weight"} & names
    return "patch_embed.proj.weight" in names and bool(attention) and bool(own & names) and not others


def rename(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Raises `UserError` for VideoMAE's models, which have most of the names and no place for the rest."""
    if any(name.endswith(".attn.q_bias") for name, _ in model.named_parameters()):
        raise UserError(
            "a checkpoint of PySlowFast's MViT, with learned positions and biases that this model has no place for: set"
            " MODEL.MODEL_NAME MViT (MaskMViT to pre-train) and the keys of node MVIT that it was trained with"
        )
    return joined(weights)


def joined(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with those and the biases of queries, keys and values stacked, where they stand apart."""
    found = {}
    for name, value in weights.items():
        front, _, end = name.rpartition(".attn.q.")
        parts = [f"{front}.attn.{part}.{end}" for part in "qkv"]
        if end and all(part in weights for part in parts):
            found[f"{front}.attn.qkv.{end}"] = torch.cat([weights[part] for part in parts])  # [3D, D] or [3D]
        elif not any(name.endswith((f".attn.{part}.weight", f".attn.{part}.bias")) for part in "kv"):
            found[name] = value
    return found
