"""Batches from worker processes that may meet bad files, crash or hang: such a sample is lost, the run is not.

Each worker notes in shared memory which sample it is at. A worker that dies, or stays at one sample for longer than the
timeout, is replaced, and so is its work. A sample that hangs its worker, or crashes two in a row, goes into quarantine.
torch's DataLoader cannot do this: it ends the run, or (with no timeout) waits for ever.
"""

import itertools
import logging
import math
import mmap
import multiprocessing
import os
import pickle
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait

import numpy as np
import torch

from videorl.data.quarantine import Bad, Quarantine
from videorl.data.regions import end_to_end
from videorl.data.video import VideoError
from videorl.registry import UserError

log = logging.getLogger("videorl")

NEIGHBOURS = 16  # samples, from a bad one on, that training tries before it looks all over the data set
GOLDEN = (math.sqrt(5) - 1) / 2  # steps of this part of a range fall far from each other
IDLE = -1
SMALL = 2**16  # bytes: tensors below are sent as they are, larger ones in shared memory


@dataclass(frozen=True)
class Job:
    """One batch to make: samples of an epoch, and the number of the optimizer step they belong to."""

    epoch: int
    step: int
    samples: list[int]


@dataclass
class Loaded:
    """A batch and the failures met while making it.

    The batch is None if no sample of it could be read; when training, if one could neither be read nor replaced.
    """

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
    """A fault of the program, not of a file, while making a sample or batch; holds the worker's traceback as text."""


class Loader:
    """Makes the batches of a data set. `mix(batch, job)` may change a collated batch (MixUp).

    Raises nothing for unreadable samples: they stand in the quarantine, which whoever takes the batches must check.
    """

    def __init__(self, dataset, workers: Workers, quarantine: Quarantine, mix: Callable | None = None):
        self.workers, self.quarantine = workers, quarantine
        self.training = dataset.split == "train"
        self.fetch = Fetch(dataset, mix, quarantine.longest_run if self.training else None)
        self.pool = Pool(self.fetch, workers) if workers.count else None

    def run(self, jobs: list[Job]) -> Iterator[dict | None]:
        """The batch of each job, in order. An evaluation with too many bad samples ends early: it cannot be saved."""
        for loaded in self.pool.run(jobs) if self.pool else map(self.fetch, jobs):
            self.quarantine.add(loaded.bad)
            if self.quarantine.too_many and not self.training:
                return
            pin = self.workers.pin_memory and loaded.batch is not None
            yield {k: _pinned(v) for k, v in loaded.batch.items()} if pin else loaded.batch

    def close(self) -> None:
        if self.pool:
            self.pool.close()


def _pinned(value):
    return value.pin_memory() if isinstance(value, torch.Tensor) else value


# ------------------------------------------------------------------------------------------------- what a worker runs


class Fetch:
    """Makes the batch of a job.

    A bad sample gives way to the next good one, which mostly is of its class, or if its NEIGHBOURS are bad too, to one
    of `spread` others from all over the data set. `spread` None, for evaluation: nothing takes its place.
    """

    def __init__(self, dataset, mix: Callable | None, spread: int | None = None):
        self.dataset, self.mix, self.spread = dataset, mix, spread
        self.lost: dict[int, str] = {}
        self.note: Callable[[int], None] = _no_note

    def __call__(self, job: Job) -> Loaded:
        try:
            return self._load(job)
        except (UserError, SampleFailed):
            raise
        except Exception as error:
            raise _failed(f"batch of samples {job.samples}", error) from None

    def _load(self, job: Job) -> Loaded:
        self.dataset.epoch = job.epoch
        bad: list[Bad] = []
        items: list[dict] = []
        for i in job.samples:
            found = self._items(i, bad)
            if not found and self.spread is not None:
                return Loaded(None, bad)
            items += found
        batch = collate(items) if items else None
        if batch is not None and self.mix is not None:
            batch = self.mix(batch, job)
        return Loaded(batch, bad)

    def _items(self, i: int, bad: list[Bad]) -> list[dict]:
        for candidate in [i] if self.spread is None else candidates(i, len(self.dataset), self.spread):
            if items := self._try(candidate, bad):
                return items
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
            raise _failed(f"sample {i} ({path})", error) from None
        finally:
            self.note(IDLE)
        return items if isinstance(items, list) else [items]


def candidates(i: int, length: int, spread: int) -> Iterator[int]:
    """Sample i of `length`, its neighbours, then `spread` from all over, each once."""
    near = min(NEIGHBOURS, length)
    yield from ((i + k) % length for k in range(near))
    stride = round(GOLDEN * length)
    while math.gcd(stride, length) > 1:  # only without a common factor does it come to all of them
        stride += 1
    far = ((i + k * stride) % length for k in range(1, length))
    yield from itertools.islice((j for j in far if (j - i) % length >= near), spread)


def _failed(what: str, error: Exception) -> SampleFailed:
    """The error as text: nothing else is sure to survive the trip between processes."""
    return SampleFailed(f"{what}: {type(error).__name__}: {error}\n{traceback.format_exc()}")


def _no_note(index: int) -> None:
    """In the main process nobody watches."""


def collate(items: list[dict]) -> dict:
    """Dicts of equal keys to one dict: tensors are stacked, `regions` joined end to end, other values listed."""
    join = {"regions": end_to_end}
    return {key: join.get(key, _together)([item[key] for item in items]) for key in items[0]}


def _together(values: list):
    if not isinstance(values[0], (torch.Tensor, np.ndarray)):
        return values
    tensors = [torch.as_tensor(v) for v in values]
    # One layout in memory, with and without workers: the last bits of a convolution depend on it.
    out = torch.empty((len(tensors), *tensors[0].shape), dtype=tensors[0].dtype)
    return torch.stack(tensors, out=out)


def _work(fetch: Fetch, pipe, memories: socket.socket, at) -> None:
    # One thread each: the workers are the parallelism, and torchcodec is four times slower with more.
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()

    def note(index: int) -> None:
        at[1] = time.monotonic()
        at[0] = index

    fetch.note = note
    while True:
        number, job, fetch.lost = pipe.recv()
        try:
            _send(pipe, memories, number, fetch(job))
        except (UserError, SampleFailed) as error:
            pipe.send((number, error))


def _end_with_parent(parent: int) -> None:
    """A main process that was killed cannot end its workers, and one at a hanging file would stay for ever.

    The parent is the main process, or the fork server, which ends with it.
    """
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


# ------------------------------------------------------------------------------- the way from worker to main process


@dataclass(frozen=True)
class Shared:
    """Stands for a tensor in a message whose bytes are in shared memory."""

    dtype: torch.dtype
    shape: torch.Size


def _send(pipe, memories: socket.socket, number: int, loaded: Loaded) -> None:
    """Sends a batch so that nothing more is needed of this process: it may be gone, or hang, before it is received.

    That is why torch does not send the tensors: its receiver asks the sender for the memory, and waits for the answer.
    """
    files: list[int] = []
    batch = loaded.batch and {key: _pack(value, files) for key, value in loaded.batch.items()}
    try:
        message = pickle.dumps((number, replace(loaded, batch=batch)))
    except Exception as error:
        raise _failed(f"a batch of {', '.join(batch)} cannot be sent", error) from None
    if files:
        socket.send_fds(memories, [b"."], files)
    pipe.send_bytes(message)
    for file in files:
        os.close(file)


def _pack(value, files: list[int]):
    size = value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0
    if size < SMALL:
        return value
    file = _nameless_file()
    os.truncate(file, size)
    files.append(file)
    _mapped(file, value.dtype, value.shape).copy_(value)
    return Shared(value.dtype, value.shape)


def _nameless_file() -> int:
    """Not in /dev/shm: containers often have 64 MB of it, and to write more kills the process."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("batch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _unpack(loaded: Loaded, memories: socket.socket) -> Loaded:
    if loaded.batch is None:
        return loaded
    count = sum(isinstance(value, Shared) for value in loaded.batch.values())
    files = iter(socket.recv_fds(memories, 1, count)[1] if count else [])
    return replace(loaded, batch={key: _unpacked(value, files) for key, value in loaded.batch.items()})


def _unpacked(value, files: Iterator[int]):
    if not isinstance(value, Shared):
        return value
    file = next(files)
    tensor = _mapped(file, value.dtype, value.shape)
    os.close(file)
    return tensor


def _mapped(file: int, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    memory = mmap.mmap(file, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


# --------------------------------------------------------------------------------------------------- the main process


class Worker:
    """One worker process, its pipe, the jobs it has been given, and the sample it is at with the time it began."""

    def __init__(self, fetch: Fetch, context):
        self.at = context.RawArray("d", [IDLE, 0.0])
        self.pipe, its_pipe = context.Pipe()
        self.memories, its_memories = socket.socketpair()
        self.process = context.Process(target=_work, args=(fetch, its_pipe, its_memories, self.at), daemon=True)
        self.process.start()
        its_pipe.close()
        its_memories.close()
        self.pending: dict[int, Job] = {}

    @property
    def sample(self) -> int:
        return int(self.at[0])

    def silent(self) -> float:
        """Seconds it has been at its sample."""
        return time.monotonic() - self.at[1] if self.sample != IDLE else 0.0

    def receive(self) -> tuple[int, Loaded]:
        """Number and result of a job. Raises what the job raised, and `EOFError` or `OSError` if the worker died."""
        number, result = self.pipe.recv()
        if isinstance(result, Exception):
            raise result
        return number, _unpack(result, self.memories)

    def end(self) -> str:
        """Ends the process, and says how it had ended if it had."""
        code = self.process.exitcode
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.memories.close()
        return "" if code is None else signal.Signals(-code).name if code < 0 else f"exit code {code}"


class Pool:
    """Worker processes that live as long as the run."""

    def __init__(self, fetch: Fetch, workers: Workers):
        self.fetch, self.settings = fetch, workers
        known = multiprocessing.get_all_start_methods()
        if workers.context and workers.context not in known:
            raise UserError(f"DATA_LOADER.MP_CONTEXT {workers.context!r}: expected {', '.join(known)}, or nothing")
        self.context = multiprocessing.get_context(workers.context or None)
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
                    number, loaded = worker.receive()
                    worker.pending.pop(number)
                    self.deaths_idle = 0
                    if number >= first:
                        ready[number] = loaded
            except (EOFError, OSError):
                worker.process.join(1.0)
            if not worker.process.is_alive():
                self._replace(worker, "crash")
        for worker in [w for w in self.workers if w.silent() > self.settings.timeout]:
            self._replace(worker, "hang")

    def _replace(self, worker: Worker, stage: str) -> None:
        """A new worker with the old one's jobs; a sample that hung, or crashed twice, is not tried again."""
        index, how = worker.sample, worker.end()
        if how in ("SIGTERM", "SIGUSR1"):  # meant for the whole run, and no fault of the sample
            index = IDLE
        elif index == IDLE:
            self._count_idle(how)
        else:
            self.strikes[index] = self.strikes.get(index, 0) + 1
            if stage == "hang" or self.strikes[index] > 1:
                self.fetch.lost[index] = stage
        path = self.fetch.dataset.path(index) if index != IDLE else "no sample"
        fate = "the sample goes into quarantine" if index in self.fetch.lost else "its work is done once more"
        log.warning("loader worker lost (%s) at %s: %s; a new worker starts", how or stage, path, fate)
        new = Worker(self.fetch, self.context)
        self.workers[self.workers.index(worker)] = new
        for number, job in worker.pending.items():
            self._give(new, number, job)

    def _count_idle(self, how: str) -> None:
        """Raises `UserError` if workers die again and again, and not because of what they read."""
        self.deaths_idle += 1
        if self.deaths_idle > max(3, self.settings.count):
            raise UserError(
                f"loader workers keep dying outside any sample ({how}; out of memory?): lower DATA_LOADER.NUM_WORKERS"
                " or DATA_LOADER.PREFETCH"
            )

    def close(self) -> None:
        for worker in self.workers:
            worker.end()
        self.workers = []
