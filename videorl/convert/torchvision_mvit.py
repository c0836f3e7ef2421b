"""Files of torchvision's `mvit_v1_b` and `mvit_v2_s` (pytorch/vision): the networks of PySlowFast under other names."""

from collections.abc import Mapping

from torch import Tensor, nn

from videorl.convert import substitute

NAME = "torchvision"
TABLE = [
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^pos_encoding\.class_token$", "cls_token"),
    (r"^pos_encoding\.(spatial|temporal|class)_pos$", r"pos_embed_\1"),
    (r"\.attn\.project\.0\.", ".attn.proj."),
    (r"\.attn\.pool_([qkv])\.pool\.", r".attn.pool_\1."),
    (r"\.attn\.pool_([qkv])\.norm_act\.0\.", r".attn.norm_\1."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^(blocks\.\d+)\.project\.", r"\1.proj."),
    (r"^head\.1\.", "head.projection."),
]


def matches(names: set[str]) -> bool:
    return {"conv_proj.weight", "pos_encoding.class_token"} <= names


def says(state: Mapping, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """How the published weights were trained."""
    return {"DATA.MEAN": [0.45, 0.45, 0.45], "DATA.STD": [0.225, 0.225, 0.225]}


def rename(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return substitute(TABLE, weights)
