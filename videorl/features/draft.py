"""The rows of a shard in the making: appended to files, and told in a journal once they stand there.

After kill -9 the journal says how many rows are whole; what came behind them is cut off and made again.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videorl.registry import UserError

Rows = dict[str, np.ndarray]  # of a window or several: name -> [W, …]


@dataclass(frozen=True)
class Kind:
    """Type and shape of the rows of an array."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of a row."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape, dtype=np.int64))


class Draft:
    """Files of `folder`, which is made: one of rows for each of `kinds`, and the journal. Use it in a `with` statement.

    `videos`: of each finished video, in order, what `finish` was told.
    """

    def __init__(self, folder: Path, kinds: Mapping[str, Kind]):
        self.folder, self.kinds = folder, dict(kinds)
        folder.mkdir(parents=True, exist_ok=True)
        self.journal = open(folder / "journal.jsonl", "a+b")  # noqa: SIM115
        self.files = {name: open(self.file(name), "a+b") for name in kinds}  # noqa: SIM115
        self.videos = self._whole()
        self.rows = self.rows_finished

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.rows"

    def __enter__(self) -> "Draft":
        return self

    def __exit__(self, *_) -> None:
        for file in (self.journal, *self.files.values()):
            file.close()

    @property
    def rows_finished(self) -> int:
        return sum(video["windows"] for video in self.videos)

    def _whole(self) -> list[dict]:
        """The videos of the journal whose rows are all there; the rest is cut off."""
        self.journal.seek(0)
        content, videos, end, rows = self.journal.read(), [], 0, 0
        room = min(os.fstat(file.fileno()).st_size // self.kinds[name].size for name, file in self.files.items())
        for line in content.splitlines(keepends=True):
            try:
                part = json.loads(line)["videos"] if line.endswith(b"\n") else None
            except (ValueError, KeyError, TypeError):
                part = None
            if part is None or (rows := rows + sum(video["windows"] for video in part)) > room:
                break
            videos += part
            end += len(line)
        self.journal.truncate(end)
        for name, file in self.files.items():
            file.truncate(sum(video["windows"] for video in videos) * self.kinds[name].size)
        return videos

    def append(self, rows: Rows) -> None:
        """Rows of a video that is not finished."""
        count = {len(array) for array in rows.values()}
        for name, array in rows.items():
            kind = self.kinds[name]
            if array.shape[1:] != kind.shape:
                raise UserError(
                    f"{name}: expected rows of {kind.shape} as of the first window, found {array.shape[1:]}; name other"
                    " --features"
                )
            self.files[name].write(np.ascontiguousarray(array, dtype=kind.dtype).data)
        self.rows += count.pop()

    def cut(self, rows: int) -> None:
        """Leaves no more than so many rows."""
        for name, file in self.files.items():
            file.flush()
            file.truncate(rows * self.kinds[name].size)
        self.rows = rows

    def finish(self, videos: list[dict]) -> None:
        """Notes that all rows of these videos are there: `path`, `windows`, `seconds`, or why one is `bad`."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        self.journal.write(json.dumps({"videos": videos}).encode() + b"\n")
        self.journal.flush()
        os.fsync(self.journal.fileno())
        self.videos += videos

    def remove(self) -> None:
        self.__exit__()
        shutil.rmtree(self.folder)
