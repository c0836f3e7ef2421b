"""Work on many files in processes, where a file that crashes or hangs a decoder costs itself only."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from videorl.loading.pool import Pool, Worker, Workers
from videorl.loading.quarantine import Bad
from videorl.loading.worker import IDLE, Job, Loaded
from videorl.registry import UserError
from videorl.video.errors import VideoError

Pulse = Callable[[], None]
Work = Callable[[str, Pulse], object]
Progress = Callable[[Iterable, int], Iterable]


def each(paths: Sequence[str], work: Work, workers: Workers, progress: Progress) -> Iterator[tuple[int, object]]:
    """Number and result of `work(path, pulse)` for each path, as they end; a `Bad` for a file that cannot be read.

    `work` calls `pulse()` as it gets on: a file hangs when `workers.timeout` seconds pass without. It raises
    `VideoError` for a bad file; other errors end the run. `progress(results, total)` gives the results on.
    """
    crew = _Crew(_Each(paths, work, workers.timeout), workers)
    try:
        for i, loaded in progress(crew.run([Job(0, i, [i]) for i in range(len(paths))]), len(paths)):
            yield i, loaded.bad[0] if loaded.batch is None else loaded.batch["result"]
    finally:
        crew.close()


class _Each:
    """What the workers run."""

    def __init__(self, paths: Sequence[str], work: Work, timeout: float):
        self.paths, self.work = paths, work
        self.lost: dict[int, str] = {}
        self.note: Callable[[int], None] = _nobody
        self.dataset = self  # whom the pool asks for paths
        self.reasons = {
            "hang": f"nothing happened for {timeout:g} s (--timeout)",
            "crash": "the decoder takes its process down",
        }

    def path(self, i: int) -> str:
        return self.paths[i]

    def __call__(self, job: Job) -> Loaded:
        (i,) = job.samples
        if i in self.lost:
            return Loaded(None, [Bad(i, self.paths[i], self.reasons[self.lost[i]], self.lost[i])])
        pulse = partial(self.note, i)
        pulse()
        try:
            return Loaded({"result": self.work(self.paths[i], pulse)})
        except VideoError as error:
            return Loaded(None, [Bad(i, self.paths[i], error.reason, error.stage)])
        finally:
            self.note(IDLE)


def _nobody(index: int) -> None:
    """Before a worker puts its own note in the place."""


class _Crew(Pool):
    """A pool that gives a job to whoever is free: one long video does not hold up the short ones behind it."""

    def run(self, jobs: list[Job]) -> Iterator[tuple[int, Loaded]]:
        self.workers = [Worker(self.fetch, self.context) for _ in range(min(self.settings.count, len(jobs)))]
        waiting, left = deque(enumerate(jobs)), len(jobs)
        while left:
            for worker in self.workers:
                if waiting and not worker.pending:
                    self._give(worker, *waiting.popleft())
            ready: dict[int, Loaded] = {}
            self._receive(ready, 0)
            yield from ready.items()
            left -= len(ready)

    def _count_idle(self, how: str) -> None:
        try:
            super()._count_idle(how)
        except UserError:
            raise UserError(f"workers keep dying before any video ({how}; out of memory?): lower --workers") from None
