"""EgoMCQ: which of five moments of Ego4D does a text describe?

Lin et al., Egocentric Video-Language Pretraining (EgoVLP), NeurIPS 2022; egomcq.json of showlab/EgoVLP.
"""

import hashlib
import json
import math
import os
from typing import Literal

import torch

from videorl.data.lists import checked_root
from videorl.data.moments import Moments
from videorl.data.text import tokenizer
from videorl.metrics.choice import INTER, INTRA
from videorl.registry import DATASETS, UserError, Whole
from videorl.spec import Spec


class Questions(list):
    """The choices of all questions, one after the other, as (question, video, start, end, text, answer, kind)."""

    def __init__(self, file: str):
        super().__init__()
        if not os.path.isfile(file):
            raise UserError(f"EGOMCQ.METADATA {file!r}: no such file; name egomcq.json")
        with open(file, "rb") as stream:
            content = stream.read()
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]
        try:
            questions = json.loads(content)
            for number, question in questions.items():
                self._add(number, question)
        except (ValueError, AttributeError) as error:
            raise UserError(f"EGOMCQ.METADATA {file}: {str(error)[:120]}; expected the layout of egomcq.json") from None
        if not self:
            raise UserError(f"EGOMCQ.METADATA {file}: expected questions, found none; name egomcq.json")

    def _add(self, number: str, question: dict) -> None:
        try:
            answer, kind, text = question["answer"], question["types"], question["query"]["clip_text"]
            choices = [question["choices"][str(k)] for k in range(len(question["choices"]))]
            rows = [(str(c["video_uid"]), float(c["clip_start"]), float(c["clip_end"])) for c in choices]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"question {number}: {type(error).__name__} {error}") from None
        if kind not in (INTER, INTRA) or answer not in range(len(rows)) or not isinstance(text, str):
            found = f"types {kind!r}, answer {answer!r} of {len(rows)} choices, text {str(text)[:40]!r}"
            raise ValueError(f"question {number}: {found}")
        for k, (video, start, end) in enumerate(rows):
            if os.path.basename(video) != video or not (math.isfinite(start) and math.isfinite(end) and start >= 0):
                raise ValueError(f"question {number}: choice {k}: video {video!r} from {start} to {end} s")
            self.append((int(number), video, start, end, text, k == answer, kind))


@DATASETS.register("egomcq", node="EGOMCQ")
class EgoMCQ(Moments):
    """One sample for each choice: its clip, the `text` of its question, the question's number as `group`, `relevancy` 1
    for the answer and 0 for others, and `kind` (1: choices of several videos, inter; 2: of one video, intra).

    Frames and errors: see `Moments`. For evaluation only.

    Keys:
        root: folder of <video>.mp4/<first second>.mp4, or with CHUNK_SECONDS 0 of <video>.mp4
        metadata: egomcq.json
        chunk_seconds: length of the chunks of a video; 0: videos in one file each
        frames: parts: of equal parts of the moment (LaViLa) | middles: around the middles of such parts (AVION)
    """

    def __init__(
        self,
        spec: Spec,
        split: str,
        *,
        root: str = "",
        metadata: str = "",
        chunk_seconds: Whole = 300,
        frames: Literal["parts", "middles"] = "parts",
    ):
        if split == "train":
            raise UserError("egomcq has no split train: it is for evaluation, where val and test are the whole list")
        self.root, self.tokenize = checked_root(root, "EGOMCQ.ROOT"), tokenizer(spec.text)
        super().__init__(spec, split, Questions(metadata), seconds=chunk_seconds, rule=frames)

    def path(self, i: int) -> str:
        return os.path.join(self.root, f"{self.rows[i][1]}.mp4")

    def moment(self, i: int) -> tuple[float, float]:
        return self.rows[i][2:4]

    def _notes(self, i: int, k: int) -> dict[str, torch.Tensor]:
        number, *_, text, right, kind = self.rows[i]
        return {
            "text": self.tokenize([text])[0],
            "group": torch.tensor(number),
            "relevancy": torch.tensor(float(right)),
            "kind": torch.tensor(kind),
        }
