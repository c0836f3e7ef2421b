"""Damaged videos give frames or a VideoError, from every backend. `fuzz.py` does the same with thousands of files."""

import os
import signal
import time

import pytest

from tests.faults.fuzz import fuzz, mutated
from tests.faults.guard import guarded
from videorl.video.backends import _missing

COUNT = 60


@pytest.mark.parametrize("backend", ["pyav", "torchcodec", "decord"])
def test_a_damaged_file_gives_frames_or_an_error(backend, tmp_path):
    if backend != "pyav" and (reason := _missing(backend)):
        pytest.skip(f"{backend}: {reason}")
    found = fuzz(backend, COUNT, tmp_path)
    bad = {seed: text for seed, text in found.items() if text not in ("frames", "open", "index", "decode")}
    assert bad == {}
    # The damage is neither too small to be noticed nor so large that nothing is left.
    assert COUNT // 4 < sum(text == "frames" for text in found.values()) < COUNT * 9 // 10


def test_a_seed_makes_the_same_damage_again():
    files = [bytes(range(256)) * 20, b"other" * 1000]
    made = [mutated(files, seed) for seed in range(40)]
    assert made == [mutated(files, seed) for seed in range(40)]
    assert sum(data not in files for data in made) >= 39


def test_what_takes_its_process_down_is_told_and_the_rest_is_read():
    faults = {
        2: lambda: os.kill(os.getpid(), signal.SIGABRT),
        3: lambda: time.sleep(600),
        5: lambda: os._exit(4),
    }
    found = guarded(lambda case: faults.get(case, lambda: case)(), range(7), seconds=6.0)
    assert found == [0, 1, "crash: SIGABRT", "hang", 4, "crash: exit code 4", 6]
