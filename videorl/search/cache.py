"""Embeddings of the videos of one folder by one model, in one file."""

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videorl import atomic
from videorl.log import attempt
from videorl.video.folder import File

log = logging.getLogger("videorl")

FORMAT = 2  # counts changes of the code that change the file, or the embeddings by the same weights


@dataclass(frozen=True)
class Video:
    """The windows of a video that could be read, [W] of D numbers each; `bad` says in words which could not.

    Times are seconds; float32 embeddings.
    """

    length: float
    starts: np.ndarray
    embeds: np.ndarray
    bad: str = ""


class Cache:
    """File -> Video, kept in `place`/<hash>.npz; a cache that is broken or cannot be written costs time, no more.

    Videos that are bad in part are not written: their fault may be one of the disk or the network.

    `key` stands for all that embeddings depend on beside the videos: weights, clip shape, stride.
    """

    def __init__(self, place: Path, folder: Path, key: str):
        name = hashlib.sha256(
            f"{FORMAT}\n{os.path.realpath(folder)}\n{key}".encode("utf-8", "surrogateescape")
        ).hexdigest()
        self.file = place / f"{name[:32]}.npz"
        self.videos = self._read()
        self._failed: set[str] = set()

    def _read(self) -> dict[File, Video]:
        if not self.file.is_file():
            return {}
        try:
            with np.load(self.file) as arrays:
                rows = json.loads(arrays["videos"].tobytes())
                return _taken_apart(rows, arrays["starts"], arrays["embeds"])
        # A damaged archive can make zipfile, numpy and json raise anything.
        except Exception as error:
            log.warning("%s is broken (%s): all videos are embedded anew", self.file, str(error)[:80])
            return {}

    def keep(self, files: list[File]) -> None:
        """Forgets all videos but these."""
        self.videos = {file: self.videos[file] for file in files if file in self.videos}

    def save(self) -> None:
        """Writes the file, so that it is either the old one or the new one at any moment."""
        attempt("the cache of embeddings", self._write, self._failed)

    def _write(self) -> None:
        whole = {file: video for file, video in self.videos.items() if not video.bad}
        videos = list(whole.values())
        rows = [[f.path, f.size, f.changed, v.length, len(v.starts)] for f, v in whole.items()]
        arrays = {
            # JSON in ASCII: paths may hold bytes that are no UTF-8
            "videos": np.frombuffer(json.dumps(rows).encode(), np.uint8),
            "starts": np.concatenate([v.starts for v in videos] or [np.zeros(0)]),
            "embeds": np.concatenate([v.embeds for v in videos] or [np.zeros((0, 0), np.float32)]),
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with atomic.writing(self.file) as out:
            np.savez(out, **arrays)


def _taken_apart(rows: list, starts: np.ndarray, embeds: np.ndarray) -> dict[File, Video]:
    ends = np.cumsum([row[4] for row in rows], dtype=np.int64)
    if not len(starts) == len(embeds) == (ends[-1] if rows else 0) or embeds.ndim != 2:
        raise ValueError("numbers of windows differ")
    parts = zip(rows, np.split(starts, ends[:-1]), np.split(embeds, ends[:-1])) if rows else ()
    return {File(*row[:3]): Video(row[3], own, vectors) for row, own, vectors in parts}
