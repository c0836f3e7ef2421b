"""The videos of a folder, and the windows that each is cut into."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from videorl.data.spans import Crop, Spans
from videorl.data.video import open_video
from videorl.registry import UserError
from videorl.spec import Clip

# Of the containers that `videorl.data.video` reads; what a file really holds is seen when it is opened.
EXTENSIONS = {
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v"),
    *(".mkv", ".webm", ".avi"),
    *(".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".m1v", ".m2v", ".h264", ".264", ".h265", ".265", ".hevc"),
}
TOLERANCE = 1e-3  # seconds


@dataclass(frozen=True)
class File:
    """A file of a folder: path below it, bytes, time of the last change (ns). Equal ones are taken for the same."""

    path: str
    size: int
    changed: int


def find(folder: Path) -> tuple[list[File], dict[str, str]]:
    """The video files at any depth, by path, and why others could not be looked at (path -> reason).

    Links to folders are not followed. Raises `UserError` if there is no folder or no video in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name one that holds videos")
    files, unreadable = [], {}

    def note(error: OSError) -> None:
        unreadable[os.path.relpath(error.filename, folder)] = f"open: {error.strerror}"

    for parent, _, names in os.walk(folder, onerror=note):
        for name in names:
            if os.path.splitext(name)[1].lower() in EXTENSIONS:
                path = os.path.join(parent, name)
                try:
                    status = os.stat(path)
                except OSError as error:
                    note(error)
                else:
                    files.append(File(os.path.relpath(path, folder), status.st_size, status.st_mtime_ns))
    if not files:
        first = "".join(f"; {path}: {reason}" for path, reason in list(unreadable.items())[:1])
        raise UserError(f"{folder}: no videos found{first} (expected files like .mp4, .mkv, .webm, .avi, .ts)")
    return sorted(files, key=lambda file: file.path), unreadable


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
