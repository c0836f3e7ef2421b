"""Noticing that the run should stop, or has stopped by itself.

Signals set a flag that the loop looks at after each step. A thread keeps a heartbeat file for each rank, and ends the process when
the loop has been silent for too long, saying which rank the others were waiting for and at what.
"""

import faulthandler
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from videorl import dist

log = logging.getLogger("videorl")

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
GRACE = 20.0  # seconds from a signal to the end of a process whose main thread does not react


class Watch:
    """Stop flag and heartbeat of this rank; a context manager around the training loop."""

    def __init__(self, folder: Path, timeout: float):
        self.folder, self.timeout = folder / "heartbeat", timeout
        self.signal = ""
        self.beat_at, self.doing = time.monotonic(), "starting"
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self.folder.mkdir(exist_ok=True)
        self.reader, self.writer = socket.socketpair()
        self.writer.setblocking(False)
        self.reader.settimeout(1.0)
        self.previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        # Python runs handlers only between bytecodes; this tells the thread even while a decoder holds the main thread.
        self.previous_fd = signal.set_wakeup_fd(self.writer.fileno(), warn_on_full_buffer=False)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.closed.set()
        self.thread.join()
        signal.set_wakeup_fd(self.previous_fd)
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.reader.close()
        self.writer.close()

    def beat(self, doing: str) -> None:
        """Says that the loop is alive, and what it turns to now."""
        self.beat_at, self.doing = time.monotonic(), doing

    def _note(self, number: int, frame) -> None:
        self.signal = signal.Signals(number).name

    def _look(self) -> None:
        told = 0.0
        while not self.closed.is_set():
            try:
                numbers = self.reader.recv(64)
                if any(n in SIGNALS for n in numbers) and not told:
                    told = time.monotonic()
            except TimeoutError:
                self._write()
            silent = time.monotonic() - self.beat_at
            if told and time.monotonic() - told > GRACE and self.beat_at < told:
                self._end(f"told to stop {GRACE:.0f} s ago, but the main thread does not answer")
            if silent > self.timeout + 5.0:
                self._end(f"no progress for {silent:.0f} s")

    def _write(self) -> None:
        content = {"rank": dist.rank(), "doing": self.doing, "since": time.time() - (time.monotonic() - self.beat_at)}
        file = self.folder / f"rank_{dist.rank()}.json"
        try:
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(content))
            os.replace(temporary, file)
        except OSError as error:
            log.debug("no heartbeat: %s", error)

    def _end(self, why: str) -> None:
        print(f"error: rank {dist.rank()}: {why}, while {self.doing}. {waiting_for(self.folder)}", file=sys.stderr)
        faulthandler.dump_traceback(file=sys.stderr)
        sys.stderr.flush()
        os._exit(70)


def waiting_for(folder: Path) -> str:
    """Which rank is the furthest behind, by the heartbeats of all, and what it was doing."""
    beats = []
    for file in folder.glob("rank_*.json"):
        try:
            beats.append(json.loads(file.read_text()))
        except (OSError, ValueError):
            continue
    if not beats:
        return ""
    behind = min(beats, key=lambda b: b["since"])
    ago = time.time() - behind["since"]
    return f"The others waited for rank {behind['rank']}, which {ago:.0f} s ago began {behind['doing']}."
