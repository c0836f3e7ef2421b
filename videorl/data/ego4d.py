"""Ego4D with its narrations: clips of long first-person videos, each with what was said to happen in it.

Grauman et al., Ego4D, CVPR 2022; Zhao et al., Learning Video Representations from Large Language Models (LaViLa), CVPR
2023. Reading rules of facebookresearch/LaViLa (lavila/data/datasets.py) and zhaoyue-zephyrus/AVION, but at the true
frame rate of the files, which LaViLa takes for 30.
"""

import os

import numpy as np
import torch

from videorl.clip import sampling
from videorl.data import narrations
from videorl.data.dataset import ClipDataset
from videorl.data.lists import checked_root
from videorl.data.text import tokenizer
from videorl.registry import DATASETS, UserError, did_you_mean
from videorl.spec import Reading, Spec
from videorl.video.chunked import ChunkedVideo
from videorl.video.errors import VideoError

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


@DATASETS.register("ego4d", node="EGO4D")
class Ego4D(ClipDataset):
    """Narrated moments of Ego4D: `ds[i]` is the clip of a row with `text` int64 [L] and `pseudo`.

    Training clips are of random frames of the moment, cropped as DATA and AUG say; split "val" takes the middle frames
    and the centre (views along time take turns: with V views V * NUM_FRAMES frames are taken, the first of them are
    the first view). A row has one text or several, of which `narration_selection` makes one. Rows with the numbers of
    a narrator are `pseudo`. Frames are of the file's own rate.

    Raises `VideoError`, so that the loader puts the row into quarantine: no text, an end before its start, a chunk that
    is missing. A moment of no length, or shorter than NUM_FRAMES frames, is widened to that many; one that goes on
    after the end of the video is read as far as there is something. Texts too long for TEXT.MAX_WORDS are cut.

    Keys:
        root: folder of <video>.mp4/<first second>.mp4, or with CHUNK_SECONDS 0 of <video>.mp4
        metadata: list of narrations to train on, e.g. ego4d_train.pkl (see tools/convert_metadata.py)
        metadata_val: that of split val; empty: METADATA with val for train
        metadata_aux: more lists to train on, such as those of a narrator
        chunk_seconds: length of the chunks of a video; 300 in LaViLa, 15 in AVION; 0: videos in one file each
        narration_selection: random: one of the texts of a row | concat: all of them, joined by ". "
        frames: parts: of equal parts of the moment (LaViLa) | middles: around the middles of such parts (AVION)
    """

    antialias = True

    def __init__(
        self,
        spec: Spec,
        split: str,
        *,
        root: str = "",
        metadata: str = "",
        metadata_val: str = "",
        metadata_aux: tuple[str, ...] = (),
        chunk_seconds: int = 300,
        narration_selection: str = "random",
        frames: str = "parts",
    ):
        _expect("FRAMES", frames, RULES)
        _expect("NARRATION_SELECTION", narration_selection, SELECTIONS)
        if chunk_seconds < 0:
            raise UserError(
                f"EGO4D.CHUNK_SECONDS {chunk_seconds}: expected the length of a chunk, or 0 for whole files"
            )
        if split == "train":
            names = {"METADATA": metadata, **{f"METADATA_AUX[{k}]": name for k, name in enumerate(metadata_aux)}}
        else:
            names = {"METADATA_VAL": metadata_val or name_for_val(metadata)}
        self.rows = narrations.Together([narrations.read(name, f"EGO4D.{key}") for key, name in names.items()])
        self.root, self.seconds, self.rule = checked_root(root, "EGO4D.ROOT"), chunk_seconds, frames
        self.selection, self.tokenize = narration_selection, tokenizer(spec.text)
        super().__init__(spec, split, self.rows)

    def path(self, i: int) -> str:
        return os.path.join(self.root, f"{self.rows.name(i)}.mp4")

    @property
    def classes(self) -> tuple[str, ...]:
        return ()

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        return {}

    def _open(self, i: int) -> Shot:
        row = self.rows[i]
        if not row.texts:
            raise VideoError(self.path(i), "index", f"row {i} has no narration")
        if row.end < row.start:
            raise VideoError(self.path(i), "index", f"row {i} ends at {row.end:g} s, before its start {row.start:g} s")
        return Shot(self.path(i), self.seconds, row.start, row.end, self.rule, self.spec.reading)

    def _train_indices(self, video: Shot, rng) -> np.ndarray:
        return video.numbers(self.spec.clip.frames, rng)

    def _test_indices(self, video: Shot, k: int) -> np.ndarray:
        frames = self.spec.clip.frames
        return video.numbers(frames * self.spec.views.clips)[k * frames : (k + 1) * frames]

    def _notes(self, i: int, k: int) -> dict[str, torch.Tensor]:
        row = self.rows[i]
        return {"text": self.tokenize([self._text(row, i, k)])[0], "pseudo": torch.tensor(row.pseudo)}

    def _text(self, row: narrations.Narration, i: int, k: int) -> str:
        """The one text of copy or view k of a row."""
        if self.selection == "concat":
            return ". ".join(row.texts)
        if self.split != "train" or len(row.texts) == 1:
            return row.texts[0]
        # One number more than `_random` has: the text tells nothing of the crop.
        rng = np.random.default_rng([self.spec.seed, self.epoch, i, k + 1, 2])
        return row.texts[int(rng.integers(len(row.texts)))]


def name_for_val(metadata: str) -> str:
    """The list of the validation set beside that of the training set, by its published name."""
    folder, name = os.path.split(metadata)
    return os.path.join(folder, name.replace("train", "val"))


def _expect(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"EGO4D.{key} {value!r}: expected {' or '.join(known)}{did_you_mean(value, known)}")
