"""Features of all windows of many videos: in order, in as many runs, processes and machines as it takes.

Videos are numbered through and cut into shards; each process makes its own ones. The bytes of a shard depend on its
videos and the settings alone: batches never reach over the end of a unit of UNIT videos, and a run that goes on begins
with the unit that was not finished.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from videorl.features.draft import Draft, Kind, Rows
from videorl.features.each import read_each
from videorl.features.encoder import Encoder
from videorl.features.store import TIMES, Store
from videorl.features.windows import Block, Blocks, Windows, blocks_of, measure_each
from videorl.loading.pool import Loader
from videorl.log import duration
from videorl.prepare.chunks import Sources
from videorl.prepare.record import PARTS, Shard, claim, locked
from videorl.registry import UserError

log = logging.getLogger("videorl")

UNIT = 16  # videos of which batches are made together, and which a killed run makes again
MARK = "extract.json"

MakeLoader = Callable[[object], Loader]


@dataclass(frozen=True)
class Wanted:
    """What is to be made of videos: features by name, type of the numbers, and whether rows get length 1 (L2)."""

    names: tuple[str, ...]
    dtype: str = "float16"
    normalise: bool = False
    batch: int = 32  # windows at once


def extract(
    sources: Sources,
    encoder: Encoder,
    windows: Windows,
    wanted: Wanted,
    store: Store,
    shard: Shard,
    make_loader: MakeLoader,
    *,
    per_shard: int,
    max_pixels: int,
) -> dict:
    """Makes this process's shards and returns what all shards hold in all; an empty dict where others still work.

    `make_loader`: a loader of a data set that allows any number of bad samples. Raises `UserError` for a folder of
    other features, and for features that are not finite.
    """
    names = list(sources.parts)
    store.check(wanted.names, names)
    kinds = _kinds(encoder, wanted)
    groups = [names[k : k + per_shard] for k in range(0, len(names), per_shard)]
    claim(store.out, _settings(names, encoder, windows, wanted, store, per_shard), MARK, "features")
    work = _Work(sources, encoder, windows, wanted, make_loader, max_pixels)
    mine = shard.of(range(len(groups)))
    with locked(store.out / PARTS / f"{shard}.lock", f"shard {shard} in {store.out}"):
        todo, began = [k for k in mine if not store.is_finished(k)], time.monotonic()
        for done, k in enumerate(todo, 1):
            with Draft(store.out / PARTS / f"shard_{k:05d}", kinds) as draft:
                work.fill(draft, groups[k], f"shard {done} of {len(todo)}")
                store.publish(k, draft)
                draft.remove()
            _say(done, len(todo), k, draft, (time.monotonic() - began) / done)
        return store.finish(len(groups))


def _say(done: int, count: int, shard: int, draft: Draft, seconds: float) -> None:
    what = f"{len(draft.videos)} videos, {draft.rows_finished} windows"
    left = duration(seconds * (count - done))
    log.info("shard %d written: %s; %d of %d shards done, %s left", shard, what, done, count, left)


def _kinds(encoder: Encoder, wanted: Wanted) -> dict[str, Kind]:
    """Type and shape of a row of each feature, from those of a black clip."""
    found = encoder.features(encoder.blank(), wanted.names)
    kinds = {name: Kind(wanted.dtype, array.shape[1:]) for name, array in found.items()}
    return {**kinds, TIMES: Kind("float64", (2,))}


def _settings(names, encoder: Encoder, windows: Windows, wanted: Wanted, store: Store, per_shard: int) -> dict:
    """All that the bytes of the shards depend on."""
    listed = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    return {
        **{"model": encoder.name, "weights": encoder.fingerprint(), "videos": len(names), "list": listed},
        **{"features": list(wanted.names), "dtype": wanted.dtype, "normalised": wanted.normalise},
        **asdict(windows),
        **{"batch": wanted.batch, "layout": store.layout, "split": store.split, "per_shard": per_shard},
    }


@dataclass(frozen=True)
class _Work:
    """How a draft is filled."""

    sources: Sources
    encoder: Encoder
    windows: Windows
    wanted: Wanted
    make_loader: MakeLoader
    max_pixels: int

    def fill(self, draft: Draft, names: Sequence[str], title: str) -> None:
        """Adds the rows of those videos that the draft lacks, one unit after the other."""
        left = names[len(draft.videos) :]
        if not left:
            return
        looking = f"{title}: looking at videos"
        counts = measure_each(left, self.sources, self.windows, self.max_pixels, self.make_loader, looking)
        units = [left[k : k + UNIT] for k in range(0, len(left), UNIT)]
        plans = [self._plan(unit, counts) for unit in units]
        blocks, groups = [], []
        for batch in itertools.chain(*plans):
            groups.append(range(len(blocks), len(blocks) + len(batch)))
            blocks += batch
        with contextlib.closing(self.make_loader(Blocks(blocks, self.windows, self.max_pixels))) as loader:
            rows = read_each(loader, groups, self._rows, title, "window", lambda i: len(blocks[i]))
            with contextlib.closing(rows):
                for unit, plan in zip(units, plans):
                    draft.finish(self._unit(draft, unit, counts, zip(itertools.chain(*plan), rows)))

    def _plan(self, unit: Sequence[str], counts: Mapping) -> list[list[Block]]:
        """Batches of consecutive blocks of up to `batch` windows together."""
        size, batches, room = self.wanted.batch, [], 0
        for name in unit:
            if isinstance(counts[name], str):
                continue
            part, path = self.sources.parts[name], self.sources.file(name)
            for block in blocks_of(part, path, counts[name][0], size):
                room -= len(block)
                if room < 0:
                    batches.append([])
                    room = size - len(block)
                batches[-1].append(block)
        return batches

    def _rows(self, batch: dict) -> dict[int, Rows]:
        """Block -> rows of its windows."""
        index = batch["index"].numpy()
        found = self.encoder.features(batch["video"], self.wanted.names)
        if self.wanted.normalise:
            found = {n: a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), 1e-12) for n, a in found.items()}
        return {int(i): {name: array[index == i] for name, array in found.items()} for i in np.unique(index)}

    def _unit(self, draft: Draft, unit: Sequence[str], counts, rows: Iterator[tuple[Block, Rows | str]]) -> list[dict]:
        """Appends the rows of a unit's videos; of a video with a window that cannot be read, none."""
        told = []
        for name in unit:
            if isinstance(counts[name], str):
                told.append({"path": name, "windows": 0, "bad": counts[name]})
                continue
            count, seconds = counts[name]
            before, bad, done = draft.rows, "", 0
            while done < count:
                block, found = next(rows)
                done = block.stop
                if isinstance(found, str):
                    bad = bad or found
                elif not bad:
                    draft.append(self._checked(name, found) | {TIMES: self.windows.spans(block.numbers, seconds)})
            if bad:
                draft.cut(before)
            told.append(
                {"path": name, "windows": 0 if bad else count} | ({"bad": bad} if bad else {"seconds": seconds})
            )
        return told

    def _checked(self, name: str, rows: Rows) -> Rows:
        """The rows in the type that is stored. Raises `UserError` for what is no number there."""
        with np.errstate(over="ignore"):
            cast = {feature: array.astype(self.wanted.dtype) for feature, array in rows.items()}
        for feature, array in cast.items():
            if not np.isfinite(array).all():
                large = np.isfinite(rows[feature]).all()
                advice = "give --dtype float32" if large else "is the checkpoint whole?"
                raise UserError(f"{name}: {feature} is not finite in {self.wanted.dtype}; {advice}")
        return cast
