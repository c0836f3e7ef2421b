"""Which weights and which config are meant by a run or a checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from videorl import checkpoint, config
from videorl.engine import given
from videorl.registry import UserError


def checkpoint_of(run: Path) -> Path:
    """The file itself; of an OUTPUT_DIR its best checkpoint or else the newest that is whole. Raises `UserError`."""
    if run.is_file():
        return run
    if not run.is_dir():
        raise UserError(f"{run} does not exist; name a checkpoint, or the OUTPUT_DIR of a run")
    folder = run / "checkpoints"
    best = folder / checkpoint.BEST
    if best.is_file() and not checkpoint.damage(best):
        return best
    if newest := checkpoint.newest(folder):
        return newest
    if any((run / name).is_file() for name in checkpoint.PUBLISHED):
        return run
    raise UserError(f"{run} holds no checkpoint that can be read; name the OUTPUT_DIR of a run that has saved one")


def load_config(file: Path, named: str, overrides: Sequence[str]) -> tuple[CfgNode, list[str]]:
    """The config that a checkpoint of a run holds, or else the one `named`; and lines on what it says of itself.

    Raises `UserError` where there is neither.
    """
    overrides = ["DATA.MAX_BAD_FRACTION", "1.0", *overrides]  # how many are bad is for whoever reads the list to judge
    if named:
        return given.load_config([named], overrides, file)
    text = checkpoint.read(file, mapped=True).get("cfg")
    if not isinstance(text, str):
        raise UserError(f"{file} holds no config: name the one of its model with --cfg (`videorl configs` lists some)")
    try:
        return config.load([], overrides, texts={f"{file}: cfg": text}), []
    except UserError as error:
        raise UserError(f"{error}; another config can be named with --cfg") from None
