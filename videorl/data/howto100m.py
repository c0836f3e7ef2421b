"""HowTo100M: clips of narrated videos, each with the captions spoken near it.

Miech et al., HowTo100M, ICCV 2019, and End-to-End Learning of Visual Representations from Uncurated Instructional
Videos, CVPR 2020. Sampling rules of antoine77340/MIL-NCE_HowTo100M (video_loader.py).
"""

import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from videorl.data.captions import CaptionFiles, CaptionIndex, name_of
from videorl.data.lists import check_paths, checked_root, read_list
from videorl.data.text import tokenizer
from videorl.registry import DATASETS, Count, NonNegative, UserError
from videorl.spec import Spec
from videorl.video.spans import Crop, Spans


@dataclass(frozen=True)
class Draw:
    """What is random about a clip: its caption, first second, the place of its crop (0..1), whether it is mirrored."""

    caption: int
    start: int
    across: float = 0.5
    down: float = 0.5
    flip: bool = False


def draw(
    rng, starts: Sequence[float], ends: Sequence[float], *, min_time: float, seconds: float, center: bool, flip: bool
):
    """The published draws, in their order.

    A caption, each with the same chance. Its span, if shorter than `min_time` seconds, is widened around its middle,
    not below 0, and both ends are cut to whole seconds. A start: a whole second from which a clip of `seconds` ends
    within the span, or the span's start. The crop's place, unless `center`. The mirror, if `flip`.
    `rng`: anything with `randint(a, b)`, both ends included, and `uniform(a, b)`, such as `random.Random`.
    """
    caption = rng.randint(0, len(starts) - 1)
    start, end = widened(float(starts[caption]), float(ends[caption]), min_time)
    second = rng.randint(int(start), int(max(int(start), int(end) - seconds)))
    across, down = (0.5, 0.5) if center else (rng.uniform(0, 1), rng.uniform(0, 1))
    return Draw(caption, second, across, down, flip and rng.uniform(0, 1) > 0.5)


def widened(start: float, end: float, min_time: float) -> tuple[float, float]:
    """The span, at least `min_time` long."""
    if end - start >= min_time:
        return start, end
    missing = min_time - end + start
    start = max(0, start - missing / 2)
    return start, start + min_time


def nearest_captions(starts: Sequence[float], ends: Sequence[float], caption: int, count: int) -> np.ndarray:
    """The numbers [count] of `count` captions in a row around one of them, so that they span little time.

    The run grows by one caption at a time, to the side where it becomes the shorter (to the right if both are equal),
    until it has `count` or meets an end of the video; from there it grows to the other side. A video of fewer captions
    repeats its first or last one.
    """
    first = last = caption
    while last - first + 1 < count and first > 0 and last < len(starts) - 1:
        if ends[last] - starts[first - 1] < ends[last + 1] - starts[first]:
            first -= 1
        else:
            last += 1
    if first > 0 and last == len(starts) - 1:
        first = last - count + 1
    return np.clip(np.arange(first, first + count), 0, len(starts) - 1)


@DATASETS.register("howto100m", node="HOWTO100M")
class HowTo100M:
    """A random clip of each video in an epoch, with the captions around one of its captions. For training only.

    A clip has DATA.NUM_FRAMES frames, DATA.TARGET_FPS / DATA.SAMPLING_RATE a second, and is DATA.TRAIN_CROP_SIZE pixels
    wide; DATA.RANDOM_FLIP mirrors half of them, node AUG but for NUM_SAMPLE (clips of a video) has no effect. What is
    short of frames ends black. `ds[i]` depends on (spec.seed, epoch, i) only: a list of dicts with `video` uint8
    [T, 3, S, S], `text` int64 [K, L], `index` and `view`.

    Raises `VideoError`, so that the loader puts the video into quarantine: no such video, no such caption file, no
    caption in it, a caption without a time, a caption that begins where the video has ended. A caption without text is
    the word "nan" as in the published code, one of unknown words only is all zeros: both are trained on.

    Keys:
        video_list: csv with the column video_path, as published
        video_root: folder that video_path starts from
        caption_root: folder of the caption files; that of a/b.mp4 is a/b.csv, the path up to its first dot
        caption_index: file of videorl index-captions that is read instead of the caption files; empty: read those
        num_candidates: captions of a clip, of which at least one should fit
        min_time: seconds that the span of a caption is widened to
        crop_only: cut the clip out of the frames without scaling them, for videos resized beforehand
        center_crop: cut it out of the centre, not at a random place
    """

    classes: tuple[str, ...] = ()

    def __init__(
        self,
        spec: Spec,
        split: str,
        *,
        video_list: str = "",
        video_root: str = "",
        caption_root: str = "",
        caption_index: str = "",
        num_candidates: Count = 4,
        min_time: NonNegative = 5.0,
        crop_only: bool = True,
        center_crop: bool = False,
    ):
        if split != "train":
            raise UserError(f"howto100m has no split {split!r}, only train; evaluate on youcook2, msrvtt or hmdb51")
        self.spec, self.split, self.epoch = spec, split, 0
        self.tokenize = tokenizer(spec.text)
        self.root = checked_root(video_root, "HOWTO100M.VIDEO_ROOT")
        self.paths = read_paths(video_list, "HOWTO100M.VIDEO_LIST", spec.reading.allow_outside_root)
        self.captions = CaptionIndex(caption_index) if caption_index else CaptionFiles(caption_root)
        self.num_candidates, self.min_time = num_candidates, min_time
        self.crop_only, self.center_crop = crop_only, center_crop

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, i: int) -> str:
        return os.path.join(self.root, self.paths[i].decode())

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        return {}

    @property
    def fingerprint(self) -> str:
        """Hash of the list, and of the caption index if there is one."""
        return hashlib.sha256(b"\n".join([*self.paths.tolist(), self.captions.fingerprint.encode()])).hexdigest()[:16]

    def __getitem__(self, i: int) -> list[dict]:
        captions = self.captions.of(name_of(self.paths[i].decode()))
        return [self._sample(i, copy, captions) for copy in range(self.spec.augment.copies)]

    def _sample(self, i: int, copy: int, captions) -> dict:
        clip = self.spec.clip
        fps = clip.fps / clip.rate
        drawn = draw(
            self._random(i, copy),
            captions.starts,
            captions.ends,
            min_time=self.min_time,
            seconds=clip.frames / fps,
            center=self.center_crop,
            flip=self.spec.augment.flip,
        )
        near = nearest_captions(captions.starts, captions.ends, drawn.caption, self.num_candidates)
        crop = Crop(clip.train_size, drawn.across, drawn.down, not self.crop_only, drawn.flip)
        with Spans(self.path(i), max_pixels=self.spec.reading.max_pixels) as video:
            frames = video.clip(drawn.start, frames=clip.frames, fps=fps, crop=crop)
        text = self.tokenize([captions.texts[k] for k in near])
        return {"video": frames, "text": text, "index": torch.tensor(i), "view": torch.tensor(copy)}

    def _random(self, i: int, copy: int) -> random.Random:
        # Python's generator has the calls of the published draws.
        return random.Random(int(np.random.default_rng([self.spec.seed, self.epoch, i, copy]).integers(2**63)))


def read_paths(file: str, key: str, allow_outside: bool) -> np.ndarray:
    """Column video_path of a list, as bytes: forked workers share an array, but copy a list of str."""
    paths = [path for (path,) in read_list(file, ["video_path"], key)]
    check_paths(paths, file, allow_outside)
    return np.array([path.encode() for path in paths])
