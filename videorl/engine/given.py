"""The config of a run: what files and command line give, and below it what its checkpoint says of itself.

Imports no torch before keys and values were looked at: whoever has mistyped one does not wait for it.
"""

from collections.abc import Iterable
from pathlib import Path

from yacs.config import CfgNode

from videorl import config
from videorl.settings import Setting

# For commands that list what cannot be read: how much is too much is for whoever reads the list to judge.
ANY_MAY_BE_BAD = ("DATA.MAX_BAD_FRACTION", "1.0")


def load_config(
    files: Iterable[str | Path], overrides: Iterable[str], named: Path | None = None, **top
) -> tuple[CfgNode, list[str]]:
    """The config, and lines for the log of what the checkpoint has to do with it.

    Settings that no file and no word of the command line gives are those of the checkpoint whose weights come first:
    `named`, or the one that the config names or that stands in OUTPUT_DIR. Raises `UserError` where a named one is
    none.
    """
    before, first, said = {}, [], []

    def known(tree: CfgNode) -> list[Setting]:
        from videorl.engine import weights

        file, is_named = (named, True) if named else weights.first_file(tree)
        before.update(config.flat(tree))
        first.extend(weights.settings_in(file, is_named, tree, said) if file else [])
        return first

    cfg = config.load(files, overrides, known, **top)
    now = config.flat(cfg)
    values = {".".join(setting.path): setting.value for setting in first}
    taken = [f"{key} {value}" for key, value in values.items() if before[key] != value == now[key]]
    if taken:
        said.append(f"taken from {first[0].source}, for nothing else says it: {', '.join(taken)}")
    return cfg, said
