"""The windows that videos are cut into, and these as a data set."""

from collections.abc import Sequence

import numpy as np
import torch

from videorl.spec import Clip
from videorl.video.reader import open_video
from videorl.video.spans import Crop, Spans

TOLERANCE = 1e-3  # seconds


def timing(path: str, seconds: float, stride: float, max_pixels: int) -> tuple[float, list[float]]:
    """Length of a video and the starts of its windows, in seconds. Raises `VideoError`.

    From the packets, not from the header: it may be silent, and its length is that of the sound too.
    """
    with open_video(path, "pyav", max_pixels=max_pixels) as video:
        length = float(video.times[-1]) + 1 / video.fps
        return length, starts(video.times, length, seconds, stride)


def starts(times: np.ndarray, length: float, seconds: float, stride: float) -> list[float]:
    """Where the windows of a video begin whose frames are shown at `times`: every `stride`, where there are frames.

    None runs past the end; a last one that ends with the video covers what is left over. A video shorter than a window
    has one, at its start.
    """
    last = max(0.0, length - seconds)
    grid = np.unique(np.floor(times / stride)) * stride
    found = np.maximum(grid[grid <= last + TOLERANCE], 0.0).tolist()
    return found if found and found[-1] + TOLERANCE >= last else [*found, last]


class Windows:
    """Windows (path, start in seconds) as a data set: each item is `video`, uint8 [T, 3, S, S], and its `index`.

    Read as MIL-NCE's evaluations read clips: the central square, scaled; black past the end of the video.
    """

    split, epoch = "test", 0

    def __init__(self, windows: Sequence[tuple[str, float]], clip: Clip, max_pixels: int):
        self.windows, self.clip, self.max_pixels = windows, clip, max_pixels

    def __len__(self) -> int:
        return len(self.windows)

    def path(self, i: int) -> str:
        return self.windows[i][0]

    def __getitem__(self, i: int) -> dict:
        path, start = self.windows[i]
        clip = self.clip
        with Spans(path, max_pixels=self.max_pixels) as video:
            frames = video.clip(start, frames=clip.frames, fps=clip.fps / clip.rate, crop=Crop(clip.test_size))
        return {"video": frames, "index": torch.tensor(i)}
