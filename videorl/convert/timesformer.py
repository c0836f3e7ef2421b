"""Files of TimeSformer (facebookresearch/TimeSformer) and of timm's ViTs for images, which it starts from.

Their names of tensors are ours, but for the classifier. Of an image model, as in TimeSformer's code, the attention over
space is also the start of the divided one over time, whose last linear map begins with zeros.
"""

import math
import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from videorl.convert import substitute

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}  # of published widths
NAME = "TimeSformer or timm's ViT"
TABLE = [(r"^head\.(weight|bias)$", r"head.projection.\1"), (r"^norm_pre\.", "ln_pre.")]
COPIED = [(r"^(blocks\.\d+\.)(attn|norm1)\.", r"\1temporal_\2.")]


def matches(names: set[str]) -> bool:
    needed = {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.norm1.weight"}
    foreign = (".q_bias", "head.projection.", "head.heads.", "mask_token", ".attn.pool_", "decoder_", "rel_pos")
    return needed <= names and not any(part in name for name in names for part in foreign)


def afresh(names: set[str]) -> tuple[str, ...]:
    """What an image model leaves to the first values."""
    return temporal(names) if not any(part in name for name in names for part in ("time_embed", "temporal_")) else ()


def temporal(names: Iterable[str]) -> tuple[str, ...]:
    """Beginnings of the names of what TimeSformer and LaViLa's tower have beside an image model with these names."""
    blocks = {number.group(1) for name in names if (number := re.search(r"blocks\.(\d+)\.", name))}
    found = ["time_embed", *(f"blocks.{number}.temporal_" for number in sorted(blocks, key=int))]
    return tuple(front + name for name in found for front in ("", "video."))


def says(state: Mapping, weights: Mapping[str, Tensor]) -> dict[str, object]:
    return described(substitute(TABLE, weights))


def described(tower: Mapping[str, Tensor]) -> dict[str, object]:
    """Settings of node TIMESFORMER, and the clip, that the weights of a tower show, under our names."""
    tower = {name.removeprefix("video."): value for name, value in tower.items()}
    patches, table = tower["patch_embed.proj.weight"], tower["pos_embed"]
    width, patch = len(patches), patches.shape[-1] if patches.ndim == 4 else math.isqrt(patches.shape[1] // 3)
    size = math.isqrt(table.shape[-2] - 1) * patch
    depth = len({name.split(".")[1] for name in tower if name.startswith("blocks.")})
    shown = {"EMBED_DIM": width, "DEPTH": depth, "PATCH_SIZE": patch}
    shown |= {"NUM_HEADS": HEADS[width]} if width in HEADS else {}
    found = {f"TIMESFORMER.{key}": value for key, value in shown.items()}
    found |= {"DATA.TRAIN_CROP_SIZE": size, "DATA.TEST_CROP_SIZE": size}
    return found | ({"DATA.NUM_FRAMES": tower["time_embed"].shape[-2]} if "time_embed" in tower else {})


def rename(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    own, named = model.state_dict(), substitute(TABLE, weights)
    front = "video." if "video.cls_token" in own else ""
    named = {front * (not name.startswith("head.")) + name: value for name, value in named.items()}
    divided = any(name.endswith("temporal_fc.weight") for name in own)
    if divided and not any("temporal_attn." in name for name in named):
        copies = substitute(COPIED, {name.removeprefix(front): value for name, value in named.items()})
        named |= {front + name: value for name, value in copies.items() if "temporal_" in name}
    return named
