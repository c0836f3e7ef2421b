"""Damaged videos give frames or a VideoError, from every backend. `fuzz.py` does the same with thousands of files."""

import pytest

from tests.faults.fuzz import fuzz, mutated
from videorl.data.video import _missing

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
