"""Decoded videos as raw frames in a folder, best in main memory: for the next epochs and for other processes.

`<hash of path, size and time of change>.npy` holds the frames of a video and, behind them, its frame rate and times.
The file `bytes` says what such files take, and is the lock under which they are made, named and removed: whatever the
number of processes, the folder stays within its limit. A file has its full size from the start, so that a process that
begins, and counts anew, finds it. A video that changes gets another name; its old frames stay until somebody removes
them.
"""

import contextlib
import fcntl
import functools
import hashlib
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from videorl.registry import UserError
from videorl.spec import Reading
from videorl.video.errors import VideoError
from videorl.video.reader import Frames, Video, open_video, runs

_log = logging.getLogger(__name__)

PART = ".part"  # ending of a file that is being written
HEADERS = 256  # bytes of a file that hold no numbers
ABANDONED = 3600.0  # seconds after which a half-written file is that of a process that was killed


def open_cached(path: str, reading: Reading) -> "Video | CachedVideo":
    """`open_video` as `reading` says, from the frames in its `cache_folder` if there is one; the frames are the same.

    A video that is not there yet is decoded as a whole and put there, if it fits. Raises what `open_video` raises, and
    `UserError` if the folder cannot be written.
    """
    if reading.cache_folder:
        return _cache(reading.cache_folder, reading.cache_gb).open(path, reading)
    return open_video(path, reading.backend, max_pixels=reading.max_pixels)


class CachedVideo(Frames):
    """What data sets use of `Video`, from a file of the cache.

    num_frames, fps, times, size: as of `Video`; lost: nothing. Raises OSError, ValueError or EOFError if it is broken.
    """

    def __init__(self, path: str, file: Path, max_pixels: int):
        frames = np.lib.format.open_memmap(file, mode="r")
        with open(file, "rb") as rest:
            rest.seek(frames.offset + frames.nbytes)
            self.fps, *times = np.load(rest).tolist()
        self.path, self.times, self.lost = path, np.array(times), ""
        self.num_frames, self.size = len(frames), frames.shape[1:3]
        self._frames, self._max_pixels = np.asarray(frames), max_pixels

    def _read_parts(self, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        if wanted[0] < 0 or wanted[-1] >= self.num_frames:
            raise VideoError(self.path, "decode", f"frames {wanted[0]} to {wanted[-1]} of {self.num_frames}")
        for run in runs(wanted, math.prod(self.size), self._max_pixels):
            yield run, torch.from_numpy(self._frames[run])

    def __enter__(self) -> "CachedVideo":
        return self

    def __exit__(self, *_) -> None:
        del self._frames


@functools.cache
def _cache(folder: str, gigabytes: float) -> "FrameCache":
    return FrameCache(Path(folder), gigabytes)


class FrameCache:
    """The folder, and what this process knows of it.

    `unfit`: what it does not try to keep again, for want of room, because of damage, or because another process does.
    """

    def __init__(self, folder: Path, gigabytes: float):
        self.folder, self.limit = folder, int(gigabytes * 1e9)
        self.unfit: set[Path] = set()
        try:
            with self._ledger() as ledger:
                _write(ledger, self._count())
        except OSError as error:
            raise UserError(f"DATA.CACHE_FOLDER {folder} cannot be written: {error.strerror}; name another") from None

    def open(self, path: str, reading: Reading) -> Video | CachedVideo:
        file = self._file(path, reading)
        if file.exists():
            try:
                return CachedVideo(path, file, reading.max_pixels)
            except (OSError, ValueError, EOFError) as error:
                _log.warning("%s of the frame cache is broken (%s): %s is decoded anew", file, error, path)
                self._remove(file)
        video = open_video(path, reading.backend, max_pixels=reading.max_pixels)
        if file in self.unfit:
            return video
        try:
            if self._put(video, file):
                video.close()
                return CachedVideo(path, file, reading.max_pixels)
        except VideoError:  # it may be damaged where no clip is ever taken from
            video.close()
            video = open_video(path, reading.backend, max_pixels=reading.max_pixels)
        except OSError as error:
            _log.warning("%s: no more videos are kept by this process: %s", self.folder, error)
            self.limit = 0
        self.unfit.add(file)
        return video

    def _file(self, path: str, reading: Reading) -> Path:
        try:
            status = os.stat(path)
            key = f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}\0{reading.max_pixels}"
        except (OSError, ValueError):  # `open_video` says why
            key = ""
        return self.folder / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}.npy"

    def _put(self, video: Video, file: Path) -> bool:
        """Writes all frames of a video, unless there is no room, or another process is at it."""
        shape, facts = (video.num_frames, *video.size, 3), np.array([video.fps, *video.times])
        temporary = file.with_suffix(PART)
        if not self._reserve(file, math.prod(shape) + facts.nbytes + HEADERS):
            return False
        try:
            with open(temporary, "r+b") as out:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(out, header)
                for _, frames in video.parts(range(video.num_frames)):
                    out.write(np.ascontiguousarray(frames))
                np.save(out, facts)
            with self._ledger():
                os.replace(temporary, file)
        except BaseException:
            self._remove(temporary)
            raise
        return True

    # ------------------------------------------------------------------------------------------- who takes how much

    @contextlib.contextmanager
    def _ledger(self):
        """The file `bytes`, which no other process reads or writes meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self.folder / "bytes", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _count(self) -> int:
        total = 0
        for file in [*self.folder.glob("*.npy"), *self.folder.glob(f"*{PART}")]:
            status = file.stat()
            if file.suffix == PART and time.time() - status.st_mtime > ABANDONED:
                file.unlink()
            else:
                total += status.st_size
        return total

    def _reserve(self, file: Path, size: int) -> bool:
        """Makes the part of `file`, of this size and with nothing in it, if there is room and it is not there."""
        with self._ledger() as ledger:
            total, part = _read(ledger) + size, file.with_suffix(PART)
            if total > self.limit or file.exists() or part.exists():
                return False
            part.touch()
            os.truncate(part, size)
            _write(ledger, total)
        return True

    def _remove(self, file: Path) -> None:
        with self._ledger() as ledger:
            if file.exists():
                _write(ledger, max(_read(ledger) - file.stat().st_size, 0))
                file.unlink()


def _read(ledger: int) -> int:
    return int(os.pread(ledger, 20, 0) or 0)


def _write(ledger: int, total: int) -> None:
    os.pwrite(ledger, b"%020d" % total, 0)
