"""Files of LaViLa (facebookresearch/LaViLa) and EgoVLP: dual encoders, and what they were fine-tuned to.

EgoVLP's are read as they are released and as LaViLa's convert_egovlp_ckpt.py leaves them.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from videorl.convert import substitute
from videorl.convert.timesformer import described

NAME = "LaViLa or EgoVLP"
VISUAL = "visual.blocks.0.timeattn.qkv.weight"
EGOVLP = [(r"^video_model\.", "visual."), (r"^text_model\.", "textual."), (r"^vid_proj\.", "image_projection.")]
EGOVLP += [(r"^txt_proj\.", "text_projection.")]
TABLE = [
    (r"^visual\.", "video."),
    (r"\btemporal_embed$", "time_embed"),
    (r"\.timeattn\.", ".temporal_attn."),
    (r"\.norm3\.", ".temporal_norm1."),
    (r"\.alpha_timeattn$", ".temporal_gate"),
    (r"^(transformer\.|token_embedding\.|positional_embedding$|ln_final\.)", r"text.model.\1"),
    (r"^textual\.", "text.model."),
    (r"^image_projection(\.0)?", "video_projection"),
    (r"^text_projection(\.1)?", "text_projection"),
    (r"^fc_cls\.(weight|bias)$", r"head.projection.\1"),
]
RED = [0.42481293, 0.4578275, 0.40821073]  # what models that start from CLIP were trained with: of red it is not CLIP's
COLOURS = {"DATA.MEAN": RED, "DATA.STD": [0.26862954, 0.26130258, 0.27577711]}
IMAGENET = {"DATA.MEAN": [0.485, 0.456, 0.406], "DATA.STD": [0.229, 0.224, 0.225]}
LEFT = {"logit_scale": "the temperature belongs to the loss (TEMPERATURE of infonce is 1 / exp of it)"}


def matches(names: set[str]) -> bool:
    return bool({VISUAL, VISUAL.replace("visual", "video_model")} & names) and "img_queries" not in names


def says(state: Mapping, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """What its weights show: those that start from CLIP have a norm in front of the blocks, and CLIP's activation."""
    named = substitute([*EGOVLP, *TABLE], weights)
    return tower_of(named) | text_of(named)


def tower_of(named: Mapping[str, Tensor]) -> dict[str, object]:
    """Settings that the weights of the tower show."""
    from_clip = "video.ln_pre.weight" in named
    found = described({name: value for name, value in named.items() if name.startswith("video.")})
    found |= COLOURS if from_clip else IMAGENET
    shown = {"ATTENTION_TYPE": "frozen_in_time", "ACTIVATION": "quick_gelu" if from_clip else "gelu"}
    shown |= {"PRE_NORM_EPS": 1e-5 if from_clip else 0.0, "RESIZE": "linear"}
    shown |= {"TEMPORAL_GATE": any(name.endswith(".temporal_gate") for name in named)}
    return found | {f"TIMESFORMER.{key}": value for key, value in shown.items()}


def text_of(named: Mapping[str, Tensor]) -> dict[str, object]:
    """Settings of node DUAL that the weights of a text tower and the projections show."""
    for kind, words, block in (
        ("clip", "token_embedding.weight", r"text\.model\.transformer\.resblocks\.(\d+)\."),
        ("distilbert", "embeddings.word_embeddings.weight", r"text\.model\.transformer\.layer\.(\d+)\."),
    ):
        if f"text.model.{words}" not in named:
            continue
        vocabulary, width = named[f"text.model.{words}"].shape
        layers = len({number.group(1) for name in named if (number := re.match(block, name))})
        found = {"TEXT": kind, "TEXT_WIDTH": width, "TEXT_LAYERS": layers, "TEXT_VOCABULARY": vocabulary}
        found |= {"TEXT_HEADS": width // 64} if width % 64 == 0 else {}
        return {f"DUAL.{key}": value for key, value in found.items()} | _space_of(named)
    return {}


def _space_of(named: Mapping[str, Tensor]) -> dict[str, object]:
    """The joint space, where the file maps to one."""
    if "text_projection.weight" in named:
        return {"DUAL.PROJECTION": "relu", "DUAL.EMBED_DIM": len(named["text_projection.weight"])}
    if "text_projection" in named:
        return {"DUAL.PROJECTION": "matrix", "DUAL.EMBED_DIM": named["text_projection"].shape[1]}
    return {}


def rename(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """For a dual encoder, or for a TimeSformer alone, which has no place for the text tower."""
    return in_tower(substitute([*EGOVLP, *TABLE], without_scale(weights)), model)


def without_scale(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name not in LEFT}


def in_tower(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights of a dual encoder under the names of `model`, which may be its video tower alone."""
    if any(name.startswith("video.") for name, _ in model.named_parameters()):
        return dict(weights)
    return {name.removeprefix("video."): value for name, value in weights.items()}
