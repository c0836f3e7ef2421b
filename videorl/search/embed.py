"""Windows and texts as vectors of one space, by a model of two towers."""

import contextlib
import functools
import inspect
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from videorl.engine.step import Precision
from videorl.features.each import by_index, in_batches, look_at_each, read_each
from videorl.features.encoder import Encoder
from videorl.loading.pool import Loader
from videorl.registry import UserError
from videorl.search.cache import Cache, Video
from videorl.search.windows import Windows, timing
from videorl.spec import Clip
from videorl.video.folder import File

SAVE_EVERY = 20  # videos


class Embedder(Encoder):
    """A model that embeds text and video. Raises `UserError` for one that does not."""

    def __init__(self, model: nn.Module, name: str, clip: Clip, precision: Precision):
        if not {"video", "text"} <= inspect.signature(model.forward).parameters.keys():
            raise UserError(f"{name} takes no text: give a model that embeds text and video, such as S3D")
        super().__init__(model, name, clip, precision)

    def text(self, words: torch.Tensor) -> np.ndarray:
        """[D] of a text, int64 word numbers [L]. The clip that models ask for beside it is black, and of no effect."""
        try:
            return self._output({"video": self.blank(), "text": words[None, None]}, "text_embed").reshape(-1)
        except IndexError:
            raise UserError(
                f"TEXT.DICT has more words than {self.name}; name the dict.npy that belongs to the weights"
            ) from None

    def videos(self, batch: dict) -> dict[int, np.ndarray]:
        """Sample -> [D], of the clips `video`, uint8 [B, T, 3, S, S]."""
        return by_index(batch, self._output({"video": batch["video"]}, "video_embed"))

    def _output(self, batch: dict, name: str) -> np.ndarray:
        found = self.outputs(batch)
        if name not in found:
            raise UserError(f"{self.name} gives no {name}: give a model that embeds text and video, such as S3D")
        return found[name].cpu().numpy()


def fill(
    cache: Cache,
    folder: Path,
    files: Sequence[File],
    embedder: Embedder,
    make_loader: Callable[[object], Loader],
    *,
    stride: float,
    batch: int,
    max_pixels: int,
) -> dict[str, str]:
    """Embeds those files that the cache lacks, `batch` windows at once, and returns the unreadable ones with reasons.

    A window begins every `stride` seconds. `make_loader`: a loader that allows any number of bad samples. The cache is
    saved every few videos, and when an error or Ctrl-C ends this.
    """
    cache.keep(files)
    files = [file for file in files if file not in cache.videos]
    if not files:
        return {}
    paths = [os.path.join(folder, file.path) for file in files]
    todo, windows, unreadable = [], [], {}
    look = functools.partial(timing, seconds=embedder.seconds, stride=stride, max_pixels=max_pixels)
    timed = look_at_each(paths, look, make_loader, "looking at videos")
    for file, path, found in zip(files, paths, timed, strict=True):
        if isinstance(found, str):
            unreadable[file.path] = found
        else:
            todo.append((file, *found))
            windows += [(path, start) for start in found[1]]
    with contextlib.closing(make_loader(Windows(windows, embedder.clip, max_pixels))) as loader:
        groups = in_batches(len(windows), batch)
        rows = read_each(loader, groups, embedder.videos, "embedding windows", "window")
        return unreadable | _store(cache, todo, rows)


def _store(
    cache: Cache, todo: list[tuple[File, float, list[float]]], rows: Iterator[np.ndarray | str]
) -> dict[str, str]:
    """Puts videos with at least one readable window into the cache, and returns why the others have none."""
    unreadable = {}
    try:
        for number, (file, length, starts) in enumerate(todo, 1):
            video = _joined(length, starts, list(itertools.islice(rows, len(starts))))
            if len(video.starts):
                cache.videos[file] = video
            else:
                unreadable[file.path] = video.bad
            if number % SAVE_EVERY == 0:
                cache.save()
    finally:
        if todo:
            cache.save()
    return unreadable


def _joined(length: float, starts: list[float], rows: list[np.ndarray | str]) -> Video:
    good = [(start, row) for start, row in zip(starts, rows) if not isinstance(row, str)]
    reasons = [row for row in rows if isinstance(row, str)]
    bad = f"{len(reasons)} of {len(rows)} windows: {reasons[0]}" if reasons else ""
    embeds = np.stack([row for _, row in good]) if good else np.zeros((0, 0), np.float32)
    return Video(length, np.array([start for start, _ in good]), embeds, bad)
