"""What a worker process does: samples of a data set to a batch, which is sent to the main process."""

import itertools
import math
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from videorl.clip.regions import end_to_end
from videorl.loading.memory import pack
from videorl.loading.quarantine import Bad
from videorl.registry import UserError, printable
from videorl.video.errors import VideoError

NEIGHBOURS = 16  # samples, from a bad one on, that training tries before it looks all over the data set
GOLDEN = (math.sqrt(5) - 1) / 2  # steps of this part of a range fall far from each other
IDLE = -1


@dataclass(frozen=True)
class Job:
    """One batch to make: samples of an epoch, and the number of the optimizer step they belong to."""

    epoch: int
    step: int
    samples: list[int]


class Jobs(Sequence):
    """`count` jobs, each made by `make(k)` when it is asked for: an epoch may have ten million samples."""

    def __init__(self, count: int, make: Callable[[int], Job]):
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> Job:
        if not 0 <= k < self.count:
            raise IndexError(k)
        return self.make(k)


def in_turn(length: int, size: int, rank: int = 0, world: int = 1, epoch: int = 0) -> Jobs:
    """Jobs of `size` samples each, of `length` in order; every so many of them is this rank's."""
    starts = range(0, length, size)[rank::world]
    return Jobs(len(starts), lambda k: Job(epoch, starts[k], list(range(starts[k], min(starts[k] + size, length)))))


@dataclass
class Loaded:
    """A batch and the failures met while making it.

    The batch is None if no sample of it could be read; when training, if one could neither be read nor replaced.
    """

    batch: dict | None
    bad: list[Bad] = field(default_factory=list)


class SampleFailed(RuntimeError):
    """A fault of the program, not of a file, while making a sample or batch; holds the worker's traceback as text."""


class Each:
    """What `look(path)` makes of each of many files, in the form of a data set: item i is `found`, and its `index`."""

    split, epoch = "test", 0

    def __init__(self, paths: Sequence[str], look: Callable[[str], object]):
        self.paths, self.look = paths, look

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, i: int) -> str:
        return self.paths[i]

    def __getitem__(self, i: int) -> dict:
        return {"found": self.look(self.paths[i]), "index": torch.tensor(i)}


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
            raise _failed(f"sample {i} ({printable(path)})", error) from None
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


def work(fetch: Fetch, pipe, memories: socket.socket, at) -> None:
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


def _send(pipe, memories: socket.socket, number: int, loaded: Loaded) -> None:
    """Sends a batch so that nothing more is needed of this process: it may be gone, or hang, before it is received.

    That is why torch does not send the tensors: its receiver asks the sender for the memory, and waits for the answer.
    """
    files: list[int] = []
    batch = loaded.batch and {key: pack(value, files) for key, value in loaded.batch.items()}
    try:
        message = pickle.dumps((number, replace(loaded, batch=batch)))
    except Exception as error:
        raise _failed(f"a batch of {', '.join(batch)} cannot be sent", error) from None
    if files:
        socket.send_fds(memories, [b"."], files)
    pipe.send_bytes(message)
    for file in files:
        os.close(file)
