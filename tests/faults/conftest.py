"""Runs of tools/run_net.py in subprocesses with a hard time limit, on 24 tiny videos, with faults injected for real."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.faults.warm import PATIENCE, Warm, adopt, end_all, end_with_parent

ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).parent / "projects/faulty/faulty.yaml"


def write_video(path: Path, seed: int, frames: int = 16, size: int = 48) -> None:
    """A short H.264 file of moving noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=16, options={"preset": "ultrafast", "threads": "1"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for t in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 2 * t, axis=1), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def write_set(folder: Path, counts: dict[str, int]) -> None:
    for split, count in counts.items():
        lines = []
        for i in range(count):
            write_video(folder / f"videos/{split}_{i}.mp4", seed=i)
            lines.append(f"videos/{split}_{i}.mp4 {i % 4}\n")
        (folder / f"{split}.csv").write_text("".join(lines))


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """24 training, 7 validation and 7 test videos. Read-only: a test that damages files takes `own_world`."""
    folder = tmp_path_factory.mktemp("world")
    write_set(folder, {"train": 24, "val": 7, "test": 7})
    return folder


@pytest.fixture
def own_world(tmp_path) -> Path:
    folder = tmp_path / "world"
    write_set(folder, {"train": 24, "val": 7, "test": 7})
    return folder


def _popen(command: list[str], env: dict[str, str], cwd: Path) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env, cwd=cwd, start_new_session=True, preexec_fn=end_with_parent, **pipes)


class Run:
    """One `run_net.py` (or torchrun of it) as a subprocess in its own process group."""

    def __init__(self, data: Path, out: Path, *overrides, fault="", launcher=(), flags=(), env=None, cwd=ROOT):
        words = [*map(str, overrides)]
        tool = (
            [*launcher, str(ROOT / "tools/run_net.py")]
            if launcher
            else [sys.executable, str(ROOT / "tools/run_net.py")]
        )
        self.out, self.fault_log = out, out.parent / f"{out.name}.fault"
        self.read_log = out.parent / f"{out.name}.read"
        command = [*tool, "--cfg", str(CONFIG), *flags]
        command += ["DATA.PATH_TO_DATA_DIR", str(data), "OUTPUT_DIR", str(out), *words]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "VIDEORL_FAULT": fault,
            "VIDEORL_FAULT_LOG": str(self.fault_log),
            "VIDEORL_READ_LOG": str(self.read_log),
            **(env or {}),
        }
        # torchrun starts its workers itself; anything else is forked from a process that has imported torch.
        self.process = (_popen if launcher else Warm)(command, environment, cwd)
        self.began = time.monotonic()

    def wait(self) -> "Run":
        """Waits; a run that is not done after `PATIENCE` is killed, and the test fails."""
        try:
            self.stdout, self.stderr = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.fail(f"still running after {PATIENCE:.0f} s")
        self.seconds = time.monotonic() - self.began
        self.code = self.process.returncode
        return self

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def fail(self, why: str) -> None:
        self.kill()
        stdout, stderr = self.process.communicate()
        pytest.fail(f"{why}\n{stdout[-2000:]}\n{stderr[-2000:]}")

    def until(self, text: str) -> None:
        """Waits until the run's log holds `text`."""
        log = self.out / "stdout.log"
        end = time.monotonic() + PATIENCE
        while not (log.exists() and text in log.read_text()):
            if self.process.poll() is not None or time.monotonic() > end:
                self.fail(f"{text!r} never stood in the log")
            time.sleep(0.05)

    @property
    def fired(self) -> int:
        """How often the injected fault happened."""
        return len(self.fault_log.read_text().splitlines()) if self.fault_log.exists() else 0

    def losses(self) -> dict[int, float]:
        """Logged loss by step."""
        rows = [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]
        return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}

    def final(self) -> dict:
        """The newest checkpoint."""
        newest = sorted((self.out / "checkpoints").glob("checkpoint_epoch_*.pyth"))[-1]
        return torch.load(newest, weights_only=True)


@pytest.fixture
def run(world, tmp_path):
    """`run("name", *overrides, fault=…)` starts a run on the shared videos; what is left of it is killed at the end."""
    with starting(world, tmp_path) as start:
        yield start


@contextlib.contextmanager
def starting(world: Path, folder: Path) -> Iterator[Callable[..., Run]]:
    """What starts runs in `folder`; what is left of them is killed at the end, even of one that has lost its leader."""
    started = []

    def start(name: str = "out", *overrides, data: Path = world, **options) -> Run:
        started.append(Run(data, folder / name, *overrides, **options))
        return started[-1]

    try:
        yield start
    finally:
        for one in started:
            one.kill()
            one.process.communicate()


adopt()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    """However a test ended, and wherever its fixtures failed, it leaves no process."""
    try:
        return (yield)
    finally:
        end_all()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def shards(run, count: int, name: str, *overrides, method: str = "", **options) -> list[Run]:
    """One run of `count` processes, each started by its own command, as on `count` machines."""
    method = method or f"tcp://127.0.0.1:{free_port()}"
    words = ("--num_shards", str(count), "--init_method", method, "--shard_id")
    return [run(name, *overrides, flags=(*words, str(k)), **options) for k in range(count)]


def same_bits(a, b) -> bool:
    """Whether two nested checkpoints hold the same tensors and numbers, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bits(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return a == b
