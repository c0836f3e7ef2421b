"""Samples that could not be read: what, why, since when, how often. Nothing is replaced without standing here."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from videorl.registry import UserError


@dataclass(frozen=True)
class Bad:
    """One failure to read sample `index`: file, text of the error, stage (open, index, decode, crash, hang)."""

    index: int
    path: str
    error: str
    stage: str


class Quarantine:
    """The unreadable samples of one data set, as a rank has met them.

    `add` raises `UserError` once more than `max_fraction` of the data set is bad.
    """

    def __init__(self, name: str, length: int, max_fraction: float):
        self.name, self.length, self.max_fraction = name, length, max_fraction
        self.rows: dict[int, dict] = {}

    def __contains__(self, index: int) -> bool:
        return index in self.rows

    def add(self, bad: Iterable[Bad]) -> None:
        for b in bad:
            row = self.rows.setdefault(
                b.index,
                {
                    "dataset": self.name,
                    "path": b.path,
                    "error": b.error,
                    "stage": b.stage,
                    "first_seen": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    "count": 0,
                },
            )
            row["count"] += 1
        self.check()

    def check(self) -> None:
        """Raises `UserError` if more than `max_fraction` of the data set is bad."""
        if len(self.rows) > self.max_fraction * self.length:
            listed = "; ".join(f"{r['path']} ({r['error']})" for r in list(self.rows.values())[:10])
            raise UserError(
                f"{self.name}: {len(self.rows)} of {self.length} samples cannot be read, more than"
                f" DATA.MAX_BAD_FRACTION {self.max_fraction:g} allows: {listed}"
            )

    def take(self) -> list[dict]:
        """What was added since the last call, to be written."""
        taken = [dict(row) for row in self.rows.values() if row["count"]]
        for row in self.rows.values():
            row["count"] = 0
        return taken


def write(path: Path, rows: Iterable[dict]) -> None:
    """Adds rows to `quarantine.jsonl`: one line per data set and file, counts summed with those of earlier runs."""
    merged: dict[tuple, dict] = {}
    old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for row in [*old, *rows]:
        seen = merged.setdefault((row["dataset"], row["path"]), {**row, "count": 0})
        seen["count"] += row["count"]
    if merged:
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in merged.values()))
        os.replace(temporary, path)
