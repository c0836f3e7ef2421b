"""Ego4D with its narrations: clips of long first-person videos, each with what was said to happen in it.

Grauman et al., Ego4D, CVPR 2022; Zhao et al., Learning Video Representations from Large Language Models (LaViLa), CVPR
2023. Reading rules of facebookresearch/LaViLa (lavila/data/datasets.py) and zhaoyue-zephyrus/AVION, but at the true
frame rate of the files, which LaViLa takes for 30.
"""

import os
from typing import Literal

import torch

from videorl.data import narrations
from videorl.data.lists import checked_root
from videorl.data.moments import Moments
from videorl.data.text import tokenizer
from videorl.registry import DATASETS, Count, UserError, Whole
from videorl.spec import Spec
from videorl.video.errors import VideoError


@DATASETS.register("ego4d", node="EGO4D")
class Ego4D(Moments):
    """Narrated moments of Ego4D: `ds[i]` is the clip of a row with `text` int64 [L] and `pseudo`.

    A row has one text or several, of which `narration_selection` makes one. Rows with the numbers of a narrator are
    `pseudo`. Frames are of the file's own rate. How clips are taken: see `Moments`.

    Raises `VideoError`, so that the loader puts the row into quarantine: no text, an end before its start, a chunk that
    is missing. A moment of no length, or shorter than NUM_FRAMES frames, is widened to that many; one that goes on
    after the end of the video is read as far as there is something, and of one that begins after it the last frame.
    Texts too long for TEXT.MAX_WORDS are cut.

    Keys:
        root: folder of <video>.mp4/<first second>.mp4, or with CHUNK_SECONDS 0 of <video>.mp4
        metadata: list of narrations to train on, e.g. ego4d_train.pkl (see videorl convert-metadata)
        metadata_val: that of split val; empty: METADATA with val for train
        val_every: split val is the first of every so many rows
        metadata_aux: more lists to train on, such as those of a narrator
        chunk_seconds: length of the chunks of a video; 300 in LaViLa, 15 in AVION; 0: videos in one file each
        narration_selection: random: one of the texts of a row | concat: all of them, joined by ". "
        frames: parts: of equal parts of the moment (LaViLa) | middles: around the middles of such parts (AVION)
    """

    def __init__(
        self,
        spec: Spec,
        split: str,
        *,
        root: str = "",
        metadata: str = "",
        metadata_val: str = "",
        val_every: Count = 1,
        metadata_aux: tuple[str, ...] = (),
        chunk_seconds: Whole = 300,
        narration_selection: Literal["random", "concat"] = "random",
        frames: Literal["parts", "middles"] = "parts",
    ):
        if split == "train":
            names = {"METADATA": metadata, **{f"METADATA_AUX[{k}]": name for k, name in enumerate(metadata_aux)}}
        else:
            names = {"METADATA_VAL": metadata_val or for_val(metadata)}
        lists = [narrations.read(name, f"EGO4D.{key}") for key, name in names.items()]
        rows = narrations.Together(lists, every=1 if split == "train" else val_every)
        self.root = checked_root(root, "EGO4D.ROOT")
        self.selection, self.tokenize = narration_selection, tokenizer(spec.text)
        super().__init__(spec, split, rows, seconds=chunk_seconds, rule=frames)

    def path(self, i: int) -> str:
        return os.path.join(self.root, f"{self.rows.name(i)}.mp4")

    def moment(self, i: int) -> tuple[float, float]:
        row = self.rows[i]
        if not row.texts:
            raise VideoError(self.path(i), "index", f"row {i} has no narration")
        return row.start, row.end

    def texts(self, i: int) -> tuple[str, ...]:
        """All that is said of a row."""
        return self.rows[i].texts

    def _notes(self, i: int, k: int) -> dict[str, torch.Tensor]:
        row = self.rows[i]
        return {"text": self.tokenize([self._text(row, i, k)])[0], "pseudo": torch.tensor(row.pseudo)}

    def _text(self, row: narrations.Narration, i: int, k: int) -> str:
        """The one text of copy or view k of a row."""
        if self.selection == "concat":
            return ". ".join(row.texts)
        if self.split != "train" or len(row.texts) == 1:
            return row.texts[0]
        return row.texts[int(self._random_text(i, k).integers(len(row.texts)))]


def for_val(name: str) -> str:
    """The list of the validation set beside that of the training set, by its published name."""
    folder, file = os.path.split(name)
    if "train" not in file:
        raise UserError(f"EGO4D.METADATA {name!r} has no train in its name to put val for; name EGO4D.METADATA_VAL")
    return os.path.join(folder, file.replace("train", "val"))
