"""Files of LaViLa's narrators (facebookresearch/LaViLa): a video tower, an attention pool and a gated GPT-2.

Its names are ours but for the tower. Constants are left out: causal masks, and the zeros that are added in norms.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from videorl.convert import lavila, substitute

NAME = "LaViLa's narrator"
CONSTANT = re.compile(r"text_decoder\..*\.(attn|crossattention)\.(masked_)?bias|img_.*\.beta")


def matches(names: set[str]) -> bool:
    return {"img_queries", "text_decoder.transformer.wte.weight", lavila.VISUAL} <= names


def says(state: Mapping, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """What its weights show."""
    gpt = "text_decoder.transformer."
    (vocabulary, width), context = weights[f"{gpt}wte.weight"].shape, len(weights[f"{gpt}wpe.weight"])
    blocks = {int(number) for name in weights for number in re.findall(r"^text_decoder\.transformer\.h\.(\d+)\.", name)}
    looking = sorted(number for number in blocks if f"{gpt}h.{number}.ln_cross_attn.weight" in weights)
    found = {"WIDTH": width, "LAYERS": len(blocks), "VOCABULARY": vocabulary, "CONTEXT": context}
    found |= {"HEADS": width // 64} if width % 64 == 0 else {}
    found |= {"QUERIES": len(weights["img_queries"]), "GATED": f"{gpt}h.0.alpha_cattn" in weights}
    found |= {"CROSS_EVERY": looking[1] - looking[0]} if len(looking) > 1 else {}
    named = substitute(lavila.TABLE, weights)
    return lavila.tower_of(named) | {f"NARRATOR.{key}": value for key, value in found.items()}


def rename(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """For a narrator, or for a model that has its video tower alone."""
    kept = {name: value for name, value in weights.items() if not CONSTANT.fullmatch(name)}
    return lavila.in_tower(substitute(lavila.TABLE, kept), model)
