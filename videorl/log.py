"""What a run says: console and stdout.log, progress with time left, metrics.jsonl, json_stats.log, TensorBoard.

A log that cannot be written (full disk) never ends a run: it is said once, and the run goes on.
"""

import datetime
import json
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from videorl import atomic, console
from videorl.registry import printable

log = logging.getLogger("videorl")


def say(*lines: str) -> None:
    """Prints what a command has found."""
    print(*map(printable, lines), sep="\n", flush=True)


def table(title: str, text: str) -> None:
    """Logs a text of several lines."""
    for line in (title, *text.split("\n")):
        log.info("%s", line)


def setup(folder: Path | None, main: bool) -> None:
    """Console and `folder`/stdout.log for rank 0; warnings alone for the others."""
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.INFO if main else logging.WARNING)
    if sys.stdout is not None:
        _add(console.Handler(sys.stdout))
    if main and folder is not None:
        try:
            _add(_File(folder / "stdout.log"))
        except OSError as error:
            log.warning("stdout.log cannot be written (%s); the run goes on without", error)


def _add(handler: logging.Handler) -> None:
    handler.setFormatter(console.Printable("[%(asctime)s] %(message)s", "%m-%d %H:%M:%S"))
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
LOGS = ("metrics.jsonl", "json_stats.log", "nonfinite.jsonl", "quarantine.jsonl")
EVALUATION = 0.5  # evaluations come after the step whose number they bear, and before the next


class Metrics:
    """Numbers over time: a line in `metrics.jsonl` and `json_stats.log` for each, and TensorBoard's event files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.file, self.stats = folder / "metrics.jsonl", folder / "json_stats.log"
        self.failed: set[str] = set()
        self.writer = None

    def draw_in(self, folder: Path, until: float = 0.0) -> None:
        """Turns TensorBoard on. It will not show what earlier files hold of the run after `until`."""
        from torch.utils.tensorboard import SummaryWriter

        again = math.floor(until + EVALUATION) if until else 0  # the first step with something to be done again
        try:
            self.writer = SummaryWriter(str(folder), purge_step=again)
        except OSError as error:
            log.warning("no TensorBoard files: %s", error)
            return
        for row in _rows(self.file):
            if row.get("kind") == "train" and row["step"] >= again:
                self._train_scalars(row)

    def train(self, row: dict, stats: dict) -> None:
        """One logged step: `row` for metrics.jsonl, `stats` under PySlowFast's names for json_stats.log.

        `row["losses"]` holds the parts of the loss by name.
        """
        self._append(self.file, json.dumps({"kind": "train", **row}))
        self._append(self.stats, _stats_line({"_type": "train_iter_", "step": row["step"], **stats}))
        self._train_scalars(row)

    def _train_scalars(self, row: dict) -> None:
        numbers = {k: v for k, v in {**row, **row.get("losses", {})}.items() if isinstance(v, (int, float))}
        self._scalars({f"Train/{k}": v for k, v in numbers.items()}, row["step"])

    def evaluated(self, row: dict, stats: dict) -> None:
        """The result of one evaluation."""
        self._append(self.file, json.dumps({"kind": "eval", **row}))
        self._append(self.stats, _stats_line({"step": row["step"], **stats}))
        self._scalars({f"{row['name']}/{k}": v for k, v in row.items() if isinstance(v, (int, float))}, row["step"])

    def forget_after(self, until: float) -> None:
        """Drops of all logs what a run that goes on at `until` will do again, so that nothing stands there twice.

        `until` counts steps done, with EVALUATION added where the evaluations after the last one are done too.
        stdout.log stays: it tells what happened.
        """
        for name in LOGS:
            file = self.folder / name
            if file.exists():
                attempt(name, lambda file=file: _keep_until(file, until), self.failed)

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


def _keep_until(file: Path, until: float) -> None:
    """Broken lines, which a killed run leaves, go too."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    atomic.write(file, "".join(line + "\n" for line in (_cut(line, until) for line in lines) if line))


def _cut(line: str, until: float) -> str:
    """What stays of the line; a row of the quarantine loses the readings after `until`, and goes with the last."""
    try:
        row = json.loads(line.removeprefix(STATS_PREFIX))
        if "met" not in row:
            return line if _when(row) <= until else ""
        met = [when for when in row["met"] if when <= until]
        return json.dumps({**row, "met": met, "count": len(met)}) if met else "" if row["met"] else line
    except (ValueError, KeyError, TypeError):
        return ""


def _when(row: dict) -> float:
    """Steps done when a line of metrics, stats, or steps that were not finite was written."""
    if "samples" in row:  # a step that was not finite, which bears the number of steps before it
        return row["step"] + 1
    return row["step"] + (0 if row.get("kind", row.get("_type")) in ("train", "train_iter_") else EVALUATION)


def _rows(file: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def _stats_line(stats: dict) -> str:
    import simplejson

    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in stats.items()}
    return STATS_PREFIX + simplejson.dumps(rounded, sort_keys=True, use_decimal=True, ignore_nan=True)


RECENT = 50  # steps whose mean time counts for the time left


class Progress:
    """A progress bar with time left on a terminal; nothing elsewhere (the log lines carry the time left there)."""

    def __init__(self, total: int, title: str, shown: bool, start: int = 0):
        self.total, self.done, self.start = total, start, start
        self.at, self.aside = time.monotonic(), 0.0
        self.recent: deque[float] = deque(maxlen=RECENT)
        shown = shown and sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=start, desc=title, disable=not shown, leave=False)

    def step(self) -> None:
        self.recent.append(self._passed())
        self.done += 1
        try:
            self.bar.update()
        except OSError:  # the terminal is gone, the run is not
            self.bar.disable = True

    def go_on(self) -> None:
        """After something else than steps, such as an evaluation."""
        self.aside += self._passed()

    def _passed(self) -> float:
        before, self.at = self.at, time.monotonic()
        return self.at - before

    def seconds_left(self) -> float:
        """By the last steps, and by what came between all of them."""
        step = sum(self.recent) / max(len(self.recent), 1) + self.aside / max(self.done - self.start, 1)
        return step * (self.total - self.done)

    def close(self) -> None:
        self.bar.close()


def duration(seconds: float) -> str:
    """1:23:45"""
    return str(datetime.timedelta(seconds=int(seconds)))
