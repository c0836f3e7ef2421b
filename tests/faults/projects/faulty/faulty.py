"""A tiny model and data set that break on request: VIDEORL_FAULT="action@where=value,…".

Actions: kill, segv, stop, term, exit, raise, odd_raise (an exception that cannot be pickled), sleep, hang (in C, where
no signal handler of Python runs), nan, inf.
Where: rank, step (forward passes of the model while training, from 1), eval (the same while evaluating), sample (index
in the training set), once (a file that is made when the fault fires; with it the fault fires no more). Each fault that
fires is noted in VIDEORL_FAULT_LOG.
"""

import ctypes
import os
import signal
import time
from pathlib import Path

from torch import nn

from videorl import dist
from videorl.data.labelled import BOUND, Kinetics
from videorl.registry import DATASETS, MODELS


class Fault:
    """The fault that the environment asks for, if any."""

    def __init__(self):
        action, _, where = os.environ.get("VIDEORL_FAULT", "").partition("@")
        self.action = action
        self.where = dict(pair.split("=", 1) for pair in where.split(",") if pair)

    def due(self, **place) -> bool:
        """Whether all conditions that `place` can tell hold, and `once` has not been used up."""
        if not self.action or not set(place) & set(self.where):
            return False
        conditions = {k: v for k, v in self.where.items() if k != "once"}
        known = {"rank": dist.rank(), **place}
        if any(str(known.get(key)) != value for key, value in conditions.items()):
            return False
        return "once" not in self.where or not Path(self.where["once"]).exists()

    def fire(self) -> None:
        with open(os.environ["VIDEORL_FAULT_LOG"], "a") as out:
            out.write(f"{self.action} {time.time()}\n")
        if "once" in self.where:
            Path(self.where["once"]).touch()
        getattr(self, f"_{self.action}", lambda: None)()

    def _kill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def _segv(self):
        os.kill(os.getpid(), signal.SIGSEGV)

    def _stop(self):
        os.kill(os.getpid(), signal.SIGSTOP)

    def _term(self):
        os.kill(os.getpid(), signal.SIGTERM)

    def _exit(self):
        os._exit(0)

    def _raise(self):
        raise RuntimeError("injected")

    def _odd_raise(self):
        class Odd(Exception):
            def __init__(self, a, b):
                super().__init__(a)

        raise Odd(1, 2)

    def _sleep(self):
        time.sleep(3600)

    def _hang(self):
        lock = ctypes.create_string_buffer(
            64
        )  # a pthread mutex; a signal does not end the wait for it, as it ends a sleep
        for _ in range(2):
            ctypes.CDLL(None).pthread_mutex_lock(lock)


FAULT = Fault()


@MODELS.register("tiny", node="TINY", num_classes="MODEL.NUM_CLASSES")
class Tiny(nn.Module):
    """Two layers over a clip's pixels, with dropout and batch norm, so that everything a checkpoint must hold is there.

    Keys:
        width: hidden units
        dropout: probability
        seconds: seconds that each training step sleeps, for tests that hit a run in the middle
        spare: make a layer that no output depends on
    """

    def __init__(
        self,
        spec,
        *,
        num_classes: int,
        width: int = 16,
        dropout: float = 0.2,
        seconds: float = 0.0,
        spare: bool = False,
    ):
        super().__init__()
        self.seconds, self.calls, self.eval_calls = seconds, 0, 0
        self.spare = nn.Linear(2, 2) if spare else None
        self.body = nn.Sequential(nn.Conv3d(3, width, (2, 8, 8), (2, 8, 8)), nn.BatchNorm3d(width), nn.GELU())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)

    def forward(self, video):
        features = self.dropout(self.body(video).mean((2, 3, 4)))
        logits = self.head(features)
        if self.training:
            self.calls += 1
            time.sleep(self.seconds)
            if FAULT.due(step=self.calls):
                FAULT.fire()
                logits = logits * {"nan": float("nan"), "inf": float("inf")}.get(FAULT.action, 1.0)
        else:
            self.eval_calls += 1
            if FAULT.due(eval=self.eval_calls):
                FAULT.fire()
        # Two views of one embedding, so that losses between two modalities have something to compare.
        pair = {"video_embed": features, "text_embed": features.roll(1, 1)}
        return {"logits": logits, "features": features, **pair}


@DATASETS.register("faulty", **BOUND)
class Faulty(Kinetics):
    """Kinetics whose training sample `sample` breaks as asked; each sample read is noted in VIDEORL_READ_LOG."""

    def __getitem__(self, i):
        if self.split == "train" and FAULT.due(sample=i):
            FAULT.fire()
        if self.split == "train" and "VIDEORL_READ_LOG" in os.environ:
            with open(os.environ["VIDEORL_READ_LOG"], "a") as out:
                out.write(f"{self.epoch} {i}\n")
        return super().__getitem__(i)
