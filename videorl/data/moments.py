"""Moments of videos: the frames between two seconds, of whole files or of chunks, by the rules of LaViLa and AVION."""

import math

import numpy as np

from videorl.clip import sampling
from videorl.data.dataset import ClipDataset
from videorl.spec import Reading, Spec
from videorl.video.chunked import ChunkedVideo
from videorl.video.errors import VideoError


class Shot(ChunkedVideo):
    """The part of a video between two seconds; an `end` of infinity is that of a video in one file.

    `rule`: "parts", as LaViLa takes frames: of equal parts of the span (see `sampling.span_parts`), at least one frame
    for each that is asked for; where the video ends before, of what is left. "frames", as it does for EPIC-Kitchens:
    the span is of whole frames that hold both ends. "middles", as AVION does: the middles of equal parts of the span,
    which ends with the video (see `sampling.span_middles`). As published, a span that begins after the end shows the
    last frame.
    """

    def __init__(self, path: str, seconds: int, start: float, end: float, rule: str, reading: Reading):
        super().__init__(path, seconds, start, reading)
        self.span, self.rule = (start, end), rule

    def numbers(self, frames: int, rng=None) -> np.ndarray:
        """Which `frames` frames show it, never falling; with `rng` random ones."""
        rules = {"parts": self._parts, "middles": self._middles, "frames": self._frames}
        return rules[self.rule](frames, rng)

    def _parts(self, frames: int, rng) -> np.ndarray:
        start, end = self.span
        end = end if self.seconds else min(end, self.num_frames / self.fps)
        first = round((start - self.start) * self.fps)
        last = first + max(int((end - start) * self.fps), frames)
        if self.seconds:
            numbers = sampling.span_parts(first, last, frames=frames, rng=rng)
            if self.reaches(int(numbers.max())):
                return numbers
        first, last = min(first, self.num_frames - 1), min(last, self.num_frames)
        return sampling.span_parts(first, last, frames=frames, rng=rng)

    def _frames(self, frames: int, rng) -> np.ndarray:
        first = round(self.span[0] * self.fps)
        last = self.num_frames if math.isinf(self.span[1]) else math.ceil(self.span[1] * self.fps)
        return sampling.span_parts(first, last, frames=frames, rng=rng).clip(0, self.num_frames - 1)

    def _middles(self, frames: int, rng) -> np.ndarray:
        start, end = (round((second - self.start) * self.fps) for second in (self.span[0], min(self.span[1], 1e9)))
        if not self.reaches(end):
            end = self.num_frames - 1
        return sampling.span_middles(min(start, end), end, frames=frames, rng=rng).clip(0, self.num_frames - 1)


class Moments(ClipDataset):
    """Clips of moments. A subclass says where they are (`moment`) and what is known of them (`_notes`).

    `rows` has a length and a `fingerprint`; `seconds` is the length of the chunks of a video, or 0 for whole files.
    Training clips are of random frames of the moment, cropped as DATA and AUG say; other splits take the middle frames,
    resized as Pillow does. Views along time take turns: with V views V * NUM_FRAMES frames are taken, the first of
    them are the first view.

    Raises `VideoError`, so that the loader puts the row into quarantine, where a moment ends before it starts.
    """

    antialias = True

    def __init__(self, spec: Spec, split: str, rows, *, seconds: int, rule: str):
        self.rows, self.seconds, self.rule = rows, seconds, rule
        super().__init__(spec, split, rows)

    def moment(self, i: int) -> tuple[float, float]:
        """Seconds of start and end of row i; an end of infinity is that of the file."""
        raise NotImplementedError

    @property
    def classes(self) -> tuple[str, ...]:
        return ()

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        return {}

    def _open(self, i: int) -> Shot:
        start, end = self.moment(i)
        if end < start:
            raise VideoError(self.path(i), "index", f"row {i} ends at {end:g} s, before its start {start:g} s")
        return Shot(self.path(i), self.seconds, start, end, self.rule, self.spec.reading)

    def _random_text(self, i: int, k: int) -> np.random.Generator:
        """For the text of copy or view k of row i; one number more than `_random` has: it tells nothing of the crop."""
        return np.random.default_rng([self.spec.seed, self.epoch, i, k + 1, 2])

    def _train_indices(self, video: Shot, rng) -> np.ndarray:
        return video.numbers(self.spec.clip.frames, rng)

    def _test_indices(self, video: Shot, k: int) -> np.ndarray:
        frames = self.spec.clip.frames
        return video.numbers(frames * self.spec.views.clips)[k * frames : (k + 1) * frames]
