"""Ego4D with its narrations: clips of long first-person videos, each with what was said to happen in it.

Grauman et al., Ego4D, CVPR 2022; Zhao et al., Learning Video Representations from Large Language Models (LaViLa), CVPR
2023. Reading rules of facebookresearch/LaViLa (lavila/data/datasets.py) and zhaoyue-zephyrus/AVION, but at the true
frame rate of the files, which LaViLa takes for 30.
"""

import numpy as np

from videorl.clip import sampling
from videorl.spec import Reading
from videorl.video.chunked import ChunkedVideo

RULES = ("parts", "middles")
SELECTIONS = ("random", "concat")


class Shot(ChunkedVideo):
    """The part of a video between two seconds; an `end` of infinity is that of a video in one file.

    `rule`: "parts", as LaViLa takes frames: of equal parts of the span (see `sampling.span_parts`), at least one frame
    for each that is asked for; where the video ends before, of what is left. "middles", as AVION does: the middles of
    equal parts of the span, which ends with the video (see `sampling.span_middles`).
    """

    def __init__(self, path: str, seconds: int, start: float, end: float, rule: str, reading: Reading):
        super().__init__(path, seconds, start, reading)
        self.span, self.rule = (start, end), rule

    def numbers(self, frames: int, rng=None) -> np.ndarray:
        """Which `frames` frames show it, never falling; with `rng` random ones."""
        return (self._middles if self.rule == "middles" else self._parts)(frames, rng)

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

    def _middles(self, frames: int, rng) -> np.ndarray:
        start, end = (round((second - self.start) * self.fps) for second in (self.span[0], min(self.span[1], 1e9)))
        if not self.reaches(end):
            end = self.num_frames - 1
        return sampling.span_middles(min(start, end), end, frames=frames, rng=rng).clip(0, self.num_frames - 1)
