"""Processes that begin with torch imported: forks of a clean process, where imports would take five seconds each."""

import io
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

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

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("run", timeout)
        return tuple(Path(file.name).read_text() for file in self.files)


def _become(argv: list[str], env: dict[str, str], cwd: str, names: list[str]) -> None:
    os.setsid()
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
