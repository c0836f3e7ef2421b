"""Batches from worker processes that may meet bad files, crash or hang: such a sample is lost, the run is not.

Each worker notes in shared memory which sample it is at. A worker that dies, or stays at one sample for longer than the
timeout while the main process waits, is replaced, and so is its work. A sample that hangs its worker, or crashes two in
a row, goes into quarantine. torch's DataLoader cannot do this: it ends the run, or (with no timeout) waits for ever.
"""

import logging
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait

import torch

from videorl.loading.memory import unpack
from videorl.loading.quarantine import Quarantine
from videorl.loading.worker import IDLE, Fetch, Job, Loaded, work
from videorl.registry import UserError

log = logging.getLogger("videorl")


LOOK = 0.5  # seconds between two looks at the workers


@dataclass(frozen=True)
class Workers:
    """Node DATA_LOADER: processes, batches each prepares ahead, seconds at one sample after which it counts as hung."""

    count: int = 0
    prefetch: int = 2
    timeout: float = 120.0
    pin_memory: bool = False
    context: str = ""


class Loader:
    """Makes the batches of a data set. `mix(batch, job)` may change a collated batch (MixUp).

    Raises nothing for unreadable samples: they stand in the quarantine, which whoever takes the batches must check.
    """

    def __init__(self, dataset, workers: Workers, quarantine: Quarantine, mix: Callable | None = None):
        self.workers, self.quarantine = workers, quarantine
        self.training = dataset.split == "train"
        self.fetch = Fetch(dataset, mix, quarantine.longest_run if self.training else None)
        self.pool = Pool(self.fetch, workers) if workers.count else None

    def run(self, jobs: Sequence[Job]) -> Iterator[dict | None]:
        """The batch of each job, in order. An evaluation with too many bad samples ends early: it cannot be saved."""
        for job, loaded in zip(jobs, self.pool.run(jobs) if self.pool else map(self.fetch, jobs), strict=True):
            self.quarantine.add(loaded.bad, job.step + 1 if self.training else None)
            if self.quarantine.too_many and not self.training:
                return
            pin = self.workers.pin_memory and loaded.batch is not None
            yield {k: _pinned(v) for k, v in loaded.batch.items()} if pin else loaded.batch

    def close(self) -> None:
        if self.pool:
            self.pool.close()


def _pinned(value):
    return value.pin_memory() if isinstance(value, torch.Tensor) else value


class Worker:
    """One worker process, its pipe, the jobs it has been given, and the sample it is at with the time it began."""

    def __init__(self, fetch: Fetch, context):
        self.at = context.RawArray("d", [IDLE, 0.0])
        self.pipe, its_pipe = context.Pipe()
        self.memories, its_memories = socket.socketpair()
        self.process = context.Process(target=work, args=(fetch, its_pipe, its_memories, self.at), daemon=True)
        self.process.start()
        its_pipe.close()
        its_memories.close()
        self.pending: dict[int, Job] = {}
        self.seen_at, self.silent = (IDLE, 0.0), 0.0

    @property
    def sample(self) -> int:
        return int(self.at[0])

    def look(self, waited: float) -> None:
        """Counts in `silent` the seconds that the main process `waited` while it stayed at one sample.

        Not the time since it came there: a run that is suspended as a whole (Ctrl-Z, a queue system) is at no fault.
        """
        at = tuple(self.at)
        self.silent = self.silent + waited if at == self.seen_at and self.sample != IDLE else 0.0
        self.seen_at = at

    def receive(self) -> tuple[int, Loaded]:
        """Number and result of a job. Raises what the job raised, and `EOFError` or `OSError` if the worker died."""
        number, result = self.pipe.recv()
        if isinstance(result, Exception):
            raise result
        return number, result if result.batch is None else replace(result, batch=unpack(result.batch, self.memories))

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

    def run(self, jobs: Sequence[Job]) -> Iterator[Loaded]:
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

    def _feed(self, jobs: Sequence[Job], first: int, done: int) -> None:
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
        begun = time.monotonic()
        heard = wait(list(handles), timeout=LOOK)
        waited = min(time.monotonic() - begun, 2 * LOOK)  # longer ones are those of a process that was stopped
        for worker in {handles[h] for h in heard}:
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
        for worker in self.workers:
            worker.look(waited)
        for worker in [w for w in self.workers if w.silent > self.settings.timeout]:
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
