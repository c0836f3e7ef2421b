"""Long videos that are kept in chunks: `<video>.mp4/<first second>.mp4`, as LaViLa and AVION keep Ego4D.

Frames are counted from the first frame of the chunk that a reading begins in, and go on through the chunks after it.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import torch

from videorl.spec import Reading
from videorl.video.errors import VideoError
from videorl.video.frame_cache import open_cached
from videorl.video.reader import Frames


class ChunkedVideo(Frames):
    """The frames of a video from the chunk on that holds `second`; use it in a `with` statement.

    `seconds`: length of a chunk; 0: the video is one file. `start`: the second at which frame 0 is shown. `fps`: of the
    first chunk. Chunks are opened as frames of theirs are asked for. Raises `VideoError` where the first chunk is not
    there, where one is missing between two, and what reading a chunk raises.
    """

    def __init__(self, folder: str, seconds: int, second: float, reading: Reading):
        self.path, self.folder, self.seconds, self.reading = folder, folder, seconds, reading
        self.start = int(second // seconds) * seconds if seconds else 0
        self._stack = ExitStack()
        self._chunks, self._ends = [], []  # opened ones, and the number of the frame after the last of each
        if not self._open_next():
            reason = f"no such chunk, for second {second:g}; {self._present()}" if seconds else "no such file"
            raise VideoError(self._path(self.start), "open", reason)
        self.fps = self._chunks[0].fps

    def __enter__(self) -> "ChunkedVideo":
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def reaches(self, number: int) -> bool:
        """Whether the video has a frame of this number. Opens the chunks up to it."""
        while number >= self._ends[-1] and self._open_next():
            pass
        return number < self._ends[-1]

    @property
    def num_frames(self) -> int:
        """Frames of the chunks opened so far: of the video, if `reaches` has said no."""
        return self._ends[-1]

    def _read_parts(self, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        if not self.reaches(int(wanted[-1])):
            raise VideoError(self.path, "decode", f"frame {wanted[-1]} of {self.num_frames} from {self.start} s on")
        for first, end, chunk in zip([0, *self._ends], self._ends, self._chunks):
            own = wanted[(first <= wanted) & (wanted < end)]
            if len(own):
                yield from ((numbers + first, frames) for numbers, frames in chunk.parts(own - first))

    def _open_next(self) -> bool:
        """Opens the chunk after the last one; False if the video ends there."""
        if self._chunks and not self.seconds:
            return False
        second = self.start + self.seconds * len(self._chunks)
        path = self._path(second)
        if not os.path.exists(path):
            self._expect_none_after(second)
            return False
        chunk = self._stack.enter_context(open_cached(path, self.reading))
        self._chunks.append(chunk)
        self._ends.append(chunk.num_frames + (self._ends[-1] if self._ends else 0))
        return True

    def _expect_none_after(self, second: int) -> None:
        if self._chunks and any(start > second for start in self._starts()):
            raise VideoError(self._path(second), "open", f"a chunk is missing; {self._present()}")

    def _path(self, second: int) -> str:
        return os.path.join(self.folder, f"{second}.mp4") if self.seconds else self.folder

    def _starts(self) -> list[int]:
        names = (os.path.splitext(name) for name in os.listdir(self.folder)) if os.path.isdir(self.folder) else ()
        return sorted(int(stem) for stem, extension in names if extension == ".mp4" and stem.isdecimal())

    def _present(self) -> str:
        starts = self._starts()
        if not starts:
            return f"{self.folder} holds no chunks" if os.path.isdir(self.folder) else f"{self.folder} is no folder"
        return f"{self.folder} holds {len(starts)}, from {starts[0]} s to {starts[-1]} s"
