"""EPIC-Kitchens and EgoMCQ: rows as the published lists have them, frames that carry their number."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.test_ego4d import CHUNKS, GOLDEN, burnt_in
from videorl.data.egomcq import EgoMCQ
from videorl.data.epic import EpicClasses, EpicRetrieval
from videorl.registry import UserError
from videorl.spec import Augment, Clip, Spec, Text
from videorl.toy.egocentric import EPIC_COLUMNS
from videorl.toy.narrated import write_csv


@pytest.fixture
def root(tmp_path):
    (tmp_path / "videos/P01").mkdir(parents=True)
    shutil.copy(CHUNKS / "whole.mp4", tmp_path / "videos/P01/P01_01.MP4")
    np.save(tmp_path / "dict.npy", np.array(["open", "door", "close", "tap", "fridge"]))
    return tmp_path


def spec(root: Path, frames: int = 8) -> Spec:
    augment = Augment(scales=(32, 32), flip=False)
    return Spec(Clip(frames, 1, 32, 32), augment=augment, text=Text("words", str(root / "dict.npy"), 4))


def row(name: str, start: str, stop: str, text: str, verb: int = 3, noun: int = 3) -> tuple:
    return (name, "P01", "P01_01", start, start, stop, 0, 0, text, "open", verb, "door", noun, ["door"], [noun])


ROWS = [
    row("a", "00:00:00.50", "00:00:01.75", "open door"),
    row("b", "00:00:02.00", "00:00:03.00", "close tap", 4, 1),
    row("c", "00:00:04.00", "00:00:05.00", "open fridge", 3, 12),
]


def retrieval(root, split="val", rows=ROWS, matrix=None):
    write_csv(root / "test.csv", EPIC_COLUMNS, rows)
    write_csv(root / "test_sentence.csv", "narration_id,narration", [("a", "open door"), ("c", "open fridge")])
    matrix = np.array([[1, 0.5], [0, 0], [0.5, 1]], np.float32) if matrix is None else matrix
    (root / "rel.pkl").write_bytes(pickle.dumps(matrix))
    names = {"metadata": root / "test.csv", "metadata_val": root / "test.csv"}
    names |= {"relevancy": root / "rel.pkl", "relevancy_val": root / "rel.pkl", "root": root / "videos"}
    return EpicRetrieval(spec(root), split, **{key: str(name) for key, name in names.items()})


def test_frames_equal_lavila(root):
    case = torch.load(GOLDEN / "ego4d_dataset_items.pt", weights_only=True)
    times, (first, _, text, verb, noun) = case["inputs"]["ek100"], case["expected"]["ek100_sample"]
    data = retrieval(root, rows=[row("a", times["start"], times["stop"], text, verb, noun), *ROWS[1:]])
    with data._open(0) as shot:
        numbers = shot.numbers(times["clip_length"])
        assert numbers.tolist() == case["expected"]["ek100_frames"] == burnt_in(shot.frames(numbers.tolist()))
    assert (round(data.rows[0].start * 30), data.rows[0].text) == (first, text)


def test_sentences_name_the_clips_they_were_said_of(root):
    data = retrieval(root)
    assert data.sentences.tolist() == [0, 2]
    assert data.relevancies.tolist() == [[1, 0.5], [0, 0], [0.5, 1]]
    assert data[1][0]["text"].tolist() == [3, 4, 0, 0]


def test_sentences_that_fit_are_trained_on(root):
    data = retrieval(root, "train")
    seen = {i: set() for i in range(3)}
    for data.epoch in range(12):
        for i, texts in seen.items():
            (item,) = data[i]
            texts.add((tuple(item["text"].tolist()), item["relevancy"].item()))
    opened = {((1, 2, 0, 0), 1.0), ((1, 5, 0, 0), 0.5)}
    assert seen == {0: opened, 1: {((3, 4, 0, 0), 1.0)}, 2: {((1, 2, 0, 0), 0.5), ((1, 5, 0, 0), 1.0)}}


def test_relevancies_of_other_lists_are_refused(root):
    with pytest.raises(UserError, match="RELEVANCY_VAL .*: expected an array of 3 clips and 2 sentences, found 2x2"):
        retrieval(root, matrix=np.eye(2))
    with pytest.raises(UserError, match="row 2: expected a time hh:mm:ss.ff, found '2.0'"):
        retrieval(root, rows=[ROWS[0], row("b", "2.0", "3.0", "close tap"), ROWS[2]])


@pytest.mark.parametrize("heads", [(), (97, 300)])
def test_actions_are_numbered_in_the_order_of_their_texts(root, heads):
    write_csv(root / "train.csv", EPIC_COLUMNS, ROWS[:2])
    more = row("d", "00:00:04.00", "00:00:05.00", "opens the fridge", 3, 12)
    write_csv(root / "val.csv", EPIC_COLUMNS, [*ROWS[2:], more])
    names = {"root": root / "videos", "metadata": root / "train.csv", "metadata_val": root / "val.csv"}
    data = EpicClasses(spec(root), "val", **{key: str(name) for key, name in names.items()}, heads=heads)
    assert data.classes == ("3:12", "3:3", "4:1")  # published: sorted as texts
    assert {part: numbers.tolist() for part, numbers in data.parts.items()} == {"verb": [3, 3, 4], "noun": [12, 3, 1]}
    assert data.class_texts == [["open fridge", "opens the fridge"], ["open door"], ["close tap"]]
    assert data[0][0]["labels"].tolist() == ([3, 12, 0] if heads else 0)


def question(answer: int = 1, kind: int = 2, **changes) -> dict:
    moments = [(0.5, 1.5), (3.5, 4.6), (0.0, 0.05)]
    choices = [{"video_uid": "vidA", "clip_start": a, "clip_end": b, "clip_text": "x"} for a, b in moments]
    query = {**choices[answer], "clip_text": "close tap"}
    return {
        "answer": answer,
        "types": kind,
        "query": query,
        "choices": {str(k): c for k, c in enumerate(choices)},
        **changes,
    }


def questions(root, content) -> EgoMCQ:
    (root / "mcq.json").write_text(json.dumps(content))
    return EgoMCQ(spec(root, 4), "test", root=str(CHUNKS), metadata=str(root / "mcq.json"), chunk_seconds=4)


def test_each_choice_is_a_sample(root):
    data = questions(root, {"7": question(), "9": question(0, 1)})
    assert len(data) == 6
    items = [data[i][0] for i in range(6)]
    assert [item["group"].item() for item in items] == [7] * 3 + [9] * 3
    assert [item["relevancy"].item() for item in items] == [0, 1, 0, 1, 0, 0]
    assert [item["kind"].item() for item in items] == [2] * 3 + [1] * 3
    assert all(item["text"].tolist() == [3, 4, 0, 0] for item in items)
    with data._open(1) as shot:
        assert burnt_in(shot.frames(shot.numbers(4).tolist())) == [109, 117, 124, 132]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"1": question(kind=3)}, "question 1: types 3, answer 1 of 3 choices"),
        ({"1": question(choices={})}, "answer 1 of 0 choices"),
        ({"1": {"answer": 0}}, "question 1: KeyError 'types'"),
        ({"1": {**question(), "query": {"clip_text": 5}}}, "question 1: types 2, answer 1 of 3 choices, text '5'"),
        ([], "has no attribute 'items'"),
        ({}, "expected questions, found none"),
    ],
)
def test_other_questions_are_refused(root, content, said):
    with pytest.raises(UserError, match=said) as error:
        questions(root, content)
    assert "\n" not in str(error.value)
