"""Videos kept in chunks: frames that carry their number tell which ones were read."""

from pathlib import Path

import pytest
import torch

from videorl.data.ego4d import Shot
from videorl.spec import Reading

GOLDEN = Path(__file__).parents[1] / "golden/data"
CASE = torch.load(GOLDEN / "ego4d_chunked_clips.pt", weights_only=True)
CHUNKS = GOLDEN / "ego4d_chunks"


def burnt_in(frames: torch.Tensor) -> list[int]:
    """The number that each frame [H, W, 3] shows: 16 bits in blocks of 8 pixels, the low byte in the upper half."""
    height = frames.shape[1]
    rows = torch.stack([frames[:, height // 4], frames[:, 3 * height // 4]], 1)  # [T, 2, W, 3]
    bits = rows[:, :, 4:64:8].float().mean(-1) > 127  # [T, 2, 8]
    return (bits.flatten(1).long() * 2 ** torch.arange(16)).sum(1).tolist()


def read(case: dict, seconds: int, rule: str = "parts") -> list[int]:
    end = float("inf") if case["end"] is None else case["end"]
    path = CHUNKS / f"{case['video']}.mp4"
    with Shot(str(path), seconds, case["start"], end, rule, Reading()) as shot:
        return burnt_in(shot.frames(shot.numbers(case["frames"]).tolist()))


@pytest.mark.parametrize(("kind", "seconds"), [("chunked", 4), ("whole", 0)])
def test_frames_equal_lavila(kind, seconds):
    expected = CASE["expected"][kind]
    assert [read(case, seconds) for case in CASE["inputs"][kind]] == expected
