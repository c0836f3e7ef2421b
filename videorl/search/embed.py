"""Windows and texts as vectors of one space, by a model of two towers."""

import contextlib
import hashlib
import inspect
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from videorl.engine.step import Precision, call, to_device
from videorl.loading.pool import Loader
from videorl.loading.worker import Job
from videorl.registry import UserError
from videorl.search.cache import Cache, Video
from videorl.search.windows import Timings, Windows
from videorl.spec import Clip
from videorl.video.folder import File

SAVE_EVERY = 20  # videos


class Embedder:
    """A model that embeds text and video. Raises `UserError` for one that does not."""

    def __init__(self, model: nn.Module, name: str, clip: Clip, precision: Precision):
        if not {"video", "text"} <= inspect.signature(model.forward).parameters.keys():
            raise UserError(f"{name} takes no text: give a model that embeds text and video, such as S3D")
        self.model, self.name, self.clip, self.precision = model.eval(), name, clip, precision

    @property
    def seconds(self) -> float:
        """Length of a window."""
        return self.clip.frames * self.clip.rate / self.clip.fps

    def text(self, words: torch.Tensor) -> np.ndarray:
        """[D] of a text, int64 word numbers [L]. The clip that models ask for beside it is black, and of no effect."""
        clip = self.clip
        black = torch.zeros(1, clip.frames, clip.channels, clip.test_size, clip.test_size, dtype=torch.uint8)
        try:
            return self._outputs({"video": black, "text": words[None, None]}, "text_embed").reshape(-1)
        except IndexError:
            raise UserError(
                f"TEXT.DICT has more words than {self.name}; name the dict.npy that belongs to the weights"
            ) from None

    def videos(self, batch: dict) -> np.ndarray:
        """[B, D] of the clips `video`, uint8 [B, T, 3, S, S]."""
        return self._outputs({"video": batch["video"]}, "video_embed")

    def _outputs(self, batch: dict, name: str) -> np.ndarray:
        with torch.inference_mode(), self.precision.autocast():
            found = call(self.model, to_device(batch, self.precision.device, self.clip))
        if name not in found:
            raise UserError(f"{self.name} gives no {name}: give a model that embeds text and video, such as S3D")
        return found[name].cpu().numpy()

    def fingerprint(self, *facts) -> str:
        """SHA-256 of the weights, of how clips are made, and of `facts` (JSON)."""
        digest = hashlib.sha256(json.dumps([self.name, repr(self.clip), str(self.precision.dtype), facts]).encode())
        for name, value in self.model.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def fill(
    cache: Cache,
    folder: Path,
    files: Sequence[File],
    embedder: Embedder,
    make_loader: Callable[[Timings | Windows], Loader],
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
    with contextlib.closing(make_loader(Timings(paths, embedder.seconds, stride, max_pixels))) as loader:
        timed = read_each(loader, len(paths), 1, lambda batch: batch["timing"], "looking at videos", "video")
        for file, path, found in zip(files, paths, timed):
            if isinstance(found, str):
                unreadable[file.path] = found
            else:
                todo.append((file, *found))
                windows += [(path, start) for start in found[1]]
    with contextlib.closing(make_loader(Windows(windows, embedder.clip, max_pixels))) as loader:
        rows = read_each(loader, len(windows), batch, embedder.videos, "embedding windows", "window")
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


def read_each(
    loader: Loader, count: int, size: int, use: Callable[[dict], Sequence], title: str, unit: str
) -> Iterator[object | str]:
    """What `use` makes of every sample, in order, from batches of `size`; a text that says why it cannot be read."""
    jobs = [Job(0, k, list(range(k, min(k + size, count)))) for k in range(0, count, size)]
    with _shown(range(count), title, unit) as bar:
        for job, batch in zip(jobs, loader.run(jobs)):
            found = {} if batch is None else dict(zip(batch["index"].tolist(), use(batch)))
            bar.update(len(job.samples))
            for i in job.samples:
                bad = loader.quarantine.rows.get(i)
                yield found[i] if i in found else f"{bad['stage']}: {bad['error']}"


def _joined(length: float, starts: list[float], rows: list[np.ndarray | str]) -> Video:
    good = [(start, row) for start, row in zip(starts, rows) if not isinstance(row, str)]
    reasons = [row for row in rows if isinstance(row, str)]
    bad = f"{len(reasons)} of {len(rows)} windows: {reasons[0]}" if reasons else ""
    embeds = np.stack([row for _, row in good]) if good else np.zeros((0, 0), np.float32)
    return Video(length, np.array([start for start, _ in good]), embeds, bad)


def _shown(of: Sequence, title: str, unit: str) -> tqdm:
    """A bar with the time left, on stderr; lines at long intervals where that is no terminal."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(of, title, unit=unit, mininterval=interval, dynamic_ncols=True, leave=False, disable=not of)
