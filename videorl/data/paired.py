"""What MIL-NCE models are evaluated on: YouCook2 and MSR-VTT, clips with a sentence each, and HMDB-51, labelled clips.

Lists, windows and reading of antoine77340/MIL-NCE_HowTo100M (youcook_loader.py, msrvtt_loader.py, hmdb_loader.py). Each
sample is seen through `spec.views.clips` windows along time, which are its views.
"""

import hashlib
import math
import os
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import torch

from videorl.data.lists import check_paths, checked_root, read_list, text_of
from videorl.data.text import tokenizer
from videorl.registry import DATASETS, Count, UserError
from videorl.spec import Spec
from videorl.video.reader import open_video
from videorl.video.spans import Crop, PastEnd, Spans, stacked

MARGIN = 0.4  # seconds that the last window keeps from the end of its span, as published
EXTENSIONS = (".mp4", ".mkv", ".webm")


def window_starts(start: float, end: float, seconds: float, windows: int) -> list[float]:
    """Seconds at which `windows` windows of a span begin, evenly spread; all at its start if it is shorter than one."""
    return np.linspace(start, max(start, end - seconds - MARGIN), windows).tolist()


def numbered(clips: Sequence[Hashable]) -> list[int]:
    """Of each clip of a list the number of its first place there: equal clips have the same."""
    first: dict[Hashable, int] = {}
    return [first.setdefault(clip, k) for k, clip in enumerate(clips)]


class Windows:
    """Samples of a list, in order. `ds[i]` is a list of dicts, one for each view; nothing is random.

    A subclass gives the views of a sample as clips, and what else stands in each of its items.
    """

    classes: tuple[str, ...] = ()
    most_crops = 1

    def __init__(self, spec: Spec, split: str, root: str, paths: Sequence[str], rows: Sequence[tuple]):
        name = type(self).__name__
        if split not in ("val", "test"):
            raise UserError(
                f"{name} has no split {split!r}: it is for evaluation, where SPLIT val and test both are the whole list"
            )
        if not 1 <= spec.views.crops <= self.most_crops:
            expected = "1" if self.most_crops == 1 else "1 or 2 (mirrored)"
            raise UserError(f"{name}: CROPS {spec.views.crops}: expected {expected}; set CROPS in the entry of EVALS")
        self.spec, self.split, self.epoch = spec, split, 0
        self.root, self.paths = root, paths
        self.fingerprint = hashlib.sha256("\n".join(map(str, rows)).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, i: int) -> str:
        return os.path.join(self.root, self.paths[i])

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """None: no head of a model has these classes."""
        return {}

    @property
    def fps(self) -> float:
        return self.spec.clip.fps / self.spec.clip.rate

    @property
    def crop(self) -> Crop:
        return Crop(self.spec.clip.test_size)

    def __getitem__(self, i: int) -> list[dict]:
        with Spans(self.path(i), max_pixels=self.spec.reading.max_pixels) as video:
            clips = self.clips(video, i)
        own = self.entries(i)
        return [
            {"video": clip, **own, "index": torch.tensor(i), "view": torch.tensor(k)} for k, clip in enumerate(clips)
        ]

    def clips(self, video: Spans, i: int) -> list[torch.Tensor]:
        """uint8 [T, 3, S, S] for each view; black, as published, past the end of the video.

        Raises `PastEnd` if all of them lie there.
        """
        frames, (start, end) = self.spec.clip.frames, self.span(video, i)
        found, past = [], []
        for second in window_starts(start, end, frames / self.fps, self.spec.views.clips):
            try:
                found.append(video.clip(second, frames=frames, fps=self.fps, crop=self.crop))
            except PastEnd as error:
                found.append(stacked([], frames, self.crop.size))
                past.append(error)
        if len(past) == len(found):
            raise past[0]
        return found

    def span(self, video: Spans, i: int) -> tuple[float, float]:
        """Seconds between which the windows of a sample lie."""
        raise NotImplementedError

    def entries(self, i: int) -> dict:
        """What the items of a sample hold beside the clip."""
        raise NotImplementedError


@DATASETS.register("youcook2", node="YOUCOOK2")
class YouCook2(Windows):
    """Cooking steps with a sentence each: `text` int64 [1, L]. The validation list of MIL-NCE has 3,350 of them.

    Rows of the same step of the same video share a `group`.

    Keys:
        annotations: csv with the columns end, start (seconds), task, text, video_id
        video_root: folder of validation/<task>/<video_id>.mp4, .mkv or .webm
        max_words: words of a sentence
    """

    def __init__(
        self,
        spec: Spec,
        split: str,
        *,
        annotations: str = "",
        video_root: str = "",
        max_words: Count = 30,
    ):
        self.tokenize = tokenizer(replace(spec.text, length=max_words))
        root = checked_root(video_root, "YOUCOOK2.VIDEO_ROOT")
        rows = read_list(annotations, ("start", "end", "task", "text", "video_id"), "YOUCOOK2.ANNOTATIONS")
        paths = [os.path.join("validation", task, video) for _, _, task, _, video in rows]
        check_paths(paths, annotations, spec.reading.allow_outside_root)
        self.spans = [_span(start, end, annotations, k) for k, (start, end, *_) in enumerate(rows, 1)]
        self.texts = [text_of(row[3]) for row in rows]
        self.groups = numbered(list(zip(paths, self.spans)))
        super().__init__(spec, split, root, paths, rows)

    def path(self, i: int) -> str:
        """The file with one of the extensions; the first of them where there is none."""
        files = [super(YouCook2, self).path(i) + extension for extension in EXTENSIONS]
        return next(filter(os.path.isfile, files), files[0])

    def span(self, video: Spans, i: int) -> tuple[float, float]:
        return self.spans[i]

    def entries(self, i: int) -> dict:
        return {"text": self.tokenize([self.texts[i]]), "group": torch.tensor(self.groups[i])}


def _span(start: str, end: str, file: str, row: int) -> tuple[float, float]:
    try:
        span = float(start), float(end)
    except ValueError:
        span = math.nan, math.nan
    if not -math.inf < span[0] <= span[1] < math.inf:
        raise UserError(
            f"{file}: row {row}: start {start[:20]!r}, end {end[:20]!r}: expected seconds, the end not before the start"
        )
    return span


@DATASETS.register("msrvtt", node="MSRVTT")
class MSRVTT(Windows):
    """Whole short videos with sentences: `text` int64 [1, L]. The 1k test list has 1,000 videos, each with one.

    A video that the list names several times is read for each of its sentences, which share a `group`.

    Keys:
        annotations: csv with the columns video_id, sentence
        video_root: folder of <video_id>.mp4
        max_words: words of a sentence
    """

    def __init__(
        self,
        spec: Spec,
        split: str,
        *,
        annotations: str = "",
        video_root: str = "",
        max_words: Count = 30,
    ):
        self.tokenize = tokenizer(replace(spec.text, length=max_words))
        root = checked_root(video_root, "MSRVTT.VIDEO_ROOT")
        rows = read_list(annotations, ("video_id", "sentence"), "MSRVTT.ANNOTATIONS")
        paths = [f"{video}.mp4" for video, _ in rows]
        check_paths(paths, annotations, spec.reading.allow_outside_root)
        self.texts = [text_of(text) for _, text in rows]
        self.groups = numbered(paths)
        super().__init__(spec, split, root, paths, rows)

    def span(self, video: Spans, i: int) -> tuple[float, float]:
        return 0.0, video.seconds

    def entries(self, i: int) -> dict:
        return {"text": self.tokenize([self.texts[i]]), "group": torch.tensor(self.groups[i])}


@DATASETS.register("hmdb51", node="HMDB51")
class HMDB51(Windows):
    """Labelled clips in three splits into training and test: `labels` class number, `splits` int64 [3].

    All clips of the list are samples; the evaluation takes from `splits` which train its classifier (1) and which test
    it (2); 0 is neither. Windows are DATA.NUM_FRAMES frames in a row at the video's own rate. With CROPS 2 each window
    is there twice, the second time mirrored.

    Keys:
        annotations: csv with the columns video_id (file name), label (<class>_test), split1, split2, split3
        video_root: folder of <class>/<video_id>
    """

    most_crops = 2

    def __init__(self, spec: Spec, split: str, *, annotations: str = "", video_root: str = ""):
        root = checked_root(video_root, "HMDB51.VIDEO_ROOT")
        rows = read_list(annotations, ("video_id", "label", "split1", "split2", "split3"), "HMDB51.ANNOTATIONS")
        names = [label.removesuffix("_test") for _, label, *_ in rows]
        paths = [os.path.join(name, row[0]) for name, row in zip(names, rows)]
        check_paths(paths, annotations, spec.reading.allow_outside_root)
        self.splits = np.array([_codes(row[2:], annotations, k) for k, row in enumerate(rows, 1)], np.int64)
        self.classes = tuple(sorted(set(names)))
        number = {name: k for k, name in enumerate(self.classes)}
        self.labels = np.array([number[name] for name in names], np.int64)
        super().__init__(spec, split, root, paths, rows)

    def clips(self, video: Spans, i: int) -> list[torch.Tensor]:
        frames, size = self.spec.clip.frames, self.spec.clip.test_size
        with open_video(video.path, "pyav", max_pixels=video.max_pixels) as whole:
            last = max(whole.num_frames - frames, 0)
        starts = np.linspace(0, last, self.spec.views.clips, dtype=int).tolist()
        found = video.pictures([k for start in starts for k in range(start, start + frames)], self.crop)
        windows = [stacked([found.get(start + k) for k in range(frames)], frames, size) for start in starts]
        mirrored = range(self.spec.views.crops)
        return [window.flip(3) if mirror else window for window in windows for mirror in mirrored]

    def entries(self, i: int) -> dict:
        return {"labels": torch.tensor(self.labels[i]), "splits": torch.from_numpy(self.splits[i])}


def _codes(cells: Sequence[str], file: str, row: int) -> list[int]:
    if any(cell.strip() not in ("0", "1", "2") for cell in cells):
        raise UserError(
            f"{file}: row {row}: splits {', '.join(cells)[:40]}: expected 0 (unused), 1 (train) or 2 (test)"
        )
    return [int(cell) for cell in cells]
