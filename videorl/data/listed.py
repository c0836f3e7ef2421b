"""Videos as the lists of VideoMAE V1, VideoMAE V2 and V-SWIFT name them, to pre-train, fine-tune and test.

Formats: https://github.com/MCG-NJU/VideoMAE/blob/main/DATASET.md, https://github.com/OpenGVLab/VideoMAEv2 (docs and
dataset/), https://github.com/deepglint/V-SWIFT (README.md and its loaders).
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image

from videorl.clip import sampling
from videorl.data.dataset import ClipDataset, Records, check_views
from videorl.data.labelled import BOUND, read_classes
from videorl.data.lines import read_lines, unquoted
from videorl.data.listing import read
from videorl.data.paths import Paths, check_root, has_ending, shortened
from videorl.data.plain import Form
from videorl.registry import DATASETS, UserError, did_you_mean
from videorl.spec import Spec
from videorl.video.errors import VideoError, another_size, at_stage
from videorl.video.reader import Frames, Video, runs

SHARED = ("annotations", "root", "class_names", "val_skip", "num_classes")
SAMPLINGS = ("dense", "sparse")
FORMATS = ("JPEG", "PNG", "WEBP")  # of pictures: no others of PIL's decoders are reached

log = logging.getLogger("videorl")


# ------------------------------------------------------------------------------------------------------ lines of a list


@dataclass(frozen=True)
class Part:
    """Frames `first` … `stop` - 1 of a video file (`stop` -1: to its end), or a folder's pictures of these numbers."""

    path: str
    first: int = 0
    stop: int = -1
    folder: bool = False

    def __str__(self) -> str:
        return self.path

    @property
    def span(self) -> str:
        """What part of its file it is, in words, or nothing."""
        return f"frames {self.first} to {self.stop - 1}" if self.stop >= 0 else ""


# What a part has beside its path.
PART = MappingProxyType({"first": np.int32, "stop": np.int32, "folder": np.bool_})

# The columns of a line, by how many numbers end it. Those between `path` and the end of the line are these numbers.
LABELLED = {
    1: ("path", "label"),
    2: ("path", "total", "label"),
    3: ("path", "label", "sframe", "eframe"),
    4: ("source", "path", "label", "sframe", "eframe", "nframes"),
}
# To pre-train, V2 names a folder's first frame and has no label; `path 0 -1` is a video file.
UNLABELLED = {**LABELLED, 2: ("path", "start", "total")}


@dataclass(frozen=True)
class Layout:
    """How the lines of a list are made. `num_classes` None: to pre-train, labels are not looked at."""

    columns: tuple[str, ...]
    comma: bool
    num_classes: int | None
    paths: Paths
    numbered: bool = True  # paths may end in a number of their own: `my clip 3`

    def __str__(self) -> str:
        return ("," if self.comma else " ").join(self.columns)

    def parse(self, line: str) -> tuple[Part, list[int]]:
        """The part of a video that a line names, and its label. Raises `ValueError` that says what is wrong."""
        texts = self._split(line)
        numbers = {name: int(text) for name, text in texts.items() if name not in ("source", "path")}
        path = texts["path"]
        if not self.numbered and self.ends_in_number(path):
            more = f"{len(numbers) + 1} numbers or more end it, and no file has the name {shortened(path)}"
            raise ValueError(f"expected `{self}` as on the first line, found {shortened(line.strip(), 120)}: {more}")
        path = self.paths(path)
        part = _part(path, numbers)
        if part.folder and "label" in numbers and has_ending(path) and not self.paths.is_folder(path):
            part = Part(path)  # of `path total label`, which other toolkits write for videos, too
        label = numbers.get("label", 0) if self.num_classes is not None else 0
        if self.num_classes is not None and not 0 <= label < self.num_classes:
            raise ValueError(f"label {label} is not in 0 … {self.num_classes - 1}; check MODEL.NUM_CLASSES")
        return part, [label]

    def _split(self, line: str) -> dict[str, str]:
        """The text of each column."""
        texts = dict(zip(self.columns, self._texts(line)))
        wrong = f"expected `{self}` as on the first line, found {shortened(line.strip(), 120)}"
        if len(texts) != len(self.columns) or not all(texts.values()):
            raise ValueError(wrong)
        for name, text in texts.items():
            if name not in ("source", "path") and not _is_number(text):
                raise ValueError(f"{wrong}: {name} {shortened(text)} is no number")
        return texts

    def _texts(self, line: str) -> list[str]:
        """Only the path may hold separators, so the line is split from both ends."""
        separator = "," if self.comma else None
        at = self.columns.index("path")
        start, *numbers = line.strip().rsplit(separator, len(self.columns) - 1 - at)
        quoted = re.fullmatch(r'("(?:[^"]|"")*")[\s,]+(.+)', start) if at else None
        return [unquoted(text) for text in (*(quoted.groups() if quoted else start.split(separator, at)), *numbers)]

    def ends_in_number(self, path: str) -> bool:
        """Whether a path may as well be a shorter one and a column more."""
        return _is_number(re.split(r"," if self.comma else r"\s", path)[-1]) and not _is_number(path)

    def is_numbered(self, line: str) -> bool:
        """Whether the path on a line ends in a number, and there is a file of that name."""
        path = self.path(line)
        return self.ends_in_number(path) and os.path.lexists(os.path.join(self.paths.root, path))

    def path(self, line: str) -> str:
        """The path on a line, or nothing where the line has too few columns."""
        return dict(zip(self.columns, self._texts(line))).get("path", "")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,9}", text.strip()) is not None


def _part(path: str, numbers: dict[str, int]) -> Part:
    if "total" in numbers:
        return _folder(path, **numbers)
    if "sframe" not in numbers:
        return Part(path)
    first, stop = numbers["sframe"], numbers["eframe"]
    if not 0 <= first < stop <= numbers.get("nframes", stop):
        of = f" of {numbers['nframes']}" if "nframes" in numbers else ""
        raise ValueError(f"frames {first} to {stop}{of}: expected 0 <= sframe < eframe <= nframes, eframe not included")
    return Part(path, first, stop)


def _folder(path: str, total: int, start: int = 1, label: int | None = None) -> Part:
    """A folder of `total` frames, or, in a list to pre-train, a video file whose total is negative."""
    if label is None and total < 0:
        return Part(path)
    if total < 1 or start < 0:
        other = "; `path 0 -1` lists have no labels, they are to pre-train (MASK.RATIO above 0)" if total == 0 else ""
        raise ValueError(f"expected a folder of at least one frame, found start {start}, total {total}{other}")
    return Part(path, start, start + total, folder=True)


def detect(line: str, num_classes: int | None, paths: Paths) -> Layout:
    """The layout of a list by its first line. Raises `ValueError` that says what is wrong with it."""
    known = LABELLED if num_classes is not None else UNLABELLED
    comma = re.search(r',\s*"?-?[0-9]+"?\s*$', line) is not None
    texts = line.strip().split("," if comma else None)
    count = next((k for k, text in enumerate(texts[:0:-1]) if not _is_number(unquoted(text))), len(texts) - 1)
    if not count:
        expected = " or ".join(f"`{' '.join(columns)}`" for columns in known.values())
        raise ValueError(f"expected {expected}, found {shortened(line.strip(), 120)}")
    return Layout(known[min(count, max(known))], comma, num_classes, paths)


def layout_of(file: Path, number: int, line: str, num_classes: int | None, paths: Paths) -> Layout:
    """The layout of a list by its first line. Raises `UserError`."""
    try:
        return detect(line, num_classes, paths)
    except ValueError as error:
        raise UserError(f"{file}:{number}: {error}") from None


def read_list(
    file: Path, root: str, num_classes: int | None, allow_outside: bool
) -> tuple[Layout, list[tuple[int, str]]]:
    """The layout of a list, and its lines with their numbers. Raises `UserError`: no such list, or an empty one.

    Lines with more numbers at their end than the first are of another layout, unless a file below `root` is called so.
    """
    lines = read_lines(file)
    check_root(root, file)
    if not lines:
        raise UserError(f"{file} holds no samples; expected lines such as `path label`")
    layout = layout_of(file, *lines[0], num_classes, Paths(root, allow_outside))
    return replace(layout, numbered=any(layout.is_numbered(line) for _, line in lines)), lines


class Lists:
    """Reads the lines of a list whose first tells their layout (see `listing.Reader`)."""

    extra, several, example = PART, False, "such as `path label`"

    def __init__(self, paths: Paths, num_classes: int | None):
        self.paths, self.num_classes = paths, num_classes
        self.layout: Layout | None = None
        self.doubtful = self.numbered = False

    @property
    def settings(self) -> dict[str, object]:
        return {"kind": "video_list", "classes": self.num_classes, **self.paths.settings}

    @property
    def facts(self) -> dict[str, object]:
        return {"layout": str(self.layout)}

    @property
    def form(self) -> Form:
        at = self.layout.columns.index("path")
        return Form(
            b"," if self.layout.comma else b" \t",
            len(self.layout.columns) - 1 - at,
            signed=True,
            source=at > 0,
            outside=self.paths.allow_outside,
        )

    def begin(self, file: Path, number: int, line: str) -> None:
        self.layout = layout_of(file, number, line, self.num_classes, self.paths)

    def judged(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        count, none = numbers.shape[1], {"first": 0, "stop": -1, "folder": False}
        named = dict(zip(self.layout.columns[-len(numbers) :], numbers, strict=True))
        labels = named.get("label", np.zeros(count, np.int64))
        if self.num_classes is None:
            right, labels = np.ones(count, bool), np.zeros(count, np.int64)
        else:
            right = (labels >= 0) & (labels < self.num_classes)
        if "total" in named:  # a folder, which is looked at one at a time, or a video
            right &= (named["total"] < 0) & ("label" not in named)
        part = {name: np.full(count, value) for name, value in none.items()}
        if "sframe" in named:
            part |= {"first": named["sframe"], "stop": named["eframe"]}
            right &= (part["first"] >= 0) & (part["first"] < part["stop"])
            right &= part["stop"] <= named.get("nframes", part["stop"])
        return right, labels, part

    def parse(self, line: str) -> tuple[Part, list[int]]:
        if self.layout.ends_in_number(self.layout.path(line)):
            self.doubtful = True
            self.numbered = self.numbered or self.layout.is_numbered(line)
        return self.layout.parse(line)

    def exact(self) -> "Lists | Layout":
        return replace(self.layout, numbered=False) if self.doubtful and not self.numbered else self


# ------------------------------------------------------------------------------------------------------ what is decoded


class Excerpt(Frames):
    """Frames `first` … `stop` - 1 of an open video, as a video of its own. A file that ends before `stop` ends it."""

    def __init__(self, video: Video, first: int, stop: int):
        self.path, self._video, self._first = video.path, video, first
        stop = video.num_frames if stop < 0 else min(stop, video.num_frames)
        self.num_frames = stop - first
        if self.num_frames < 1:
            raise VideoError(video.path, "index", f"the list names frame {first} of {video.num_frames}{video.lost}")

    def _read_parts(self, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for numbers, frames in self._video.parts(wanted + self._first):
            yield numbers - self._first, frames


class FrameFolder(Frames):
    """A folder with a picture for each frame, read like a video.

    `name` makes the name of a file from the number of a frame; the first is `first`. All pictures have one size.
    """

    def __init__(self, path: str, name: str, first: int, num_frames: int, max_pixels: int):
        self.path, self.num_frames = path, num_frames
        self._name, self._first, self._max_pixels = name, first, max_pixels

    def _read_parts(self, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        first = self._read(wanted[0])
        for run in runs(wanted, first.shape[0] * first.shape[1], self._max_pixels):
            pictures = [first if n == wanted[0] else self._read(n) for n in run]
            for n, picture in zip(run, pictures):
                if picture.shape != first.shape:
                    raise another_size(self.path, n, wanted[0])
            yield run, torch.from_numpy(np.stack(pictures))

    def _read(self, number: int) -> np.ndarray:
        file = os.path.join(self.path, self._name % (self._first + number))
        if not os.path.isfile(file):  # reading a pipe may never end
            missing = f"no picture {file}; see VIDEO_LIST.FRAME_NAME"
            raise VideoError(self.path, "open", missing if os.path.isdir(self.path) else "folder does not exist")
        with at_stage(file, "decode"), Image.open(file, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > self._max_pixels:
                size = f"{width}x{height}"
                raise VideoError(file, "open", f"{size} pixels per frame, more than the limit of {self._max_pixels}")
            return np.asarray(picture.convert("RGB"))


# --------------------------------------------------------------------------------------------------------- the data set


class Parts(Records):
    """Records of parts of files: `first` and `stop` [N] int32 and `folder` [N] bool as in `Part`."""

    more = PART


@DATASETS.register("video_list", node="VIDEO_LIST", **{name: BOUND[name] for name in SHARED})
class VideoList(ClipDataset):
    """Videos, parts of videos, or folders of frames, from `<annotations>/<split>.csv` in a layout of VideoMAE.

    The first line tells the layout, by the numbers that end it, and whether a comma or white space stands between its
    columns; the log states it. `path label` (V1, V2, V-SWIFT); `path label sframe eframe` and `source path label sframe
    eframe nframes` (V-SWIFT); `path total label` for a folder of frames with numbers from 1 (V2, to fine-tune), or for
    a video file, all of it; `path start total` for a folder of which `start` is the first, or `path 0 -1` for a video
    file (V2, to pre-train: where MASK.RATIO is above 0). To pre-train, labels are not looked at and all `labels` are 0.

    A clip holds frames sframe … eframe - 1 only; V-SWIFT reads these columns and takes the whole video. Whether it
    would include eframe it does not say: without it, a clip stays in the part either way.

    Dense clips have DATA.NUM_FRAMES frames of the video, DATA.SAMPLING_RATE apart whatever its frame rate: VideoMAE
    knows no DATA.TARGET_FPS. V-SWIFT takes dense clips of videos shorter than NUM_FRAMES x SAMPLING_RATE from random
    frames; here VideoMAE's rule holds for them too.

    Raises `UserError` with file and line, as the other labelled data sets do.

    Keys:
        sampling: dense: frames SAMPLING_RATE apart | sparse: one from each of NUM_FRAMES parts of the video (SSv2)
        frame_name: names of the pictures in a folder of frames, by the number of the frame
    """

    def __init__(
        self,
        spec: Spec,
        split: str,
        *,
        num_classes: int,
        annotations: str,
        root: str,
        class_names: str,
        val_skip: int,
        sampling: str = "dense",
        frame_name: str = "img_%05d.jpg",
    ):
        check_views(spec.views.crops)
        _check_keys(sampling, frame_name)
        if spec.space in spec.several:
            raise UserError("video_list reads one label a line, found DATA.MULTI_LABEL True; turn it off")
        self.sampling, self.frame_name = sampling, frame_name
        pretraining = bool(spec.masking.ratio)
        root = os.path.abspath(root or annotations)
        file = Path(annotations) / f"{split}.csv"
        reader = Lists(Paths(root, spec.reading.allow_outside_root), None if pretraining else num_classes)
        listing = read(file, reader)
        layout = listing.facts["layout"]
        log.info("%s: %d lines `%s`%s", file, len(listing), layout, ", to pre-train" if pretraining else "")
        if pretraining:
            _warn_of_labels(file, layout, listing.arrays, spec.clip.frames)
        classes = () if pretraining else read_classes(class_names, file.with_name("classes.json"), num_classes)
        super().__init__(spec, split, Parts.of(listing, root, classes, val_skip if split == "val" else 1))

    @contextmanager
    def _open(self, i: int) -> Iterator[Excerpt | FrameFolder]:
        records = self.records
        first, stop = int(records.first[i]), int(records.stop[i])
        if records.folder[i]:
            yield FrameFolder(self.path(i), self.frame_name, first, stop - first, self.spec.reading.max_pixels)
        else:
            with super()._open(i) as video:
                yield Excerpt(video, first, stop)

    def _train_indices(self, video: Excerpt | FrameFolder, rng) -> np.ndarray:
        clip = self.spec.clip
        if self.sampling == "sparse":
            return sampling.sparse_train(video.num_frames, frames=clip.frames, rng=rng)
        return sampling.strided_train(video.num_frames, frames=clip.frames, rate=clip.rate, rng=rng)

    def _test_indices(self, video: Excerpt | FrameFolder, k: int) -> np.ndarray:
        clip, views = self.spec.clip, self.spec.views.clips
        if self.sampling == "sparse":
            return sampling.sparse_view(video.num_frames, frames=clip.frames, view=k, views=views)
        return sampling.strided_view(video.num_frames, frames=clip.frames, rate=clip.rate, view=k, views=views)


def _check_keys(sampling: str, frame_name: str) -> None:
    if sampling not in SAMPLINGS:
        hint = did_you_mean(sampling, SAMPLINGS)
        raise UserError(f"VIDEO_LIST.SAMPLING {sampling!r}: expected {' or '.join(SAMPLINGS)}{hint}")
    if not re.fullmatch(r"[^%]*%(0[0-9]+)?d[^%]*", frame_name):
        raise UserError(f"VIDEO_LIST.FRAME_NAME {frame_name!r}: expected a name with one number, such as img_%05d.jpg")


def _warn_of_labels(file: Path, layout: str, arrays: Mapping[str, np.ndarray], frames: int) -> None:
    """Says so where most folders look like lines `path total label`, which end in as many numbers."""
    folders = np.flatnonzero(arrays["folder"])
    first, stop = arrays["first"][folders], arrays["stop"][folders]
    odd = np.count_nonzero((first > 1) | (stop - first < frames))
    if odd > len(folders) / 2:
        log.warning(
            "%s: read as `%s`, but %d of %d folders start after frame 1 or have less than %d frames;"
            " if its lines are `path total label`, write `path 1 total` to pre-train",
            *(file, layout, odd, len(folders), frames),
        )
