"""Files of MultiTrain (JunweiLiang/MultiTrain): one label space or several, with projections and expander."""

import itertools
import re
from collections.abc import Mapping

from torch import Tensor, nn

from videorl.convert import substitute
from videorl.registry import UserError

NAME = "MultiTrain"
CROSS = re.compile(r"^head\.cross_dataset_heads\.([^.]+)\.weight$")
TABLE = [
    (r"\.proj_max_pool\.", ".proj."),
    (r"^expander\.", "head.expander."),
]


def matches(names: set[str]) -> bool:
    return any(".proj_max_pool." in name or CROSS.match(name) for name in names)


def rename(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    _check_variant(model)
    spaces = list(dict.fromkeys(name.split(".")[2] for name in weights if name.startswith("head.heads.")))
    named = {}
    for name, value in substitute(TABLE, weights).items():
        cross = CROSS.match(name)
        named[_projection(cross[1], spaces) if cross else name] = value
    return named


def _check_variant(model: nn.Module) -> None:
    """Names alone do not tell MultiTrain's MViT from PySlowFast's, whose outputs are others."""
    blocks = [block for block in getattr(model, "blocks", ()) if hasattr(block, "skip_raw")]
    if blocks and not all(block.skip_raw for block in blocks):
        raise UserError(
            "MultiTrain's files need MVIT.SKIP_PROJ_RAW True and MVIT.POOL_NORM_EPS 1e-5, or its own YAML: without them"
            " the model computes something else"
        )


def _projection(pair: str, spaces: list[str]) -> str:
    """The name of the projection that the file calls `a_b`, where a and b may hold underscores themselves."""
    found = [(a, b) for a, b in itertools.permutations(spaces, 2) if f"{a}_{b}" == pair]
    if len(found) != 1:
        raise UserError(
            f"projection {pair}: expected two of the file's heads ({', '.join(spaces)}) joined by '_' in one way,"
            f" found {len(found)}; rename it in the file to head.projections.<from>.<to>.weight"
        )
    return "head.projections.{}.{}.weight".format(*found[0])
