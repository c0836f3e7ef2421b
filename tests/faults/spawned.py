"""`dist.launch` of two processes on a machine without GPUs, for test_processes.py: python spawned.py FOLDER ACTION."""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from tests.faults.warm import PATIENCE
from videorl import dist, exits
from videorl.engine.watch import Watch


class Job:
    """Rank 1 does `action`; rank 0 waits for it. Each rank leaves a file with its process number."""

    def __init__(self, folder: str, action: str):
        self.folder, self.action = Path(folder), action

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = state
        torch.cuda.set_device = lambda number: (
            None
        )  # the one thing that a process with a GPU does before it meets the others

    def __call__(self) -> None:
        with Watch(self.folder, PATIENCE) as watch:
            (self.folder / f"pid{dist.rank()}").write_text(str(os.getpid()))
            dist.barrier()  # whoever loses the other is killed, and would leave no file
            if dist.rank() == 1:
                {"kill": self.kill, "raise": self.fail, "wait": lambda: None}[self.action]()
            while self.action == "wait" and not watch.signal:
                time.sleep(0.05)
            dist.barrier()
            if watch.signal:
                raise SystemExit(exits.EXIT_PREEMPTED)

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(self) -> None:
        raise RuntimeError("injected")


if __name__ == "__main__":
    with exits.exit_codes():
        dist.launch(Job(*sys.argv[1:]), gpus=2, backend="gloo", timeout=PATIENCE)
