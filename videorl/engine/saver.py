"""Writing checkpoints while training: when they are due, in the background if asked, and what if one cannot be."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from videorl import checkpoint, dist
from videorl.engine.state import State
from videorl.registry import UserError

log = logging.getLogger("videorl")

MISSES_IN_A_ROW = 3


class Saver:
    """Writes the checkpoints of a run from rank 0. A write that fails leaves the older ones standing and is counted.

    All ranks call its methods together, and all of them raise `UserError` when too many writes have failed.
    """

    def __init__(self, cfg, state: State):
        self.node, self.state = cfg.TRAIN, state
        self.folder = Path(cfg.OUTPUT_DIR) / "checkpoints"
        self.last = time.monotonic()
        self.misses = 0
        self.background = ThreadPoolExecutor(1)
        self.writing: Future | None = None
        if self.node.KEEP_CHECKPOINTS == 1 or self.node.KEEP_CHECKPOINTS < 0:
            raise UserError(
                f"TRAIN.KEEP_CHECKPOINTS {self.node.KEEP_CHECKPOINTS}: a single one could be the one being written;"
                " keep 2 or more, or 0 for all"
            )

    def due(self) -> bool:
        """Inside an epoch: after every CHECKPOINT_STEPS steps, or CHECKPOINT_MINUTES by rank 0's clock."""
        if self.state.step_in_epoch == self.state.data.steps:
            return False
        if self.node.CHECKPOINT_STEPS and self.state.steps_done % self.node.CHECKPOINT_STEPS == 0:
            return True
        if not self.node.CHECKPOINT_MINUTES:
            return False
        return dist.on_main(lambda: time.monotonic() - self.last > 60 * self.node.CHECKPOINT_MINUTES)

    def save(self) -> None:
        """A checkpoint of the whole run at this step."""
        state = self.state
        name = checkpoint.name_of(state.epoch, state.step_in_epoch)
        self._write(name, state.content(), {"epoch": state.epoch, "step": state.steps_done})
        self.last = time.monotonic()

    def save_best(self, metric: str, value: float) -> None:
        """The weights of this step, which are the best by `metric`."""
        note = {"metric": metric, "value": value, "step": self.state.steps_done}
        self._write(checkpoint.BEST, self.state.weights(), note)

    def _write(self, name: str, content: dict, note: dict) -> None:
        self.wait()
        if dist.is_main() and self.node.ASYNC_CHECKPOINT:
            self.writing = self.background.submit(self._try, name, _on_cpu(content), note)
        elif dist.is_main():
            self._try(name, content, note)

    def _try(self, name: str, content: dict, note: dict) -> None:
        try:
            checkpoint.save(self.folder / name, content, note)
        except OSError as error:
            self.misses += 1
            log.error(
                "checkpoint %s was NOT written (%s), %d in a row; older checkpoints stand, the run goes on",
                self.folder / name,
                error,
                self.misses,
            )
            return
        self.misses = 0
        try:
            checkpoint.prune(self.folder, self.node.KEEP_CHECKPOINTS, self.folder / name)
        except OSError as error:
            log.warning("old checkpoints could not be deleted (%s)", error)

    def wait(self, misses: int = MISSES_IN_A_ROW) -> None:
        """Returns when nothing is being written. Raises `UserError` if the last `misses` writes have failed."""
        dist.on_main(lambda: self._wait(misses))

    def _wait(self, misses: int) -> None:
        if self.writing is not None:
            self.writing.result()
            self.writing = None
        if self.misses >= misses:
            what = "the last checkpoint" if self.misses == 1 else f"{self.misses} checkpoints in a row"
            raise UserError(
                f"{what} could not be written to {self.folder} (the log has the reason): make room there;"
                " the same command goes on from the newest that stands there"
            )

    def finish(self) -> None:
        """Returns when the last state is on the disk. Raises `UserError` if it could not be written."""
        self.wait(misses=1)
        self.background.shutdown()


def _on_cpu(value):
    """A copy that later steps do not change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((k, _on_cpu(v)) for k, v in value.items())
    return type(value)(map(_on_cpu, value)) if isinstance(value, (list, tuple)) else value
