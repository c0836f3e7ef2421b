"""Charades-Ego: first-person videos of actions (Sigurdsson et al., Actor and Observer, CVPR 2018).

Lists of the published data set; what LaViLa reads of them: facebookresearch/LaViLa (lavila/data/datasets.py).
"""

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from videorl.data import narrations
from videorl.data.lists import check_paths, checked_root, read_list
from videorl.data.moments import Moments
from videorl.data.text import tokenizer
from videorl.registry import DATASETS, UserError
from videorl.spec import Spec
from videorl.video.errors import VideoError

CLASSES = 157


class Labelled(list):
    """The rows (id, class numbers) of a csv with the columns id and actions ("c092 11.90 21.20;c147 0 12.60")."""

    def __init__(self, file: str, allow_outside: bool):
        rows = read_list(file, ("id", "actions"), "CHARADES_EGO.METADATA_VAL")
        super().__init__((name, _numbers(actions, file, k)) for k, (name, actions) in enumerate(rows, 1))
        check_paths([name for name, _ in self], file, allow_outside)
        self.fingerprint = hashlib.sha256("\n".join(map(str, rows)).encode()).hexdigest()[:16]


def _numbers(actions: str, file: str, row: int) -> set[int]:
    found = set()
    for action in filter(None, actions.split(";")):
        code = action.split()[0]
        if not (code.startswith("c") and code[1:].isdecimal() and int(code[1:]) < CLASSES):
            raise UserError(f"{file}: row {row}: expected actions such as 'c092 11.90 21.20', found {action[:30]!r}")
        found.add(int(code[1:]))
    return found


@DATASETS.register("charades_ego", node="CHARADES_EGO")
class CharadesEgo(Moments):
    """To train: moments with a `text` each; to evaluate: whole videos with several labels, `labels` [157] of zeros and
    ones, and texts of the classes. Frames and errors: see `Moments`.

    Keys:
        root: folder of <video>.mp4
        metadata: list of (video, start, end, text) to train on, metadata_filtered_train.pkl
        metadata_val: CharadesEgo_v1_test_only1st.csv
        class_names: Charades_v1_classes.txt, lines such as "c000 Holding some clothes"
    """

    def __init__(
        self,
        spec: Spec,
        split: str,
        *,
        root: str = "",
        metadata: str = "",
        metadata_val: str = "",
        class_names: str = "",
    ):
        self.root, self.tokenize = checked_root(root, "CHARADES_EGO.ROOT"), tokenizer(spec.text)
        self.class_texts: list[list[str]] = []
        if split == "train":
            rows = narrations.read(metadata, "CHARADES_EGO.METADATA")
        else:
            rows = Labelled(metadata_val, spec.reading.allow_outside_root)
            self.class_texts = [[text] for text in read_class_names(class_names)]
        super().__init__(spec, split, rows, seconds=0, rule="parts")

    def path(self, i: int) -> str:
        return os.path.join(self.root, f"{self.rows.name(i) if self.split == 'train' else self.rows[i][0]}.mp4")

    def moment(self, i: int) -> tuple[float, float]:
        if self.split != "train":
            return 0.0, math.inf
        row = self.rows[i]
        if not row.texts:
            raise VideoError(self.path(i), "index", f"row {i} has no text")
        return row.start, row.end

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(text for (text,) in self.class_texts)

    def _notes(self, i: int, k: int) -> dict[str, torch.Tensor]:
        if self.split == "train":
            return {"text": self.tokenize(self.rows[i].texts[:1])[0]}
        labels = np.zeros(CLASSES, np.float32)
        labels[sorted(self.rows[i][1])] = 1.0
        return {"labels": torch.from_numpy(labels)}


def read_class_names(file: str) -> Sequence[str]:
    """The texts of the classes, by number. Raises `UserError` unless the lines number all of them from c000 on."""
    if not os.path.isfile(file):
        raise UserError(f"CHARADES_EGO.CLASS_NAMES {file!r}: no such file; name Charades_v1_classes.txt")
    lines = [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if line.split(" ", 1)[0] != f"c{number:03d}" or len(line.split(" ", 1)) != 2:
            raise UserError(f"{file}: line {number + 1}: expected 'c{number:03d} text', found {line[:30]!r}")
    if len(lines) != CLASSES:
        raise UserError(f"{file}: expected {CLASSES} classes, found {len(lines)}")
    return [line.split(" ", 1)[1].strip() for line in lines]
