"""Files of PySlowFast (facebookresearch/SlowFast), whose names of tensors are ours.

MViTv1, MViTv2, and the ViTs and MViTs of MAE and MaskFeat; of the pre-training files the decoder is not used.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from videorl.registry import UserError

NAME = "PySlowFast"


def matches(names: set[str]) -> bool:
    own = {"head.projection.weight", "pos_embed_spatial", "mask_token", "blocks.0.attn.pool_k.weight"}
    foreign = (".proj_max_pool.", "head.heads.", ".attn.q_bias")
    others = any(part in name for name in names for part in foreign)
    return {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= names and bool(own & names) and not others


def rename(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Raises `UserError` for VideoMAE's models, which have most of the names and no place for the rest."""
    if any(name.endswith(".attn.q_bias") for name, _ in model.named_parameters()):
        raise UserError(
            "a checkpoint of PySlowFast's MViT, with learned positions and biases that this model has no place for: set"
            " MODEL.MODEL_NAME MViT (MaskMViT to pre-train) and the keys of node MVIT that it was trained with"
        )
    return dict(weights)
