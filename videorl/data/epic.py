"""EPIC-Kitchens-100: multi-instance retrieval and action classes (Damen et al., IJCV 2022).

Lists of epic-kitchens/epic-kitchens-100-annotations; videos in one file each, `<person>/<video>.MP4`. What LaViLa and
AVION read: rules of facebookresearch/LaViLa (lavila/data/datasets.py).
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from videorl.data.lists import check_paths, checked_root, read_list
from videorl.data.moments import Moments
from videorl.data.pickles import load_array
from videorl.data.text import ClassTexts, tokenizer
from videorl.registry import DATASETS, Counts, UserError
from videorl.spec import Spec

COLUMNS = (
    *("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp", "narration"),
    *("verb_class", "noun_class"),
)
RELEVANT = 0.1  # of more than this relevancy, a sentence is trained on with a clip, as published


@dataclass(frozen=True)
class Action:
    """A row: its id, its file below the root, its seconds, what was said of it, and the numbers of verb and noun."""

    name: str
    path: str
    start: float
    end: float
    text: str
    verb: int
    noun: int


class Actions(list):
    """The rows of a list of EPIC-Kitchens. Raises `UserError` with the row of what is wrong."""

    def __init__(self, file: str, key: str, allow_outside: bool):
        rows = read_list(file, COLUMNS, key)
        super().__init__(_action(row, file, k) for k, row in enumerate(rows, 1))
        check_paths([action.path for action in self], file, allow_outside)
        self.fingerprint = hashlib.sha256("\n".join(map(str, rows)).encode()).hexdigest()[:16]


def _action(row: tuple[str, ...], file: str, number: int) -> Action:
    name, person, video, start, end, text, verb, noun = row
    try:
        times, classes = (_seconds(start), _seconds(end)), (int(verb), int(noun))
    except ValueError as error:
        raise UserError(f"{file}: row {number}: {error}") from None
    return Action(name, os.path.join(person, f"{video}.MP4"), *times, text, *classes)


def _seconds(stamp: str) -> float:
    """`hh:mm:ss.ff` -> seconds."""
    parts = stamp.split(":")
    if len(parts) != 3:
        raise ValueError(f"expected a time hh:mm:ss.ff, found {stamp[:20]!r}")
    hours, minutes, seconds = map(float, parts)
    return 3600 * hours + 60 * minutes + seconds


class _Epic(Moments):
    """Clips of the rows of a list; frames by the rule of EPIC-Kitchens (see `moments.Shot`)."""

    def __init__(self, spec: Spec, split: str, root: str, actions: Actions, key: str):
        self.root = checked_root(root, key)
        super().__init__(spec, split, actions, seconds=0, rule="frames")

    def path(self, i: int) -> str:
        return os.path.join(self.root, self.rows[i].path)

    def moment(self, i: int) -> tuple[float, float]:
        return self.rows[i].start, self.rows[i].end


@DATASETS.register("epic_mir", node="EPIC_MIR")
class EpicRetrieval(_Epic):
    """Clips with a sentence each, for multi-instance retrieval.

    To evaluate, `text` is what was said of the clip, and `relevancies` [clips, sentences] says how well each of the
    distinct sentences fits, which are those of the samples `sentences`. To train, it is in each epoch another sentence
    of more than 0.1 relevancy, which stands in `relevancy`; of a clip that none fits, its own, with relevancy 1.

    Keys:
        root: folder of <person>/<video>.MP4
        metadata: EPIC_100_retrieval_train.csv; beside it, <name>_sentence.csv
        metadata_val: EPIC_100_retrieval_test.csv; beside it, <name>_sentence.csv
        relevancy: pickle of the relevancies of METADATA, array [clips, sentences]
        relevancy_val: pickle of those of METADATA_VAL
    """

    def __init__(
        self,
        spec: Spec,
        split: str,
        *,
        root: str = "",
        metadata: str = "",
        metadata_val: str = "",
        relevancy: str = "",
        relevancy_val: str = "",
    ):
        ending = "" if split == "train" else "_VAL"
        file, matrix = (metadata, relevancy) if split == "train" else (metadata_val, relevancy_val)
        actions = Actions(file, f"EPIC_MIR.METADATA{ending}", spec.reading.allow_outside_root)
        sentences = read_list(
            f"{os.path.splitext(file)[0]}_sentence.csv", ("narration_id", "narration"), "the sentences"
        )
        self.texts, self.tokenize = [text for _, text in sentences], tokenizer(spec.text)
        self.sentences = _places(sentences, actions, file)
        self.relevancies = load_array(matrix, f"EPIC_MIR.RELEVANCY{ending}")
        if self.relevancies.shape != (len(actions), len(sentences)):
            raise UserError(
                f"EPIC_MIR.RELEVANCY{ending} {matrix}: expected an array of {len(actions)} clips and"
                f" {len(sentences)} sentences, found {'x'.join(map(str, self.relevancies.shape))}"
            )
        super().__init__(spec, split, root, actions, "EPIC_MIR.ROOT")

    def _notes(self, i: int, k: int) -> dict[str, torch.Tensor]:
        if self.split != "train":
            return {"text": self.tokenize([self.rows[i].text])[0]}
        fitting = np.flatnonzero(self.relevancies[i] > RELEVANT)
        chosen = int(fitting[self._random_text(i, k).integers(len(fitting))]) if len(fitting) else None
        text = self.rows[i].text if chosen is None else self.texts[chosen]
        fits = 1.0 if chosen is None else float(self.relevancies[i, chosen])
        return {"text": self.tokenize([text])[0], "relevancy": torch.tensor(fits)}


def _places(sentences: Sequence[tuple[str, str]], actions: Actions, file: str) -> np.ndarray:
    """[M] the numbers of the rows that the sentences were said of."""
    number = {action.name: k for k, action in enumerate(actions)}
    if missing := [name for name, _ in sentences if name not in number]:
        raise UserError(f"{file}: no row has the id {missing[0]!r} of a sentence; name lists that belong together")
    return np.array([number[name] for name, _ in sentences])


@DATASETS.register("epic_cls", node="EPIC_CLS")
class EpicClasses(ClassTexts, _Epic):
    """Clips of actions. `labels` is the number of the action: of all pairs of verb and noun in the lists of training
    and validation, in the order of the texts "verb:noun" (3,806 as published); with HEADS it is [verb, noun, action].

    `class_texts` holds what was said of each action anywhere in these lists, for zero-shot evaluation, and `parts` the
    verb and the noun of each action.

    Keys:
        root: folder of <person>/<video>.MP4
        metadata: EPIC_100_train.csv
        metadata_val: EPIC_100_validation.csv
        heads: how many verbs and nouns the model has logits for, [97, 300] as published; empty: it scores actions alone
    """

    def __init__(
        self,
        spec: Spec,
        split: str,
        *,
        root: str = "",
        metadata: str = "",
        metadata_val: str = "",
        heads: Counts = (),
    ):
        outside = spec.reading.allow_outside_root
        names = {"METADATA": metadata, "METADATA_VAL": metadata_val}
        lists = [Actions(file, f"EPIC_CLS.{key}", outside) for key, file in names.items()]
        self.pairs = sorted({_pair(action) for actions in lists for action in actions})
        if heads and len(heads) != 2:
            raise UserError(f"EPIC_CLS.HEADS {list(heads)}: expected the numbers of verbs and of nouns, or nothing")
        self.heads, self.number = tuple(heads), {pair: k for k, pair in enumerate(self.pairs)}
        self.parts = {
            part: np.array([int(pair.split(":")[k]) for pair in self.pairs]) for k, part in enumerate(("verb", "noun"))
        }
        said: list[dict[str, None]] = [{} for _ in self.pairs]
        for action in (action for actions in lists for action in actions):
            said[self.number[_pair(action)]][action.text] = None
        self.class_texts = [list(texts) for texts in said]
        super().__init__(spec, split, root, lists[split != "train"], "EPIC_CLS.ROOT")

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.pairs)

    def _notes(self, i: int, k: int) -> dict[str, torch.Tensor]:
        action = self.rows[i]
        label = self.number[_pair(action)]
        return {"labels": torch.tensor([action.verb, action.noun, label] if self.heads else label)}


def _pair(action: Action) -> str:
    return f"{action.verb}:{action.noun}"
