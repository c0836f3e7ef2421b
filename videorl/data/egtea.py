"""EGTEA Gaze+: first-person clips of cooking actions (Li et al., In the Eye of Beholder, ECCV 2018).

Lists of the published data set, split 1 as LaViLa evaluates it (facebookresearch/LaViLa, lavila/data/datasets.py).
"""

import os
import re
from pathlib import Path

import numpy as np

from videorl.clip import sampling
from videorl.data.dataset import ClipDataset, Records
from videorl.data.lists import checked_root
from videorl.data.text import ClassTexts
from videorl.registry import DATASETS, UserError
from videorl.spec import Spec


@DATASETS.register("egtea", node="EGTEA")
class Egtea(ClassTexts, ClipDataset):
    """Short clips with one action each: NUM_FRAMES frames, SAMPLING_RATE apart; views along time are evenly spread.

    `labels` count from 0, in the order of the numbers of `action_names`. A clip that is too short repeats its last
    frame, where LaViLa adds black ones. `class_texts` are the names of the actions.

    Keys:
        root: folder of <person>-<recipe>/<clip>.mp4, the published cropped clips
        metadata: train_split1.txt, lines "clip action verb nouns"
        metadata_val: test_split1.txt
        action_names: action_idx.txt, lines "Open fridge 1"
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
        action_names: str = "",
    ):
        key, file = ("METADATA", metadata) if split == "train" else ("METADATA_VAL", metadata_val)
        names = {number: name for _, name, number in _read(action_names, "ACTION_NAMES", r"(.+?)\s+(\d+)")}
        if sorted(names) != list(range(1, len(names) + 1)):
            raise UserError(f"EGTEA.ACTION_NAMES {action_names}: expected numbers from 1 on, each once")
        rows = _read(file, key, r"(\S+)\s+(\d+)\b.*")
        for line, clip, number in rows:
            if number not in names or os.path.basename(clip) != clip or clip.count("-") < 3:
                raise UserError(
                    f"EGTEA.{key} {file}: line {line}: expected 'P01-R01-Pasta-… action', found {clip[:60]!r} {number}"
                )
        records = Records(
            root=checked_root(root, "EGTEA.ROOT"),
            paths=np.array([f"{'-'.join(clip.split('-')[:3])}/{clip}.mp4".encode() for _, clip, _ in rows]),
            labels=np.array([number - 1 for *_, number in rows], np.int64),
            classes=tuple(names[number] for number in sorted(names)),
        )
        super().__init__(spec, split, records)

    @property
    def class_texts(self) -> list[list[str]]:
        return [[name] for name in self.classes]

    def _train_indices(self, video, rng) -> np.ndarray:
        clip = self.spec.clip
        return sampling.strided_train(video.num_frames, frames=clip.frames, rate=clip.rate, rng=rng)

    def _test_indices(self, video, k: int) -> np.ndarray:
        clip, views = self.spec.clip, self.spec.views.clips
        return sampling.strided_view(video.num_frames, frames=clip.frames, rate=clip.rate, view=k, views=views)


def _read(file: str, key: str, pattern: str) -> list[tuple[int, str, int]]:
    """Line number (from 1), text and number of each line."""
    if not os.path.isfile(file):
        raise UserError(f"EGTEA.{key} {file!r}: no such file; name one of the published lists, such as test_split1.txt")
    rows = []
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), 1):
        found = re.fullmatch(pattern, line.strip())
        if line.strip() and not found:
            raise UserError(f"EGTEA.{key} {file}: line {number}: expected a text and a number, found {line[:40]!r}")
        if found:
            rows.append((number, found[1], int(found[2])))
    if not rows:
        raise UserError(f"EGTEA.{key} {file}: expected lines of a text and a number, found none; name another file")
    return rows
