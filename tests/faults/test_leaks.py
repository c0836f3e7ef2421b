"""A loader worker opens files for days: descriptors and memory stay what they are, whatever the files."""

import functools
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from tests.faults.fuzz import mutated
from tests.faults.guard import guarded, read
from tests.video.clips_on_disk import write_video
from videorl.video.backends import _missing

OPENS = 2000
WARM = 200  # opens until caches and the allocator's pools are full
GROWTH = 8 << 20  # bytes; a leak of 5 kB an open, less than a frame of these videos, goes beyond it


def files(folder: Path) -> list[Path]:
    """Ten good videos and 30 bad ones: empty, text, cut off, damaged at random, or not there."""
    made = [
        write_video(folder / f"{i}.{end}", range(20)) for i, end in enumerate(("mp4", "mkv", "mov", "avi", "ts") * 2)
    ]
    good = [file.read_bytes() for file in made]
    bad = [b"", b"<html>404</html>" * 50, *(data[: len(data) // 2] for data in good[:5])]
    bad += [mutated(good, seed) for seed in range(22)]
    for i, content in enumerate(bad):
        made.append(folder / f"bad_{i}.mp4")
        made[-1].write_bytes(content)
    return [*made, folder / "missing.mp4"]


def held() -> tuple[int, int]:
    """Open descriptors, and bytes of memory in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(os.listdir("/proc/self/fd")), pages * resource.getpagesize()


def open_some(begin: int, paths: list[Path], backend: str) -> tuple[int, int, int]:
    """Opens WARM files from number `begin` on: how many gave frames, and what the process holds after that."""
    good = 0
    for k in range(begin, begin + WARM):
        found = read(paths[k % len(paths)], backend, lambda count: [[0, count // 2, count - 1]])
        good += not isinstance(found, str) and not isinstance(found[0], str)
    return good, *held()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyav", "torchcodec", "decord"])
def test_2000_files_leave_nothing_behind(tmp_path, backend):
    if backend != "pyav" and (reason := _missing(backend)):
        pytest.skip(f"{backend}: {reason}")
    found = guarded(functools.partial(open_some, paths=files(tmp_path), backend=backend), range(0, OPENS, WARM))
    assert not [lost for lost in found if isinstance(lost, str)]
    good, descriptors, memory = (np.array(column) for column in zip(*found))
    grown = memory[-1] - memory[0]
    print(f"{backend}: {good.sum()} of {OPENS} gave frames; {grown / 2**20:.1f} MiB more")
    assert OPENS // 4 <= good.sum() < OPENS * 9 // 10
    assert descriptors[-1] == descriptors[0]
    assert grown < GROWTH
