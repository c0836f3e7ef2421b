"""Which frames the windows of a video show, and these windows as a data set."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from videorl.clip.sampling import dense_at, span_parts
from videorl.clip.transforms import test_view
from videorl.data.listed import Part
from videorl.features.each import look_at_each
from videorl.loading.pool import Loader
from videorl.prepare.chunks import Sources
from videorl.registry import UserError
from videorl.spec import Spec
from videorl.video.backends import Picture, Shown
from videorl.video.errors import VideoError
from videorl.video.reader import Video, open_video
from videorl.video.spans import Crop, Cutter

SLACK = 1e-8  # seconds: more than float64 errs by, and less than two different times differ by
VIEWS = ("labelled", "moments", "square", "short_side")


@dataclass(frozen=True)
class Windows:
    """Windows of `frames` frames in `seconds`, one every `stride` seconds from the start of a video on.

    The last one is the first that reaches the end of the video; a video shorter than a window has one.
    `view`, how they are read: labelled: as evaluations of labelled data sets read clips, the frames and the central
    crop of `size` from a short side of `short_side` pixels, where frames past the end repeat the last. moments: as
    those of narrated moments read them (`data.moments`): the middle frames of equal parts of what there is, resized as
    Pillow does. square and short_side: as ffmpeg's filter `fps` chooses frames, black past the end, and scales
    (bicubic) and crops: the central square, scaled (MIL-NCE); the short side scaled to `size`, then the central square
    of it (MMPT's features).
    """

    frames: int
    seconds: float
    stride: float
    view: str
    size: int
    short_side: int

    def __post_init__(self):
        if not (0 < self.stride < math.inf and 0 < self.seconds < math.inf):
            raise UserError(f"window of {self.seconds:g} s every {self.stride:g} s: expected more than 0 seconds")
        if self.view not in VIEWS:
            raise UserError(f"view {self.view!r}: expected one of {', '.join(VIEWS)}")

    @property
    def fps(self) -> float:
        return self.frames / self.seconds

    def count(self, length: float) -> int:
        """Windows of a video of `length` seconds, which counts in whole frames of `fps`, at least one."""
        steps = max(math.floor(length * self.fps + 0.5 + SLACK), 1)
        return max(math.ceil((steps - self.frames) / (self.stride * self.fps) - SLACK), 0) + 1

    def spans(self, numbers: np.ndarray, length: float) -> np.ndarray:
        """[N, 2] seconds, from … to, that windows of these numbers [N] show of a video of `length` seconds."""
        first = numbers * self.stride
        return np.stack([first, np.minimum(first + self.seconds, length)], 1)

    def shown(self, times: np.ndarray, length: float, number: int) -> np.ndarray:
        """[frames] frame numbers of a window of a video whose frames are shown at `times`; -1 is past the end."""
        start, fps = number * self.stride, len(times) / length
        if self.view == "labelled":
            place = {"length": _frames(self.seconds * fps), "frames": self.frames, "times": times}
            return dense_at(_frames(start * fps), len(times), **place)
        if self.view == "moments":
            first = round(_frames(start * fps))
            last = first + max(int(_frames(min(self.seconds, length - start) * fps)), self.frames)
            return span_parts(min(first, len(times) - 1), min(last, len(times)), frames=self.frames)
        steps = np.arange(self.frames)
        # ffmpeg's rule: step k shows the last frame whose time, in steps, rounds to k or less, halves up.
        until = start + (steps + 0.5) / self.fps
        found = np.maximum(np.searchsorted(times, until - SLACK, side="left") - 1, 0)
        return np.where(start * self.fps + steps + 0.5 <= max(length * self.fps, 1) + SLACK, found, -1)

    def cut(self, path: str) -> Picture:
        """What makes the pictures [size, size, 3] of frames as they are decoded."""
        if self.view in ("labelled", "moments"):
            return _Central(self)
        return Cutter(path, Crop(self.size) if self.view == "square" else _ShortSide(self.size))


def _frames(count: float) -> float:
    """Seconds times frames a second, without the last bits, by which 15 frames would be 14.999… and so 14."""
    return round(count, 6)


def windows_of(spec: Spec, seconds: float | None, stride: float | None, view: str = "labelled") -> Windows:
    """Windows of a run's clips; where nothing is said of `seconds`, as long as these, and of `stride`, end to end."""
    clip, short_side = spec.clip, max(spec.augment.scales[0], spec.clip.test_size)
    length = clip.frames * clip.rate / clip.fps if seconds is None else seconds
    return Windows(clip.frames, length, length if stride is None else stride, view, clip.test_size, short_side)


@dataclass(frozen=True)
class _ShortSide(Crop):
    """The short side scaled to `size`, then the central square of it, at whole pixels."""

    def filters(self) -> list[tuple[str, str]]:
        width = f"if(gt(iw,ih),trunc(iw*{self.size}/ih),{self.size})"
        height = f"if(gt(iw,ih),{self.size},trunc(ih*{self.size}/iw))"
        crop = f"{self.size}:{self.size}:trunc((iw-{self.size})/2):trunc((ih-{self.size})/2)"
        return [("scale", f"{width}:{height}:flags=bicubic"), ("crop", crop)]


class _Central:
    """The central crop as `ClipDataset` makes it, of each frame by itself."""

    def __init__(self, windows: Windows):
        self.whole, self.short_side, self.size = Shown(), windows.short_side, windows.size
        self.antialias = windows.view == "moments"

    def __call__(self, frame) -> np.ndarray:
        picture = torch.from_numpy(np.ascontiguousarray(self.whole(frame)))
        sizes = {"short_side": self.short_side, "size": self.size}
        view = test_view(picture[None], **sizes, position=1, antialias=self.antialias)
        return view[0].permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class Block:
    """Windows `first` … `stop` - 1 of (a part of) a video."""

    part: Part
    path: str
    first: int
    stop: int

    def __len__(self) -> int:
        """Windows."""
        return self.stop - self.first

    @property
    def numbers(self) -> np.ndarray:
        """[W] of the windows."""
        return np.arange(self.first, self.stop)


def measured(path: str, part: Part, windows: Windows, max_pixels: int) -> tuple[int, float]:
    """Number of windows, and length in seconds, of (a part of) a video. Raises `VideoError`."""
    with open_video(path, max_pixels=max_pixels) as video:
        _, length = _timeline(video, part)
        return windows.count(length), length


def measure_each(
    names: Sequence[str],
    sources: Sources,
    windows: Windows,
    max_pixels: int,
    make_loader: Callable[[object], Loader],
    title: str,
) -> dict[str, tuple[int, float] | str]:
    """The same of each of these sources, or a text that says why it cannot be read (see `look_at_each`)."""
    look = functools.partial(_of_source, sources=sources, windows=windows, max_pixels=max_pixels)
    return dict(zip(names, look_at_each(names, look, make_loader, title), strict=True))


def _of_source(name: str, sources: Sources, windows: Windows, max_pixels: int) -> tuple[int, float]:
    return measured(sources.file(name), sources.parts[name], windows, max_pixels)


def _timeline(video: Video, part: Part) -> tuple[np.ndarray, float]:
    """When the frames of a part are shown, and how long it is, in seconds: of a whole video, from its own 0 on."""
    times = video.times[part.first : part.stop if part.stop >= 0 else None]
    if not len(times) or part.stop > video.num_frames:
        raise VideoError(video.path, "index", f"{part.span}: it has {video.num_frames}{video.lost}")
    times = times - (times[0] if part.stop >= 0 else 0)
    return times, float(times[-1]) + 1 / video.fps


class Blocks:
    """Blocks of windows as a data set: an item is a list of the block's windows, `video` uint8 [T, 3, S, S].

    A worker keeps the video open that it read last: the next block of it goes on from there.
    """

    split, epoch = "test", 0

    def __init__(self, blocks: Sequence[Block], windows: Windows, max_pixels: int):
        self.blocks, self.windows, self.max_pixels = blocks, windows, max_pixels
        self._video: Video | None = None

    def __len__(self) -> int:
        return len(self.blocks)

    def path(self, i: int) -> str:
        return self.blocks[i].path

    def __getitem__(self, i: int) -> list[dict]:
        block, windows = self.blocks[i], self.windows
        video = self._opened(block.path)
        times, length = _timeline(video, block.part)
        numbers = np.stack([windows.shown(times, length, k) for k in range(block.first, block.stop)])  # [W, T]
        wanted = np.unique(numbers[numbers >= 0])
        pictures = video.frames(wanted + block.part.first)  # [N, S, S, 3]
        places = torch.from_numpy(np.searchsorted(wanted, numbers))
        clips = [pictures[row] for row in places]
        for clip, row in zip(clips, numbers):
            clip[torch.from_numpy(row < 0)] = 0
        return [{"video": clip.permute(0, 3, 1, 2), "index": torch.tensor(i)} for clip in clips]

    def _opened(self, path: str) -> Video:
        if self._video is None or self._video.path != path:
            if self._video is not None:
                self._video.close()
            self._video = None
            self._video = open_video(path, max_pixels=self.max_pixels, cut=self.windows.cut)
        return self._video


def blocks_of(part: Part, path: str, count: int, size: int) -> list[Block]:
    """All `count` windows of a video in blocks of at most `size`."""
    return [Block(part, path, k, min(k + size, count)) for k in range(0, count, size)]
