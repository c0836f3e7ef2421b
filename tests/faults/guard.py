"""Reading many doubtful files in child processes that may crash or hang: one child until it is lost, then the next."""

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Sequence

import numpy as np
import torch

from tests.faults.warm import PATIENCE
from videorl.video.errors import VideoError
from videorl.video.reader import open_video

MEMORY = 8 << 30  # bytes of address space of a child


def guarded(act: Callable, cases: Sequence, seconds: float = PATIENCE) -> list:
    """`act(case)` for each case, in order; for one that takes its process down a str: "crash: …" or "hang"."""
    results = []
    context = multiprocessing.get_context("fork")
    while len(results) < len(cases):
        ours, theirs = context.Pipe()
        child = context.Process(target=_act, args=(act, cases[len(results) :], theirs), daemon=True)
        child.start()
        theirs.close()
        lost = _collect(ours, results, len(cases), seconds)
        child.kill()
        child.join()
        if lost:
            results.append(lost if lost == "hang" else f"crash: {_cause(child.exitcode)}")
    return results


def _collect(pipe, results: list, count: int, seconds: float) -> str:
    while len(results) < count:
        if not pipe.poll(seconds):
            return "hang"
        try:
            results.append(pipe.recv())
        except EOFError:
            return "crash"
    return ""


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _act(act: Callable, cases: Sequence, pipe) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders tell at length what is wrong
    torch.set_num_threads(1)
    for case in cases:
        pipe.send(act(case))


def read(path, backend: str, plans: Callable[[int], Sequence[Sequence[int]]]) -> list | str:
    """Frames of each plan as uint8 arrays [T, H, W, 3], or the stage of the VideoError; a str if nothing can be read.

    `plans(n)` are lists of frame numbers. Anything but frames of the right shape or a `VideoError`: "wrong: …".
    """
    try:
        with open_video(path, backend, max_pixels=4_000_000) as video:
            return [_read(video, plan) for plan in plans(video.num_frames)]
    except VideoError as error:
        return error.stage
    except Exception as error:
        return f"wrong: {type(error).__name__}: {str(error)[:200]}"


def _read(video, plan: Sequence[int]) -> np.ndarray | str:
    try:
        frames = video.frames(plan)
    except VideoError as error:
        return error.stage
    if frames.dtype != torch.uint8 or frames.ndim != 4 or len(frames) != len(plan) or frames.shape[3] != 3:
        raise AssertionError(f"frames of {frames.dtype} {tuple(frames.shape)} for a plan of {len(plan)}")
    return frames.numpy()
