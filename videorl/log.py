"""What a run says: console and stdout.log, progress with time left, metrics.jsonl, json_stats.log, TensorBoard.

A log that cannot be written (full disk) never ends a run: it is said once, and the run goes on.
"""

import datetime
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from videorl.registry import printable

log = logging.getLogger("videorl")


def say(*lines: str) -> None:
    """Prints what a command has found."""
    print(*map(printable, lines), sep="\n", flush=True)


class _Printable(logging.Formatter):
    """Each record is one line without codes that a terminal obeys, whoever wrote what stands in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei) -> str:
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


logging.lastResort.setFormatter(_Printable())  # prints warnings before `setup`, and of tools without it


def table(title: str, text: str) -> None:
    """Logs a text of several lines."""
    for line in (title, *text.split("\n")):
        log.info("%s", line)


def setup(folder: Path | None, main: bool) -> None:
    """Console and `folder`/stdout.log for rank 0; warnings alone for the others."""
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.INFO if main else logging.WARNING)
    _add(logging.StreamHandler(sys.stdout))
    if main and folder is not None:
        try:
            _add(_File(folder / "stdout.log"))
        except OSError as error:
            log.warning("stdout.log cannot be written (%s); the run goes on without", error)


def _add(handler: logging.Handler) -> None:
    handler.setFormatter(_Printable("[%(asctime)s] %(message)s", "%m-%d %H:%M:%S"))
    log.addHandler(handler)


class _File(logging.FileHandler):
    """A log file. Python would print a traceback for each line that cannot be written."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.told:
            self.told = True
            log.warning("stdout.log cannot be written (%s); the run goes on without", sys.exc_info()[1])


def attempt(what: str, write: Callable[[], object], failed: set[str] | None = None) -> None:
    """Calls `write()`; where the disk refuses, warns that `what` cannot be written, once for each name in `failed`."""
    failed = set() if failed is None else failed
    try:
        write()
    except OSError as error:
        if what not in failed:
            log.warning("%s cannot be written (%s); the run goes on without", what, error)
        failed.add(what)


STATS_PREFIX = "json_stats: "


class Metrics:
    """Numbers over time: a line in `metrics.jsonl` and `json_stats.log` for each, and TensorBoard's event files."""

    def __init__(self, folder: Path, tensorboard: Path | None = None):
        self.folder = folder
        self.file, self.stats = folder / "metrics.jsonl", folder / "json_stats.log"
        self.failed: set[str] = set()
        self.writer = self._writer(tensorboard) if tensorboard else None

    def _writer(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        try:
            return SummaryWriter(str(folder))
        except OSError as error:
            log.warning("no TensorBoard files: %s", error)
            return None

    def train(self, row: dict, stats: dict) -> None:
        """One logged step: `row` for metrics.jsonl, `stats` under PySlowFast's names for json_stats.log.

        `row["losses"]` holds the parts of the loss by name.
        """
        self._append(self.file, json.dumps({"kind": "train", **row}))
        self._append(self.stats, _stats_line({"_type": "train_iter_", "step": row["step"], **stats}))
        numbers = {k: v for k, v in {**row, **row.get("losses", {})}.items() if isinstance(v, (int, float))}
        self._scalars({f"Train/{k}": v for k, v in numbers.items()}, row["step"])

    def evaluated(self, row: dict, stats: dict) -> None:
        """The result of one evaluation."""
        self._append(self.file, json.dumps({"kind": "eval", **row}))
        self._append(self.stats, _stats_line({"step": row["step"], **stats}))
        self._scalars({f"{row['name']}/{k}": v for k, v in row.items() if isinstance(v, (int, float))}, row["step"])

    def forget_after(self, step: int) -> None:
        """Drops lines of steps that a resumed run will do again."""
        for file in (self.file, self.stats):
            if file.exists():
                attempt(file.name, lambda file=file: _keep_until(file, step), self.failed)

    def note(self, name: str, row: dict) -> None:
        """A line in another file of the folder."""
        self._append(self.folder / name, json.dumps(row))

    def _append(self, file: Path, line: str) -> None:
        attempt(file.name, lambda: _write_line(file, line), self.failed)

    def _scalars(self, values: dict, step: int) -> None:
        self.draw(lambda out: [out.add_scalar(name, value, step) for name, value in values.items()])

    def draw(self, write) -> None:
        """Calls `write(SummaryWriter)` where TensorBoard is on."""
        if self.writer:
            attempt("TensorBoard", lambda: write(self.writer), self.failed)

    def close(self) -> None:
        if self.writer:
            attempt("TensorBoard", self.writer.close, self.failed)


def _write_line(file: Path, line: str) -> None:
    with file.open("a") as out:
        out.write(line + "\n")


def _keep_until(file: Path, step: int) -> None:
    """Broken lines, which a killed run leaves, go too."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in lines if _step_of(line) <= step), encoding="utf-8")
    os.replace(temporary, file)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line.removeprefix(STATS_PREFIX))["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _stats_line(stats: dict) -> str:
    import simplejson

    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in stats.items()}
    return STATS_PREFIX + simplejson.dumps(rounded, sort_keys=True, use_decimal=True, ignore_nan=True)


class Progress:
    """A progress bar with time left on a terminal; nothing elsewhere (the log lines carry the time left there)."""

    def __init__(self, total: int, title: str, shown: bool, start: int = 0):
        from tqdm import tqdm

        self.total, self.done, self.began = total, start, time.monotonic()
        self.start = start
        self.bar = tqdm(
            total=total, initial=start, desc=title, disable=not (shown and sys.stderr.isatty()), leave=False
        )

    def step(self) -> None:
        self.done += 1
        self.bar.update()

    def seconds_left(self) -> float:
        rate = (time.monotonic() - self.began) / max(self.done - self.start, 1)
        return rate * (self.total - self.done)

    def close(self) -> None:
        self.bar.close()


def duration(seconds: float) -> str:
    """1:23:45"""
    return str(datetime.timedelta(seconds=int(seconds)))
