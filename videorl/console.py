"""stdout and stderr: shared by log lines and progress bars, perhaps closed, or on a full disk."""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator

from tqdm import tqdm

from videorl.registry import printable

# Not tqdm's own lock between processes: a worker killed while it holds that would stop the main process for ever.
tqdm.set_lock(threading.RLock())
os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))


class Printable(logging.Formatter):
    """Each record is one line without codes that a terminal obeys, whoever wrote what stands in it.

    A table of our own (`extra={"table": True}`) keeps its lines.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        lines = record.message.split("\n") if getattr(record, "table", False) else [record.message]
        record.message = "\n".join(map(printable, lines))
        return super().formatMessage(record)

    def formatException(self, ei) -> str:
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


logging.lastResort.setFormatter(Printable())  # prints warnings where neither a log nor a command is set up


class Unwritten(OSError):
    """stdout did not take what was printed."""


class _Stdout:
    """stdout whose errors are told from those of files. `given_up`: somebody has said that it cannot be written."""

    def __init__(self, stream):
        self.stream, self.given_up = stream, False

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return self._attempt(self.stream.write, text)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    @staticmethod
    def _attempt(act, *words):
        try:
            return act(*words)
        except OSError as error:
            raise Unwritten(f"stdout cannot be written ({error})") from None


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Raises `Unwritten` where stdout cannot be written, unless the log has said so and the run went on.

    Warnings of the package go to stderr until a log is set up. At the end Python finds nothing left to be written.
    """
    _open_closed()
    log = logging.getLogger("videorl")
    if not log.handlers and sys.stderr is not None:
        log.addHandler(Handler(sys.stderr, logging.WARNING))
    stdout = sys.stdout
    try:
        if stdout is not None:
            sys.stdout = _Stdout(stdout)
        yield
        if stdout is not None and not sys.stdout.given_up:
            sys.stdout.flush()
    finally:
        sys.stdout = stdout
        _drop_unwritten()


def _open_closed() -> None:
    """Else the next file opened would be number 1 or 2, and get what libraries in C print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _drop_unwritten() -> None:
    """Else Python would fail on it once more as it exits, with a traceback and a code of its own."""
    try:
        with contextlib.suppress(ValueError):  # closed by now
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def tell(text: str) -> None:
    """Prints lines on stderr, where it can be written."""
    with contextlib.suppress(OSError, ValueError):
        print(*map(printable, text.split("\n")), sep="\n", file=sys.stderr, flush=True)


class Handler(logging.StreamHandler):
    """Log lines above the progress bars. A stream that cannot be written is told once, and ends nothing."""

    def __init__(self, stream, level: int = logging.NOTSET):
        super().__init__(stream)
        self.setLevel(level)
        self.setFormatter(Printable())
        self.told = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with tqdm.external_write_mode(file=self.stream):
                self.stream.write(self.format(record) + "\n")
                self.stream.flush()
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not self.told:
            self.told = self.stream.given_up = True
            tell(f"{error}; the run goes on without")
