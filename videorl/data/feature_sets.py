"""What VideoCLIP and Norton are evaluated and fine-tuned on, from stored features, one a second.

YouCook2, MSR-VTT with its questions, COIN and HTM-Align, read as facebookresearch/fairseq (examples/MMPT) and
XLearning-SCU/2024-ICLR-Norton read them.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from videorl.data.features import Texts, padded_rows
from videorl.data.lists import read_list, text_of
from videorl.data.paired import numbered
from videorl.data.shards import Sharded, read_meta
from videorl.registry import DATASETS, Count, UserError
from videorl.spec import Spec
from videorl.video.errors import VideoError

NOTHING = -100  # label of seconds that a window is filled up with
ALIGNED, EVERY = 32, 8  # seconds of the windows of HTM-Align, and from one to the next; the last is half one or more
SUBSETS = {"train": "training", "val": "validation", "test": "testing"}


@dataclass(frozen=True)
class Windows:
    """A whole video: features [W, L, F] and mask [W, L] of windows that begin at `starts`, and what else is known."""

    features: torch.Tensor
    mask: torch.Tensor
    starts: Sequence[int]
    seconds: int
    notes: dict = field(default_factory=dict)


class VideoRows:
    """Features of videos by name: of the files `<name>.npy` of a folder, or of shards where there is a meta file."""

    def __init__(self, root: str, key: str):
        if not root or not os.path.isdir(root):
            raise UserError(
                f"{key} {root!r} is no folder; name that of the features, <video>.npy or what `videorl extract` writes"
            )
        self.root, self.places = root, {}
        for meta in sorted(Path(root).glob("*_meta.pkl")):
            split = meta.name.removesuffix("_meta.pkl")
            for shard, names in read_meta(meta).items():
                self.places |= {name: (f"{root}/{split}_{shard}", k) for k, name in enumerate(names)}
        self._open: dict[str, Sharded] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}

    def of(self, name: str) -> np.ndarray:
        """[seconds, F]. Raises `VideoError` where there are none."""
        if name in self.places:
            prefix, item = self.places[name]
            if prefix not in self._open:
                self._open[prefix] = Sharded(prefix)
            return self._open[prefix][item]
        try:
            rows = np.load(os.path.join(self.root, f"{name}.npy"), mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise VideoError(name, "open", f"no features: {error.strerror or 'no array'}") from None
        except (ValueError, EOFError) as error:
            raise VideoError(name, "open", f"damaged features: {str(error)[:80]}") from None
        if rows.ndim != 2 or rows.dtype.kind != "f":
            raise VideoError(name, "open", f"features {rows.dtype} {rows.shape}: expected floats [seconds, F]")
        return rows


class FeatureSet:
    """Samples whose videos are stored features; a subclass makes the items. Nothing is random.

    `videos`: of each sample the name of its video. `facts`: what the fingerprint is of.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, spec: Spec, split: str, rows: VideoRows, videos: Sequence[str], facts: object):
        if split not in SUBSETS:
            raise UserError(f"{type(self).__name__} has no split {split!r}: expected train, val or test")
        if not videos:
            raise UserError(f"{type(self).__name__}: the annotations have no samples of split {split}")
        if bad := [name for name in videos if os.path.basename(name) != name or name in ("", ".", "..")]:
            raise UserError(f"{type(self).__name__}: {bad[0]!r} is no name of a video")
        self.spec, self.split, self.epoch, self.rows, self.videos = spec, split, 0, rows, videos
        self.fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.videos)

    def path(self, i: int) -> str:
        return self.videos[i]

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        return {}

    def __getitem__(self, i: int) -> list[dict]:
        return [{**item, "index": torch.tensor(i), "view": torch.tensor(k)} for k, item in enumerate(self.items(i))]

    def items(self, i: int) -> list[dict]:
        """The items of sample i without their numbers."""
        raise NotImplementedError


def windows_of(rows: np.ndarray, size: int, starts: list[int], name: str) -> Windows:
    """Windows of `size` seconds of features [seconds, F]. Raises `VideoError` as `padded_rows` does."""
    parts = [padded_rows(rows[start : start + size], size, name) for start in starts]
    features, mask = (torch.stack([part[key] for part in parts]) for key in ("video_features", "video_mask"))
    return Windows(features, mask, starts, len(rows))


def window_starts(seconds: int, size: int, stride: int) -> list[int]:
    """Starts of windows every `stride` seconds, to the first that reaches the end of the video."""
    return list(range(0, max(seconds - size, 0) + stride, stride))


def read_annotations(file: str, key: str) -> dict:
    """The content of a json file that is an object. Raises `UserError`."""
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, IsADirectoryError) as error:
        raise UserError(
            f"{key} {file!r}: {error.strerror or 'no such file'}; name the json of the annotations"
        ) from None
    except ValueError as error:
        raise UserError(f"{key} {file}: not valid json ({str(error)[:80]})") from None
    found = found.get("database", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not found:
        raise UserError(f"{key} {file}: expected an object with an entry for each video")
    return found


def segments(file: str, key: str, split: str, text: str) -> list[tuple]:
    """(video, start, end, text, id) of the annotations of the videos of a split; all where none says its subset."""
    found = []
    for video, entry in read_annotations(file, key).items():
        try:
            if entry.get("subset", SUBSETS[split]) != SUBSETS[split]:
                continue
            for own in entry.get("annotation", entry.get("annotations")):
                start, end = map(float, own["segment"])
                if not 0 <= start <= end < math.inf:
                    raise ValueError(f"segment {own['segment']}")
                found.append((video, start, end, str(own[text]), own.get("id", 0)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{key} {file}: {video}: {type(error).__name__} {str(error)[:80]}; expected annotations with segment"
                f" (seconds) and {text}"
            ) from None
    return found


@DATASETS.register("youcook2_features", node="YOUCOOK2_FEATURES")
class YouCook2Features(FeatureSet):
    """Cooking steps with a sentence each: `video_features` [seconds, F], `video_mask`, `text` [TEXT.MAX_WORDS],
    `text_mask`, `group` (of the step) and `story` (of its video).

    Keys:
        root: folder of the features, <video>.npy or shards
        annotations: youcookii_annotations_trainval.json; splits val and test are both its validation videos
        seconds: features that a clip is filled up to, or cut to
    """

    def __init__(self, spec: Spec, split: str, *, root: str = "", annotations: str = "", seconds: Count = 32):
        self.texts, self.seconds = Texts(spec), seconds
        found = _recipes(annotations, "YOUCOOK2_FEATURES.ANNOTATIONS", split)
        self.steps = [(video, int(start), int(end), text) for video, start, end, text, _ in found]
        self.groups = numbered([step[:3] for step in self.steps])
        self.stories = numbered([step[0] for step in self.steps])
        rows = VideoRows(root, "YOUCOOK2_FEATURES.ROOT")
        super().__init__(spec, split, rows, [video for video, *_ in self.steps], found)

    def items(self, i: int) -> list[dict]:
        video, start, end, text = self.steps[i]
        item = padded_rows(self.rows.of(video)[start:end], self.seconds, video)
        item |= {name: values[0] for name, values in self.texts([text]).items()}
        return [item | {"story": torch.tensor(self.stories[i]), "group": torch.tensor(self.groups[i])}]


@DATASETS.register("youcook2_windows", node="YOUCOOK2_WINDOWS")
class YouCook2Windows(FeatureSet):
    """Windows over whole videos of YouCook2, one after the other: `video_features` [seconds, F], `video_mask`, `story`.

    The sentences of the videos are `captions`, pairs of story and text.

    Keys:
        root: folder of the features, <video>.npy or shards
        annotations: youcookii_annotations_trainval.json; splits val and test are both its validation videos
        seconds: features that a window is filled up to
        window: seconds of a window
    """

    def __init__(
        self,
        spec: Spec,
        split: str,
        *,
        root: str = "",
        annotations: str = "",
        seconds: Count = 32,
        window: Count = 16,
    ):
        self.texts, self.seconds, self.window = Texts(spec), seconds, window
        rows = VideoRows(root, "YOUCOOK2_WINDOWS.ROOT")
        found = _recipes(annotations, "YOUCOOK2_WINDOWS.ANNOTATIONS", split)
        numbers = {video: k for k, video in enumerate(dict.fromkeys(video for video, *_ in found))}
        self.captions = [(numbers[video], text) for video, _, _, text, _ in found]
        self.places = [(video, start) for video in numbers for start in self._starts(rows, video)]
        self.stories = numbers
        super().__init__(spec, split, rows, [video for video, _ in self.places], found)

    def _starts(self, rows: VideoRows, video: str) -> list[int]:
        """A video without features is one sample, which is then found bad."""
        try:
            return window_starts(len(rows.of(video)), self.window, self.window)
        except VideoError:
            return [0]

    def items(self, i: int) -> list[dict]:
        video, start = self.places[i]
        rows = self.rows.of(video)[start : start + self.window]
        return [padded_rows(rows, self.seconds, video) | {"story": torch.tensor(self.stories[video])}]


def _recipes(file: str, key: str, split: str) -> list[tuple]:
    return segments(file, key, "val" if split == "test" else split, "sentence")


@DATASETS.register("msrvtt_features", node="MSRVTT_FEATURES")
class MSRVTTFeatures(FeatureSet):
    """Short videos with a sentence each: `video_features` [seconds, F], `video_mask`, `text`, `text_mask`, `group`.

    Keys:
        root: folder of the features, <video>.npy or shards
        annotations: csv with the columns video_id and sentence, or where SENTENCES is given with video_id alone
        sentences: MSRVTT_data.json, of which all sentences of the videos of the list are samples; empty: none
        seconds: features that a video is filled up to, or cut to
    """

    def __init__(
        self,
        spec: Spec,
        split: str,
        *,
        root: str = "",
        annotations: str = "",
        sentences: str = "",
        seconds: Count = 32,
    ):
        self.tokens, self.seconds = Texts(spec), seconds
        rows = VideoRows(root, "MSRVTT_FEATURES.ROOT")
        columns = ["video_id"] if sentences else ["video_id", "sentence"]
        listed = read_list(annotations, columns, "MSRVTT_FEATURES.ANNOTATIONS")
        pairs = self._of_videos([video for (video,) in listed], sentences) if sentences else listed
        self.sentences = [text_of(text) for _, text in pairs]
        self.groups = numbered([video for video, _ in pairs])
        super().__init__(spec, split, rows, [video for video, _ in pairs], pairs)

    @staticmethod
    def _of_videos(videos: list[str], file: str) -> list[tuple[str, str]]:
        wanted = set(videos)
        found = read_annotations(file, "MSRVTT_FEATURES.SENTENCES").get("sentences")
        try:
            return [(own["video_id"], str(own["caption"])) for own in found if own["video_id"] in wanted]
        except (TypeError, KeyError):
            raise UserError(
                f"MSRVTT_FEATURES.SENTENCES {file}: expected `sentences`, a list of video_id and caption"
            ) from None

    def items(self, i: int) -> list[dict]:
        video = self.videos[i]
        texts = {name: values[0] for name, values in self.tokens([self.sentences[i]]).items()}
        return [padded_rows(self.rows.of(video), self.seconds, video) | texts | {"group": torch.tensor(self.groups[i])}]


@DATASETS.register("msrvtt_qa", node="MSRVTT_QA")
class MSRVTTQA(FeatureSet):
    """Which of five sentences fits a video? `text` and `text_mask` [5, TEXT.MAX_WORDS], `labels`, the right one's
    number.

    Keys:
        root: folder of the features, <video>.npy or shards
        annotations: tab-separated rows of vid_key, five sentences and the number of the right one; video 7 is msr7
        seconds: features that a video is filled up to, or cut to
    """

    def __init__(self, spec: Spec, split: str, *, root: str = "", annotations: str = "", seconds: Count = 16):
        self.texts, self.seconds = Texts(spec), seconds
        rows = VideoRows(root, "MSRVTT_QA.ROOT")
        self.questions = _questions(annotations)
        videos = [f"video{number}" for number, *_ in self.questions]
        super().__init__(spec, split, rows, videos, self.questions)

    def items(self, i: int) -> list[dict]:
        _, sentences, right = self.questions[i]
        texts = self.texts(list(sentences))
        clip = padded_rows(self.rows.of(self.videos[i]), self.seconds, self.videos[i])
        return [clip | texts | {"labels": torch.tensor(right)}]


def _questions(file: str) -> list[tuple[str, tuple[str, ...], int]]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"MSRVTT_QA.ANNOTATIONS {file!r}: {error.strerror}; name msrvtt_qa_test.tsv") from None
    found = []
    for number, line in enumerate(lines, 1):
        cells = line.rstrip("\n").split("\t")
        if number == 1 and cells[0] == "vid_key":
            continue
        digits = re.findall(r"\d+", cells[0])
        if len(cells) != 7 or not digits or cells[6].strip() not in tuple("01234"):
            raise UserError(
                f"MSRVTT_QA.ANNOTATIONS {file}: line {number}: expected vid_key, five sentences and 0 to 4, found"
                f" {len(cells)} cells"
            )
        found.append((digits[-1], tuple(cells[1:6]), int(cells[6])))
    return found


@DATASETS.register("coin", node="COIN")
class Coin(FeatureSet):
    """What is done in each second of a video: numbers of steps from 1 on, 0 where nothing is done.

    To train on, the items of a video are its windows: `video_features` [window, F], `video_mask` and `frame_labels`
    int64 [window], -100 where it is filled up. For evaluation it is one `windows`, with `labels` [seconds] in its
    notes. `label_texts`: number of a step to its text. A second belongs to the last step that has a part of it.

    Keys:
        root: folder of the features, <video>.npy or shards
        annotations: COIN.json
        window: seconds of a window
        stride: seconds from one to the next, published 16, to train 8
    """

    def __init__(
        self,
        spec: Spec,
        split: str,
        *,
        root: str = "",
        annotations: str = "",
        window: Count = 32,
        stride: Count = 16,
    ):
        self.texts, self.window, self.stride = Texts(spec), window, stride
        rows = VideoRows(root, "COIN.ROOT")
        subset = "train" if split == "train" else "test"
        found = segments(annotations, "COIN.ANNOTATIONS", subset, "label")
        self.label_texts = _texts_of_labels(annotations, found)
        self.steps: dict[str, list] = {}
        for video, start, end, _, number in found:
            self.steps.setdefault(video, []).append((start, end, int(number)))
        super().__init__(spec, split, rows, list(self.steps), found)

    def items(self, i: int) -> list[dict]:
        video = self.videos[i]
        rows = self.rows.of(video)
        whole = windows_of(rows, self.window, window_starts(len(rows), self.window, self.stride), video)
        labels = labels_of_seconds(self.steps[video], whole.seconds)
        if self.split != "train":
            whole.notes["labels"] = labels
            return [{"windows": whole}]
        padded = np.concatenate([labels, np.full(self.window, NOTHING)])
        return [
            {"video_features": features, "video_mask": mask, "frame_labels": torch.from_numpy(own).where(mask, NOTHING)}
            for features, mask, start in zip(whole.features, whole.mask, whole.starts)
            for own in [padded[start : start + self.window]]
        ]


def labels_of_seconds(steps: Sequence[tuple[float, float, int]], seconds: int) -> np.ndarray:
    """int64 [seconds] of steps (start, end, number)."""
    labels = np.zeros(seconds, np.int64)
    for start, end, number in steps:
        labels[math.floor(start) : math.ceil(end)] = number
    return labels


def _texts_of_labels(file: str, found: list[tuple]) -> dict[int, str]:
    """Of all videos, also of those of other splits."""
    texts = {}
    for entry in read_annotations(file, "COIN.ANNOTATIONS").values():
        for own in entry.get("annotation", []):
            texts.setdefault(own.get("id"), own.get("label"))
    try:
        texts = {int(number): str(text) for number, text in texts.items()}
    except (TypeError, ValueError):
        raise UserError(f"COIN.ANNOTATIONS {file}: the id of a step is no number") from None
    if texts and min(texts) < 1:
        raise UserError(f"COIN.ANNOTATIONS {file}: a step has the id {min(texts)}: expected 1 or more")
    return dict(sorted(texts.items()))


@DATASETS.register("htm_align", node="HTM_ALIGN")
class HTMAlign(FeatureSet):
    """Narrated videos, of whose sentences people said which can be seen, and when. For evaluation.

    A sample is a video: `windows` of 32 seconds every 8, with `text`, `text_mask` [N, TEXT.MAX_WORDS], `alignable` [N]
    bool, `starts` and `ends` [N] seconds in its notes. `most_texts`: sentences of the video that has most.

    Keys:
        root: folder of the features, <video>.npy or shards
        annotations: htm_align.json: video to rows of (1 or 0, start, end, sentence)
    """

    def __init__(self, spec: Spec, split: str, *, root: str = "", annotations: str = ""):
        self.texts = Texts(spec)
        self.sentences = read_annotations(annotations, "HTM_ALIGN.ANNOTATIONS")
        for video, found in self.sentences.items():
            if not isinstance(found, list) or not found or not all(_is_sentence(row) for row in found):
                raise UserError(
                    f"HTM_ALIGN.ANNOTATIONS {annotations}: {video}: expected rows of (1 or 0, start, end, sentence)"
                )
        self.most_texts = max(map(len, self.sentences.values()))
        rows = VideoRows(root, "HTM_ALIGN.ROOT")
        super().__init__(spec, split, rows, list(self.sentences), self.sentences)

    def items(self, i: int) -> list[dict]:
        video = self.videos[i]
        shown, starts, ends, texts = zip(*self.sentences[video])
        whole = aligned_windows(self.rows.of(video), video)
        whole.notes.update(self.texts(list(texts)))
        whole.notes.update(alignable=np.array(shown, bool), starts=np.array(starts, float), ends=np.array(ends, float))
        return [{"windows": whole}]


def aligned_windows(rows: np.ndarray, name: str) -> Windows:
    """The windows of HTM-Align over features [seconds, F]."""
    return windows_of(rows, ALIGNED, list(range(0, max(len(rows) - ALIGNED // 2, 1), EVERY)), name)


def _is_sentence(row) -> bool:
    if not isinstance(row, list) or len(row) != 4 or not isinstance(row[3], str):
        return False
    return row[0] in (0, 1) and all(isinstance(t, (int, float)) and math.isfinite(t) for t in row[1:3])
