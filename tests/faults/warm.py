"""Processes that begin with torch imported: forks of a clean process, where imports would take five seconds each."""

import contextlib
import ctypes
import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

PATIENCE = 600.0  # seconds for what takes some on an idle machine: only a test that fails waits so long

IMPORTED = [
    "torch",
    "torch.distributed",
    "torch._dynamo",  # torch.optim imports it when the first optimizer is made
    "torch._inductor.config",
    "torchvision",
    "av",
    "videorl.config",
    "videorl.engine.job",
    "videorl.report",
    "timm.utils",
    "pytest",  # the main module, which multiprocessing imports again in each child
]


def _server():
    """multiprocessing's fork server: one thread, never ran a model, so its children are as good as new processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


class Warm:
    """`python script.py words…` with the interface of `subprocess.Popen`, as the leader of a process group."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: Path):
        self.files = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115
        names = [file.name for file in self.files]
        self.process = _server().Process(target=_become, args=(command[1:], env, str(cwd), names))
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, str]:
        """stdout and stderr. A process that does not end in time is ended, and `TimeoutExpired` raised."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            os.killpg(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired("run", timeout)
        return tuple(Path(file.name).read_text() for file in self.files)


def together(target: Callable, *arguments: tuple) -> None:
    """Runs `target(*words)` in a process for each of `arguments`; all must end well, and none is left."""
    processes = [_server().Process(target=target, args=words) for words in arguments]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE)
        assert [process.exitcode for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()


def _become(argv: list[str], env: dict[str, str], cwd: str, names: list[str]) -> None:
    os.setsid()
    end_with_parent()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, name in zip((1, 2), names, strict=True):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb", closefd=False), line_buffering=True) for n in (1, 2))
    multiprocessing.process._parent_process = None  # as in a process that a user started
    multiprocessing.set_start_method(
        "fork", force=True
    )  # not the one of this process: the server has no such environment
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


# ------------------------------------------------------------------------------------------------- nothing is left over

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def end_with_parent() -> None:
    """This process is killed when the one that started it ends, even if that is killed itself."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt() -> None:
    """From now on whoever loses its parent below this process becomes its child, so that it can be found."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_all() -> list[int]:
    """Kills all processes below this one but multiprocessing's own two, and says which."""
    own = {forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}
    found = [pid for pid in _below(os.getpid()) if pid not in own]
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def _below(pid: int) -> list[int]:
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended by now
            found += [int(child) for child in file.read_text().split()]
    return found + [below for child in found for below in _below(child)]
