"""Work that is cut into numbered batches: many processes make them, in as many runs as it takes, each batch once.

Each shard appends to a file of its own, `.parts/K-of-N.jsonl`, a json line for a batch; all are read together, so that
a run may go on with another number of shards. What a batch is depends on its number alone, not on who makes it.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Protocol

from videorl import atomic, dist, log
from videorl.prepare.record import PARTS, Shard, claim, locked
from videorl.registry import UserError

BATCH = re.compile(rb'\{"batch": (\d+), "rows": \[')

Places = dict[int, tuple[Path, int]]  # batch -> its file, and the byte that its line begins with
Make = Callable[[Sequence[int]], Iterator[list]]


class Job(Protocol):
    """Work in batches, whose `groups` are as many."""

    groups: Sequence

    def fill(self, shard: Shard) -> Places:
        """Makes the batches of a shard, see `fill`."""

    def write(self, places: Places) -> dict[str, int]:
        """Writes the finished files, when all batches are made, and says how many of what there are."""


def share(make: Callable[[], Job], out: Path, shard_id: int, num_shards: int) -> dict[str, int] | None:
    """Does what is this process's, a rank of shard `shard_id`, of a job in the folder `out`; what `Job.write` says.

    The first rank of whichever shard ends last writes; all others give nothing. Raises `UserError`.
    """
    dist.wait_for_ever()
    size = dist.world_size()
    shard = Shard(shard_id * size + dist.rank(), num_shards * size)
    try:
        job = make()
        job.fill(shard)
        dist.barrier()
        if not dist.is_main():
            return None
        places = finished(out / PARTS)  # of all ranks, the last of which has only now ended
        if len(places) == len(job.groups):
            return job.write(places)
        log.say(f"{out}: this part is done; other shards are not yet")
        return None
    except OSError as error:  # of what it writes: no permission, disk full
        raise UserError(f"{error}; the same command goes on where it was") from None


def fill(out: Path, settings: Mapping, mark: str, what: str, shard: Shard, count: int, make: Make) -> Places:
    """Makes those of `count` batches that are this shard's and not finished; where the finished ones of all are.

    `make(numbers)` gives the rows of each batch, in order. Raises `UserError` for a folder of other work (see `claim`),
    and where another process has this shard.
    """
    claim(out, settings, mark, what)
    folder = out / PARTS
    with ExitStack() as stack:
        stack.enter_context(locked(folder / f"{shard}.lock", f"shard {shard} in {out}"))
        own = folder / f"{shard}.jsonl"
        own.touch()
        before = finished(folder)
        file = stack.enter_context(open(own, "r+b"))
        file.truncate(sum(map(len, _whole_lines(own))))  # without the half line that a killed process left
        file.seek(0, os.SEEK_END)
        todo = [k for k in shard.of(range(count)) if k not in before]
        for k, rows in zip(todo, make(todo)):
            append(file, f'{{"batch": {k}, "rows": {json.dumps(rows)}}}\n'.encode())
        return finished(folder)


def append(file: BinaryIO, line: bytes) -> None:
    file.write(line)
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def finishing(out: Path) -> Iterator[None]:
    """Holds the folder for whoever writes its finished files, and clears what a killed one left half written."""
    with locked(out / PARTS / "finish.lock", f"the files of {out}", patient=True):
        for draft in atomic.drafts(out):
            draft.unlink()
        yield


def finished(folder: Path) -> Places:
    """Where the line of each finished batch is. Raises `UserError` for a line that is none."""
    places = {}
    for file in sorted(folder.glob("*-of-*.jsonl")):
        at = 0
        for line in _whole_lines(file):
            if not (match := BATCH.match(line)):
                raise UserError(f"{file}: the line at byte {at} is damaged; remove it: its batch is made again")
            places[int(match[1])] = (file, at)
            at += len(line)
    return places


def _whole_lines(file: Path) -> Iterator[bytes]:
    """Without the last one where that is not finished: its process writes it just now, or was killed."""
    with open(file, "rb") as lines:
        yield from (line for line in lines if line.endswith(b"\n"))


def rows(places: Places) -> Iterator:
    """The rows of all batches, one batch after the other."""
    with ExitStack() as stack:
        files = {file: stack.enter_context(open(file, "rb")) for file in {file for file, _ in places.values()}}
        for batch in sorted(places):
            file, at = places[batch]
            files[file].seek(at)
            yield from json.loads(files[file].readline())["rows"]
