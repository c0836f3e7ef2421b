"""Noticing that the run should stop, or has stopped by itself.

Signals set a flag that the loop looks at between two steps, and leave a file that tells all ranks. A thread keeps a
heartbeat file for each rank, and ends the process when the loop has been silent for too long. Its clock stands still
while the run is suspended as a whole (Ctrl-Z, a queue system). When a rank is lost, the others see only a broken
connection: the heartbeats tell which rank it was.
"""

import contextlib
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

from videorl import atomic, console, dist, exits
from videorl.log import attempt

log = logging.getLogger("videorl")

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOP = "STOP"  # file that tells all ranks of a signal to one
STOPPED = f"SystemExit: {exits.EXIT_PREEMPTED}"  # end of a rank that was told to stop, in its heartbeat
GRACE = 20.0  # seconds from a signal to the end of a process whose main thread does not react
PULSE = 1.0  # seconds between two heartbeats
SILENCE = 3.0  # seconds without one after which a rank counts as lost, once a connection has broken


class Watch:
    """Stop flag and heartbeat of this rank; a context manager around the work.

    A broken connection in it becomes `exits.Lost`, which names the rank that is lost; or `SystemExit` with the code of
    a run that was told to stop, where that is why the other rank is gone.
    """

    def __init__(self, folder: Path, timeout: float):
        self.folder, self.timeout = folder / "heartbeat", timeout
        self.stop_file = self.folder / STOP
        self.signal = ""
        self.clock = 0.0  # seconds that the thread was awake
        self.beat_at, self.doing = None, "its start"
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self.reader, self.writer = socket.socketpair()
        self.writer.setblocking(False)
        self.reader.settimeout(PULSE)
        self.previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        # Python runs handlers only between bytecodes; this tells the thread even while a decoder holds the main thread.
        self.previous_fd = signal.set_wakeup_fd(self.writer.fileno(), warn_on_full_buffer=False)
        self._write()
        self.thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.closed.set()
        self.thread.join()
        lost = self._who_is_lost() if error is not None and dist.is_broken_link(error) else ""
        signal.set_wakeup_fd(self.previous_fd)
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.reader.close()
        self.writer.close()
        if lost and any(beat["ended"] == STOPPED for beat in _beats(self.folder).values()):
            self._write(ended=STOPPED)
            raise SystemExit(exits.EXIT_PREEMPTED) from None
        self._write(ended=lost or (f"{kind.__name__}: {dist.first_line(error)}" if kind else "the end"))
        if lost:
            log.debug("what the connection said", exc_info=error)
            raise exits.Lost(f"rank {dist.rank()} stopped at {self.doing}: {lost}") from None

    def beat(self, doing: str) -> None:
        """Says that the work goes on, and what it turns to now.

        From the first call on silence ends the process, and nothing else does: no collective gives up by itself.
        """
        if self.beat_at is None:
            dist.wait_for_ever()
        self.beat_at, self.doing = self.clock, doing

    def told_to_stop(self) -> str:
        """The signal that this rank got, or any other; empty if none did."""
        if not self.signal and self.stop_file.exists():
            return self.stop_file.read_text() or "a signal"
        return self.signal

    def _note(self, number: int, frame) -> None:
        self.signal = signal.Signals(number).name

    def _look(self) -> None:
        told, looked_at = None, time.monotonic()
        while not self.closed.is_set():
            with contextlib.suppress(TimeoutError):
                numbers = [n for n in self.reader.recv(64) if n in SIGNALS]
                if told is None and numbers:
                    told = self.clock
                    self._tell_all(numbers[0])
            now = time.monotonic()
            self.clock += min(now - looked_at, 2 * PULSE)  # more passes only while this process is stopped
            looked_at = now
            self._write()
            if told is not None and not self.signal and self.clock - told > GRACE:
                self._end(f"was told to stop {GRACE:.0f} s ago, but its main thread does not answer")
            if self._silent() > self.timeout:
                self._end(f"made no progress for {self._silent():.0f} s")

    def _silent(self) -> float:
        """Seconds since the last beat."""
        return 0.0 if self.beat_at is None else self.clock - self.beat_at

    def _tell_all(self, number: int) -> None:
        """Tells all ranks of a signal. The handler could not: it waits while the main thread waits for another rank."""
        try:
            atomic.write(self.stop_file, signal.Signals(number).name, lasting=False)
        except OSError:  # an empty file needs no room on a full disk
            attempt(str(self.stop_file), self.stop_file.touch)

    def _write(self, ended: str = "") -> None:
        """The heartbeat: what this rank does and for how long, and that it lives."""
        content = {
            "rank": dist.rank(),
            "doing": self.doing,
            "seconds": round(self._silent(), 1),
            "at": time.time(),
            "ended": ended,
        }
        file = self.folder / f"rank_{dist.rank()}.json"
        try:
            self.folder.mkdir(exist_ok=True)
            atomic.write(file, json.dumps(content), lasting=False)
        except OSError as error:
            log.debug("no heartbeat: %s", error)

    def _end(self, why: str) -> None:
        """Ends a process whose main thread hangs, which no exception can do."""
        others = self._who_is_lost() if dist.world_size() > 1 else ""
        self._write(ended=why)
        console.tell(f"error: rank {dist.rank()} {why}, at {self.doing}{others and '; ' + others}")
        with contextlib.suppress(OSError, ValueError, AttributeError):  # where stderr is full or closed
            faulthandler.dump_traceback(file=sys.stderr)
        os._exit(exits.EXIT_LOST)

    def _who_is_lost(self) -> str:
        """Which ranks show no heartbeat any more, or have ended, and at what; takes `SILENCE` seconds."""
        before, end = _beats(self.folder), time.monotonic() + SILENCE
        while time.monotonic() < end:
            time.sleep(PULSE)
            self._write()  # the others look at this one too
        mine, after = dist.rank(), _beats(self.folder)
        now = max((beat["written"] for beat in after.values()), default=0.0)  # by the disk's clock, which all share
        others = [after[r] for r in sorted(after) if r != mine]
        lost = [
            f"rank {b['rank']} is dead or frozen, seen {now - b['written']:.0f} s ago at {b['doing']}"
            for b in others
            if not b["ended"] and before.get(b["rank"], {}).get("at") == b["at"]
        ]
        lost += [f"rank {r} was never seen" for r in range(dist.world_size()) if r not in after and r != mine]
        ended = [f"rank {b['rank']} ended ({b['ended']}) at {b['doing']}" for b in others if b["ended"]]
        alive = [f"rank {b['rank']} is alive, for {b['seconds']:.0f} s at {b['doing']}" for b in others]
        return "; ".join(lost or ended or alive)


def forget(folder: Path) -> None:
    """Removes the heartbeats of an earlier run, and what told it to stop."""
    for file in (folder / "heartbeat").glob("*"):
        file.unlink(missing_ok=True)


def _beats(folder: Path) -> dict[int, dict]:
    found = {}
    for file in folder.glob("rank_*.json"):
        with contextlib.suppress(OSError, ValueError):
            beat = json.loads(file.read_text())
            found[beat["rank"]] = {**beat, "written": file.stat().st_mtime}
    return found
