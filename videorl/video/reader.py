"""Frames of video files, exact to the frame: PyAV, torchcodec and decord behind one class.

PyAV has the last word. It lists the packets of every file without decoding (about 1 ms per 300 frames), and that list
says which frames exist, when they are shown and where decoding can start. Another backend reads a file only if it
cannot go wrong there: `backends.py` has what is known before (`unfit`), what is checked at every call, and the
comparison with PyAV on the first file of each kind (`same_pixels`). Otherwise, and whenever it raises, PyAV reads the
file instead and the log says so once. So all backends give the same frames, and differ in speed: PyAV opens a file
once, where others open it again, and decodes no frames of H.264 that are not asked for and no other needs.
That holds for whole files. Some damage no decoder notices (a dozen flipped bytes), and none is noticed in frames that
nobody asks for: that takes a checksum of the file. What comes of a damaged one may depend on what was read before.

Decoders run in one thread: the frames of a damaged file depend on the number of threads, and data loading runs in many
worker processes. There, call `torch.set_num_threads(1)`: torchcodec takes four times as long without it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from videorl.spec import Reading
from videorl.video.backends import OTHERS, Picture, PyAV, check_backend, same_pixels, unfit
from videorl.video.errors import VideoError, another_size, at_stage, log_once


def open_video(
    path: str | Path,
    backend: str = "pyav",
    *,
    max_pixels: int = Reading.max_pixels,
    cut: Callable[[str], Picture] | None = None,
) -> "Video":
    """Opens a video file; use it in a `with` statement.

    `backend`: "pyav", which was the fastest of the three wherever measured, "torchcodec" or "decord". `max_pixels` of a
    frame are checked before anything is decoded, and are the most that `Video.parts` has in memory at once. `cut(path)`
    makes pictures of decoded frames, so that no more of them is kept than what is wanted; PyAV alone can do that.
    Raises VideoError, and UserError for a backend that is unknown or not installed.
    """
    return Video(path, "pyav" if cut else backend, max_pixels, cut)


class Frames:
    """What gives frames by their numbers. A subclass has a `path`, and `_read_parts` for numbers without repeats."""

    path: str

    def parts(self, indices: Sequence[int]) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Frames by rising number, each once, a part after the other: numbers [T], frames [T, H, W, 3], uint8 RGB.

        So that not all need be in memory: a part has no more pixels than one frame may have (`max_pixels`), and is free
        when the next but one is made. `indices`: numbers in any order, also repeated. Raises VideoError (stage
        "decode") if a number is out of range, a frame cannot be decoded, or has another size than the first.
        """
        numbers = np.asarray(indices).astype(np.int64, casting="safe")
        if numbers.ndim != 1 or not len(numbers):
            raise ValueError(f"expected a list of at least one frame number, got shape {numbers.shape}")
        first = None
        for found, frames in self._read_parts(np.unique(numbers)):
            first = first or (found[0], frames.shape[1:])
            if frames.shape[1:] != first[1]:
                raise another_size(self.path, found[0], first[0])
            yield found, frames

    def frames(self, indices: Sequence[int]) -> torch.Tensor:
        """Frames [T, H, W, 3], uint8 RGB, for T >= 1 numbers in any order, also repeated. Raises as `parts` does."""
        parts = [frames for _, frames in self.parts(indices)]
        return in_order(torch.cat(parts) if len(parts) > 1 else parts[0], indices)

    def _read_parts(self, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        raise NotImplementedError


def in_order(rows: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
    """A row for each of `indices`, of `rows` for each of their numbers once, rising."""
    numbers, places = np.unique(indices, return_inverse=True)
    return rows if np.array_equal(numbers, indices) else rows[torch.from_numpy(places)]


def runs(wanted: np.ndarray, pixels: int, most: int) -> list[np.ndarray]:
    """The numbers of frames of so many pixels, in runs that have at most `most` pixels, or one frame."""
    step = max(1, most // max(pixels, 1))
    return [wanted[start : start + step] for start in range(0, len(wanted), step)]


class Video(Frames):
    """The frames of the main video stream of a file (see `container`), in the order in which players show them.

    num_frames: frames that the file holds (of a truncated file: those that are left)
    fps:        average over the whole video
    times:      [N] float64, seconds from the time that players call 0; rising
    size:       (height, width) as shown; needs one decoded frame
    num_keys:   frames that decoding can start at
    lost:       what the header of a truncated file promises, in words, or nothing
    backend:    the one that reads this file, "pyav", "torchcodec" or "decord"

    Pickles as its path and is opened anew by the process that unpickles it; the same after a fork.
    """

    def __init__(self, path: str | Path, backend: str, max_pixels: int, cut: Callable[[str], Picture] | None = None):
        self.path = os.path.abspath(path)
        check_backend(backend)
        self._arguments = (self.path, backend, max_pixels, cut)
        self._cut = cut
        self._asked = backend
        self._max_pixels = max_pixels
        self._size = None
        self._open()

    def _open(self) -> None:
        self._process = os.getpid()
        self._reader = PyAV(self.path, self._max_pixels, self._cut)
        self.backend = "pyav"
        self._index = self._reader.index
        self.num_frames, self.fps, self.times = len(self._index.times), self._index.fps, self._index.times
        self.num_keys, self.lost = len(self._index.keys), self._index.lost
        if self._asked != "pyav":
            self._try_other()

    def _try_other(self) -> None:
        try:
            if reason := unfit(self._asked, self._reader):
                log_once(f"{self._asked} does not read {reason} exactly: PyAV reads such files")
                return
            other = OTHERS[self._asked](self.path, self._index)
            agrees = same_pixels(self._asked, other, self._reader)
        except Exception as error:
            self._log_failure(self._asked, error)
            return
        if agrees:
            self._reader.close()
            self._reader, self.backend = other, self._asked

    @property
    def size(self) -> tuple[int, int]:
        if self._size is None:
            self.frames([0])
        return self._size

    def _read_parts(self, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        if wanted[0] < 0 or wanted[-1] >= self.num_frames:
            outside = wanted[0] if wanted[0] < 0 else wanted[-1]
            raise VideoError(self.path, "decode", f"frame {outside} of {self.num_frames}{self.lost}")
        while len(wanted):
            frames = self._read(wanted.tolist())
            self._size = tuple(frames.shape[1:3])
            yield wanted[: len(frames)], frames
            wanted = wanted[len(frames) :]

    def _read(self, wanted: list[int]) -> torch.Tensor:
        """The first of these frames, so many as are a part."""
        if self._reader is None:
            raise ValueError(f"{self.path} is closed")
        if self._process != os.getpid():  # parent and child would move one file position
            self._open()
        if self.backend != "pyav":
            try:
                return self._reader.read(runs(wanted, self._index.pixels, self._max_pixels)[0])
            except Exception as error:
                self._log_failure(self.backend, error)
            self._reader, self.backend = PyAV(self.path, self._max_pixels, self._cut), "pyav"
        with at_stage(self.path, "decode"):
            return self._reader.read(wanted, self._max_pixels)

    def _log_failure(self, backend: str, error: Exception) -> None:
        first_line = str(error).partition("\n")[0]
        log_once(f"{self.path}: {backend} fails, PyAV reads it: {first_line}")

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __reduce__(self):
        return Video, self._arguments
