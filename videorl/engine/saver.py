"""Writing checkpoints while training: when they are due, in the background if asked, and what happens if one cannot be."""

import logging
import threading
import time
from pathlib import Path

import torch

from videorl import checkpoint, dist
from videorl.engine.state import State
from videorl.registry import UserError

log = logging.getLogger("videorl")

MISSES_IN_A_ROW = 3


class Saver:
    """Writes the checkpoints of a run from rank 0. A write that fails leaves the older ones standing and is counted."""

    def __init__(self, cfg, state: State):
        self.node, self.state = cfg.TRAIN, state
        self.folder = Path(cfg.OUTPUT_DIR) / "checkpoints"
        self.last = time.monotonic()
        self.misses = 0
        self.thread: threading.Thread | None = None
        if self.node.KEEP_CHECKPOINTS == 1:
            raise UserError("TRAIN.KEEP_CHECKPOINTS 1: the only one could be the one being written; keep 2 or more, or 0 for all")

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

    def save_best(self, value: float) -> None:
        self._write(checkpoint.BEST, self.state.weights(), {"metric": value, "step": self.state.steps_done})

    def _write(self, name: str, content: dict, note: dict) -> None:
        if not dist.is_main():
            return
        self.wait()
        if not self.node.ASYNC_CHECKPOINT:
            self._try(name, content, note)
            return
        copied = _on_cpu(content)
        self.thread = threading.Thread(target=self._try, args=(name, copied, note))
        self.thread.start()

    def _try(self, name: str, content: dict, note: dict) -> None:
        try:
            checkpoint.save(self.folder / name, content, note)
            checkpoint.prune(self.folder, self.node.KEEP_CHECKPOINTS)
            self.misses = 0
        except OSError as error:
            self.misses += 1
            log.error(
                "checkpoint %s was NOT written (%s), %d in a row; older checkpoints stand, the run goes on",
                self.folder / name,
                error,
                self.misses,
            )

    def wait(self) -> None:
        """Returns when nothing is being written. Raises `UserError` after too many failures."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.misses >= MISSES_IN_A_ROW:
            raise UserError(f"{self.misses} checkpoints in a row could not be written to {self.folder}: make room there")


def _on_cpu(value):
    """A copy that later steps do not change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((k, _on_cpu(v)) for k, v in value.items())
    return [_on_cpu(v) for v in value] if isinstance(value, list) else value
