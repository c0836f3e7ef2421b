"""Which weights and which config are meant by a run or a checkpoint."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from videorl import checkpoint, config
from videorl.engine import best, given
from videorl.registry import UserError


def checkpoint_of(run: Path) -> Path:
    """The file itself; of an OUTPUT_DIR the checkpoint that its test takes. Raises `UserError`."""
    if run.is_file():
        return run
    if not run.is_dir():
        raise UserError(f"{run} does not exist; name a checkpoint, or the OUTPUT_DIR of a run")
    folder = run / "checkpoints"
    if found := best.chosen(folder, _best_metric(folder)):
        return found
    if any((run / name).is_file() for name in checkpoint.PUBLISHED):
        return run
    raise UserError(f"{run} holds no checkpoint that can be read; name the OUTPUT_DIR of a run that has saved one")


def _best_metric(folder: Path) -> str | None:
    """TRAIN.BEST_METRIC of the newest checkpoint, if that can be read."""
    for file in checkpoint.committed(folder)[:1]:
        with contextlib.suppress(UserError):
            return load_config(file, "", [])[0].TRAIN.BEST_METRIC
    return None


def load_config(file: Path, named: str, overrides: Sequence[str]) -> tuple[CfgNode, list[str]]:
    """The config that a checkpoint of a run holds, or else the one `named`; and lines on what it says of itself.

    Raises `UserError` where there is neither.
    """
    overrides = [*given.ANY_MAY_BE_BAD, *overrides]
    if named:
        return given.load_config([named], overrides, file)
    text = checkpoint.read(file, mapped=True).get("cfg")
    if not isinstance(text, str):
        raise UserError(f"{file} holds no config: name the one of its model with --cfg (`videorl configs` lists some)")
    try:
        return config.load([], overrides, texts={f"{file}: cfg": text}), []
    except UserError as error:
        raise UserError(f"{error}; another config can be named with --cfg") from None
