"""What the loader's workers make of each of many files or clips: one that crashes or hangs them costs itself only."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from tqdm import tqdm

from videorl.loading.pool import Loader
from videorl.loading.worker import Each, Job


def look_at_each(
    paths: Sequence[str], look: Callable[[str], object], make_loader: Callable[[object], Loader], title: str
) -> list[object | str]:
    """What `look(path)` says of each file, in order; a text that says why it cannot be read.

    `make_loader`: a loader of a data set that allows any number of bad samples.
    """
    if not paths:
        return []
    loader = make_loader(Each(paths, look))
    try:
        groups = in_batches(len(paths), 1)
        return list(read_each(loader, groups, lambda batch: by_index(batch, batch["found"]), title, "video"))
    finally:
        loader.close()


def in_batches(count: int, size: int) -> list[list[int]]:
    """The samples 0 … count - 1, `size` at a time."""
    return [list(range(k, min(k + size, count))) for k in range(0, count, size)]


def by_index(batch: dict, rows: Sequence) -> dict[int, object]:
    """Sample -> its row, where each sample of a batch has one."""
    return dict(zip(batch["index"].tolist(), rows, strict=True))


def read_each(
    loader: Loader,
    groups: Sequence[Sequence[int]],
    use: Callable[[dict], Mapping[int, object]],
    title: str,
    unit: str,
    weigh: Callable[[int], int] = lambda sample: 1,
) -> Iterator[object | str]:
    """What `use(batch)` makes of every sample, in order; a text that says why a sample cannot be read.

    A batch holds the readable samples of a group. The bar counts `weigh(sample)` units.
    """
    jobs = [Job(0, k, list(group)) for k, group in enumerate(groups)]
    with shown(sum(weigh(i) for group in groups for i in group), title, unit) as bar:
        for job, batch in zip(jobs, loader.run(jobs)):
            found = {} if batch is None else use(batch)
            bar.update(sum(map(weigh, job.samples)))
            for i in job.samples:
                bad = loader.quarantine.rows.get(i)
                yield found[i] if i in found else f"{bad['stage']}: {bad['error']}"


def shown(total: int, title: str, unit: str) -> tqdm:
    """A bar with the time left, on stderr; lines at long intervals where that is no terminal."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(
        desc=title, total=total, unit=unit, mininterval=interval, dynamic_ncols=True, leave=False, disable=not total
    )
