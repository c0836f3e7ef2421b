"""Samples that could not be read: what, why, since when, how often. Nothing is replaced without standing here."""

import bisect
import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from videorl import atomic
from videorl.registry import UserError

log = logging.getLogger("videorl")

SAID = 20  # unreadable samples that the log names, of each rank
CHANCE = 1e-12  # at which bad samples in a row are taken for what they look like


@dataclass(frozen=True)
class Bad:
    """One failure to read sample `index`: file, text of the error, stage (open, index, decode, crash, hang)."""

    index: int
    path: str
    error: str
    stage: str


class Quarantine:
    """The unreadable samples of a data set: those that this rank has met, and those that it was told of.

    Whoever reads the data judges, by `check`, when all ranks know the same. `parts`: samples of each data set where
    several are numbered through; each of them is judged.
    """

    def __init__(self, name: str, length: int, max_fraction: float, parts: Mapping[str, int] | None = None):
        self.name, self.length, self.max_fraction = name, length, max_fraction
        self.parts = dict(parts or {name: length})
        self.rows: dict[int, dict] = {}
        self.untold: set[int] = set()

    def add(self, bad: Iterable[Bad], step: int | None = None) -> None:
        """Takes down what this rank has met, at optimizer step `step` of training, counted from 1."""
        for b in bad:
            if b.index not in self.rows:
                self.rows[b.index] = {
                    "dataset": self.name,
                    "index": b.index,
                    "path": b.path,
                    "error": b.error,
                    "stage": b.stage,
                    "first_seen": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    "met": [],
                }
                self.untold.add(b.index)
                self._say(b)
            if step is not None and step not in self.rows[b.index]["met"]:
                self.rows[b.index]["met"].append(step)

    def _say(self, bad: Bad) -> None:
        if len(self.rows) <= SAID:
            more = "; further ones stand in quarantine.jsonl alone" if len(self.rows) == SAID else ""
            log.warning("%s: %s cannot be read (%s: %s)%s", self.name, bad.path, bad.stage, bad.error, more)

    def tell(self) -> dict[int, dict]:
        """What this rank has met since the last call and was not told of, for `hear` on the others."""
        told = {index: {**self.rows[index], "met": []} for index in sorted(self.untold)}
        self.untold.clear()
        return told

    def hear(self, told: Iterable[dict[int, dict]]) -> None:
        """Takes over what the ranks tell. It is theirs to write: `take` leaves it out."""
        for rows in told:
            self.rows = rows | self.rows

    @property
    def too_many(self) -> bool:
        return any(bad > self.max_fraction * size for _, bad, size in self._counts())

    def _counts(self) -> list[tuple[str, int, int]]:
        """Name, bad samples and samples of each data set."""
        ends = list(itertools.accumulate(self.parts.values()))
        bad = Counter(bisect.bisect_right(ends, index) for index in self.rows)
        return [(name, bad[k], size) for k, (name, size) in enumerate(self.parts.items())]

    @property
    def longest_run(self) -> int:
        """So many bad samples in a row, drawn from all over the data set, prove that more than `max_fraction` is bad.

        By their number, or because chance gives such a run once in 10^12 times.
        """
        by_number = int(self.max_fraction * self.length) + 1
        by_chance = math.log(CHANCE) / math.log(self.max_fraction) if 0 < self.max_fraction < 1 else by_number
        return min(by_number, math.ceil(by_chance), self.length)

    def check(self, gave_up: bool = False) -> None:
        """Raises `UserError` if more than `max_fraction` is bad, or nothing readable was found (`gave_up`)."""
        if not gave_up and not self.too_many:
            return
        listed = "; ".join(f"{r['path']} ({r['error']})" for r in list(self.rows.values())[:10])
        worst, bad, size = max(self._counts(), key=lambda part: part[1] / max(part[2], 1))
        name = f"{self.name}: {worst}" if len(self.parts) > 1 else self.name
        found = f"{name}: {bad} of {size} samples cannot be read"
        if self.too_many:
            raise UserError(
                f"{found}, more than DATA.MAX_BAD_FRACTION {self.max_fraction:g} allows (repair or remove them, or"
                f" raise it): {listed}"
            )
        raise UserError(f"{found}, and among the last ones, from all over the data set, none was good: {listed}")

    def take(self) -> list[dict]:
        """What was met at steps since the last call, to be written."""
        taken = [dict(row) for row in self.rows.values() if row["met"]]
        for row in self.rows.values():
            row["met"] = []
        return taken


def write(path: Path, rows: Iterable[dict]) -> bool:
    """Adds rows to `quarantine.jsonl`: one line per data set and sample, with the steps at which any run `met` it.

    `count` is their number, 1 where no training met it. Returns whether it could; a warning says why not.
    """
    try:
        if rows := list(rows):
            _merge_into(path, rows)
    except (OSError, ValueError, KeyError, TypeError) as error:  # the disk, or lines there that are none of ours
        log.warning("%s cannot be written (%s: %s)", path, type(error).__name__, error)
        return False
    return True


def _merge_into(path: Path, rows: Iterable[dict]) -> None:
    merged: dict[tuple, dict] = {}
    old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for row in [*old, *rows]:
        seen = merged.setdefault((row["dataset"], row["path"], row.get("index")), {**row, "met": []})
        seen["met"] = sorted({*seen["met"], *row["met"]})
        seen["count"] = max(len(seen["met"]), 1)
    atomic.write(path, "".join(json.dumps(row) + "\n" for row in merged.values()))
