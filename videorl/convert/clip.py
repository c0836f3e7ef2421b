"""Files of OpenAI's CLIP (openai/CLIP, and open_clip's with these names) and of AVION (zhaoyue-zephyrus/AVION).

AVION's tower is CLIP's with positions in time, written with or without FlashAttention's names. Of CLIP all but the
projections is taken for a video model, which add to another space; those too, where the space is as wide.
"""

import math
from collections.abc import Mapping

from torch import Tensor, nn

from videorl.convert import substitute
from videorl.convert.lavila import COLOURS, LEFT, in_tower, text_of, without_scale
from videorl.convert.timesformer import described, temporal

NAME = "CLIP or AVION"
CONV = "visual.conv1.weight"  # [D, 3, P, P], or [D, 3*P*P] as AVION's faster form
TABLE = [
    (r"^(transformer\.|token_embedding\.|positional_embedding$|ln_final\.)", r"text.model.\1"),
    (r"^textual\.text_projection$", "text_projection"),
    (r"^textual\.", "text.model."),
    (r"^visual\.(image_projection|proj)$", "video_projection"),
    (r"^visual\.class_embedding$", "video.cls_token"),
    (r"^visual\.positional_embedding$", "video.pos_embed"),
    (r"^visual\.temporal_embedding$", "video.time_embed"),
    (r"^visual\.conv1\.", "video.patch_embed.proj."),
    (r"^visual\.ln_post\.", "video.norm."),
    (r"^visual\.transformer\.resblocks\.", "video.blocks."),
    (r"^visual\.", "video."),
    (r"^(video\.blocks\.\d+\.)ln_([12])\.", r"\1norm\2."),
    (r"^(video\.blocks\.\d+\.attn\.)(in_proj_|Wqkv\.)", r"\1qkv."),
    (r"^(video\.blocks\.\d+\.attn\.)out_proj\.", r"\1proj."),
    (r"^(video\.blocks\.\d+\.mlp\.)c_fc\.", r"\1fc1."),
    (r"^(video\.blocks\.\d+\.mlp\.)c_proj\.", r"\1fc2."),
    (r"^fc_cls\.(weight|bias)$", r"head.projection.\1"),
]

__all__ = ["LEFT", "NAME", "afresh", "matches", "rename", "says"]


def matches(names: set[str]) -> bool:
    return {CONV, "visual.class_embedding", "visual.transformer.resblocks.0.ln_1.weight"} <= names


def afresh(names: set[str]) -> tuple[str, ...]:
    """What CLIP, a model of images, leaves to the first values."""
    if "visual.temporal_embedding" in names:
        return ()
    return ("video_projection", "text_projection", *temporal(name.replace("resblocks", "blocks") for name in names))


def says(state: Mapping, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """What AVION's weights show, and their activation, which was meant to be CLIP's but is not. Nothing of CLIP's: they
    are the start of many models."""
    if "visual.temporal_embedding" not in weights:
        return {}
    named = substitute(TABLE, weights)
    shown = {"ATTENTION_TYPE": "joint_space_time", "ACTIVATION": "gelu", "PRE_NORM_EPS": 1e-6, "RESIZE": "linear"}
    found = {f"TIMESFORMER.{key}": value for key, value in shown.items()} | COLOURS | text_of(named)
    found |= {"DUAL.TEXT_ACTIVATION": "gelu"} if "DUAL.TEXT" in found else {}
    return found | described({name: value for name, value in named.items() if name.startswith("video.")})


def rename(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    given = without_scale(weights)
    if given[CONV].ndim == 2:
        side = math.isqrt(given[CONV].shape[1] // 3)
        given[CONV] = given[CONV].unflatten(1, (3, side, side))
    named = substitute(TABLE, given)
    own = dict(model.named_parameters())
    for name in ("video_projection", "text_projection"):
        if name in own and name in named and own[name].shape != named[name].shape and "visual.proj" in weights:
            del named[name]  # CLIP's space is another one
    return in_tower({name: value for name, value in named.items() if not _is_size(name)}, model)


def _is_size(name: str) -> bool:
    """What OpenAI's archive has beside its weights."""
    return name in ("input_resolution", "context_length", "vocab_size")
