"""Batches from worker processes that may meet bad files, crash or hang: such a sample is lost, the run is not.

Each worker notes in shared memory which sample it is at. A worker that dies, or stays at one sample for longer than the
timeout, is replaced, and so is its work. A sample that hangs its worker, or crashes two in a row, goes into quarantine.
torch's DataLoader cannot do this: it ends the run, or (with no timeout) waits for ever.
"""

import logging
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait

import numpy as np
import torch
import torch.multiprocessing  # teaches pipes to hand over tensors in shared memory

from videorl.data.quarantine import Bad, Quarantine
from videorl.data.video import VideoError
from videorl.registry import UserError

log = logging.getLogger("videorl")

NEIGHBOURS = 16  # samples that training tries in place of a bad one before it gives up
IDLE = -1


@dataclass(frozen=True)
class Job:
    """One batch to make: samples of an epoch, and the number of the optimizer step they belong to."""

    epoch: int
    step: int
    samples: list[int]


@dataclass
class Loaded:
    """A batch (None if no sample of it could be read) and the failures met while making it."""

    batch: dict | None
    bad: list[Bad] = field(default_factory=list)


@dataclass(frozen=True)
class Workers:
    """Node DATA_LOADER: processes, batches each prepares ahead, seconds at one sample after which it counts as hung."""

    count: int = 0
    prefetch: int = 2
    timeout: float = 120.0
    pin_memory: bool = False
    context: str = ""


class SampleFailed(RuntimeError):
    """A fault of the program, not of a file, while making a sample; holds the worker's traceback as text."""


class Loader:
    """Makes the batches of a data set. `mix(batch, job)` may change a collated batch (MixUp)."""

    def __init__(self, dataset, workers: Workers, quarantine: Quarantine, mix: Callable | None = None):
        self.workers, self.quarantine = workers, quarantine
        self.fetch = Fetch(dataset, mix)
        self.pool = Pool(self.fetch, workers) if workers.count else None

    def run(self, jobs: list[Job]) -> Iterator[dict | None]:
        """The batch of each job, in order."""
        for loaded in self.pool.run(jobs) if self.pool else map(self.fetch, jobs):
            self.quarantine.add(loaded.bad)
            pin = self.workers.pin_memory and loaded.batch is not None
            yield {k: _pinned(v) for k, v in loaded.batch.items()} if pin else loaded.batch

    def close(self) -> None:
        if self.pool:
            self.pool.close()


def _pinned(value):
    return value.pin_memory() if isinstance(value, torch.Tensor) else value


# ------------------------------------------------------------------------------------------------- what a worker runs


class Fetch:
    """Makes the batch of a job. A bad sample of a training set gives way to the next good one."""

    def __init__(self, dataset, mix: Callable | None):
        self.dataset, self.mix = dataset, mix
        self.lost: dict[int, str] = {}
        self.note: Callable[[int], None] = _no_note

    def __call__(self, job: Job) -> Loaded:
        self.dataset.epoch = job.epoch
        bad: list[Bad] = []
        items = [item for i in job.samples for item in self._items(i, bad)]
        batch = collate(items) if items else None
        if batch is not None and self.mix is not None:
            batch = self.mix(batch, job)
        return Loaded(batch, bad)

    def _items(self, i: int, bad: list[Bad]) -> list[dict]:
        tries = NEIGHBOURS if self.dataset.split == "train" else 1
        for step in range(tries):
            items = self._try((i + step) % len(self.dataset), bad)
            if items:
                return items
        if tries > 1:
            listed = "; ".join(f"{b.path}: {b.error}" for b in bad[-5:])
            raise UserError(f"{tries} training samples in a row cannot be read, the last of them: {listed}")
        return []

    def _try(self, i: int, bad: list[Bad]) -> list[dict]:
        path = self.dataset.path(i)
        if i in self.lost:
            bad.append(Bad(i, path, f"{self.lost[i]} of the decoder", self.lost[i]))
            return []
        self.note(i)
        try:
            items = self.dataset[i]
        except VideoError as error:
            bad.append(Bad(i, path, error.reason, error.stage))
            return []
        except UserError:
            raise
        except Exception as error:
            # Only text is sure to survive the trip between processes.
            text = traceback.format_exc()
            raise SampleFailed(f"sample {i} ({path}): {type(error).__name__}: {error}\n{text}") from None
        finally:
            self.note(IDLE)
        return items if isinstance(items, list) else [items]


def _no_note(index: int) -> None:
    """In the main process nobody watches."""


def collate(items: list[dict]) -> dict:
    """Dicts of equal keys to one dict: tensors are stacked, other values listed."""
    return {key: _together([item[key] for item in items]) for key in items[0]}


def _together(values: list):
    if not isinstance(values[0], (torch.Tensor, np.ndarray)):
        return values
    tensors = [torch.as_tensor(v) for v in values]
    if multiprocessing.parent_process() is None:
        return torch.stack(tensors)
    # Straight into shared memory: saves the copy that sending the batch to the main process would make.
    out = torch.empty((len(tensors), *tensors[0].shape), dtype=tensors[0].dtype)
    size = out.element_size() * out.numel()
    out = torch.empty(0, dtype=out.dtype).set_(out.untyped_storage()._new_shared(size)).view(out.shape)
    return torch.stack(tensors, out=out)


def _work(fetch: Fetch, pipe, at: torch.Tensor, parent: int) -> None:
    # One thread each: the workers are the parallelism, and torchcodec is four times slower with more.
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)

    def note(index: int) -> None:
        at[1] = time.monotonic()
        at[0] = index

    fetch.note = note
    while True:
        while not pipe.poll(2.0):
            if os.getppid() != parent:
                return
        number, job, fetch.lost = pipe.recv()
        try:
            result = fetch(job)
        except (UserError, SampleFailed) as error:
            result = error
        pipe.send((number, result))


# --------------------------------------------------------------------------------------------------- the main process


class Worker:
    """One worker process, its pipe, the jobs it has been given, and the sample it is at with the time it began."""

    def __init__(self, fetch: Fetch, context):
        self.at = torch.tensor([IDLE, 0.0], dtype=torch.float64).share_memory_()
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(fetch, theirs, self.at, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        self.pending: dict[int, Job] = {}

    @property
    def sample(self) -> int:
        return int(self.at[0])

    def silent(self) -> float:
        """Seconds it has been at its sample."""
        return time.monotonic() - float(self.at[1]) if self.sample != IDLE else 0.0

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Pool:
    """Worker processes that live as long as the run."""

    def __init__(self, fetch: Fetch, workers: Workers):
        self.fetch, self.settings = fetch, workers
        self.context = torch.multiprocessing.get_context(workers.context or None)
        self.workers: list[Worker] = []
        self.strikes: dict[int, int] = {}
        self.deaths_idle = 0
        self.given = 0

    def run(self, jobs: list[Job]) -> Iterator[Loaded]:
        if not self.workers:
            self.workers = [Worker(self.fetch, self.context) for _ in range(self.settings.count)]
        first = self.given
        self.given += len(jobs)
        ready: dict[int, Loaded] = {}
        self.fed = 0
        for done in range(len(jobs)):
            while first + done not in ready:
                self._feed(jobs, first, done)
                self._receive(ready, first)
            yield ready.pop(first + done)

    def _feed(self, jobs: list[Job], first: int, done: int) -> None:
        """Hands out the next jobs, no more ahead of the consumer than all workers may prepare."""
        limit = min(len(jobs), done + self.settings.count * self.settings.prefetch)
        while self.fed < limit:
            worker = min(self.workers, key=lambda w: len(w.pending))
            self._give(worker, first + self.fed, jobs[self.fed])
            self.fed += 1

    def _give(self, worker: Worker, number: int, job: Job) -> None:
        worker.pending[number] = job
        try:
            worker.pipe.send((number, job, self.fetch.lost))
        except OSError:
            log.debug("worker died before job %d reached it; it is replaced when that is noticed", number)

    def _receive(self, ready: dict[int, Loaded], first: int) -> None:
        handles = {w.pipe: w for w in self.workers} | {w.process.sentinel: w for w in self.workers}
        for worker in {handles[h] for h in wait(list(handles), timeout=0.5)}:
            try:
                while worker.pipe.poll():
                    number, result = worker.pipe.recv()
                    worker.pending.pop(number)
                    if isinstance(result, Exception):
                        raise result
                    if number >= first:
                        ready[number] = result
            except (EOFError, OSError):
                worker.process.kill()
            worker.process.join(0)
            if not worker.process.is_alive():
                self._replace(worker, "crash")
        for worker in [w for w in self.workers if w.silent() > self.settings.timeout]:
            self._replace(worker, "hang")

    def _replace(self, worker: Worker, stage: str) -> None:
        """A new worker with the old one's jobs; a sample that hung, or crashed twice, is not tried again."""
        index = worker.sample
        worker.end()
        if index == IDLE:
            self.deaths_idle += 1
            if self.deaths_idle > 10:
                raise RuntimeError(
                    "loader workers keep dying outside any sample (out of memory?): lower DATA_LOADER.NUM_WORKERS"
                )
        else:
            self.strikes[index] = self.strikes.get(index, 0) + 1
            if stage == "hang" or self.strikes[index] > 1:
                self.fetch.lost[index] = stage
        path = self.fetch.dataset.path(index) if index != IDLE else "no sample"
        fate = "the sample goes into quarantine" if index in self.fetch.lost else "it is tried once more"
        log.warning("loader worker lost (%s) at %s: %s; a new worker starts", stage, path, fate)
        new = Worker(self.fetch, self.context)
        self.workers[self.workers.index(worker)] = new
        for number, job in worker.pending.items():
            self._give(new, number, job)

    def close(self) -> None:
        for worker in self.workers:
            worker.end()
        self.workers = []
