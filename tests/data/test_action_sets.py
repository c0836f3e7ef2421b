"""Charades-Ego and EGTEA: labels and texts as their published lists have them."""

import pickle
import shutil

import numpy as np
import pytest

from tests.data.test_ego4d import CHUNKS
from videorl.data.charades import CLASSES, CharadesEgo
from videorl.data.egtea import Egtea
from videorl.registry import UserError
from videorl.spec import Augment, Clip, Spec, Text, Views


@pytest.fixture
def root(tmp_path):
    for name in ("ABC.mp4", "P01-R01-Pasta/P01-R01-Pasta-100-200-F1-F2.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(CHUNKS / "whole.mp4", tmp_path / name)
    np.save(tmp_path / "dict.npy", np.array(["hold", "cut"]))
    names = "".join(f"c{k:03d} Doing thing {k}\n" for k in range(CLASSES))
    (tmp_path / "classes.txt").write_text(names)
    return tmp_path


def spec(root, views=1):
    augment = Augment(scales=(32, 32), flip=False)
    return Spec(Clip(4, 2, 32, 32), augment=augment, views=Views(views), text=Text("words", str(root / "dict.npy"), 4))


def charades(root, actions="c092 11.90 21.20;c147 0.00 12.60", split="test", names="classes.txt"):
    (root / "val.csv").write_text(f'id,subject,actions,length\nABC,X,"{actions}",9.7\nABC,X,,9.7\n')
    (root / "train.pkl").write_bytes(pickle.dumps([("ABC", 1.0, 3.0, "cut"), ("ABC", 1.0, 3.0, "")]))
    files = {"metadata": "train.pkl", "metadata_val": "val.csv", "class_names": names}
    return CharadesEgo(spec(root), split, root=str(root), **{key: str(root / file) for key, file in files.items()})


def test_charades_has_several_labels_of_whole_videos(root):
    data = charades(root)
    assert np.flatnonzero(data[0][0]["labels"]).tolist() == [92, 147]
    assert data[1][0]["labels"].sum() == 0
    assert data.class_texts[92] == ["Doing thing 92"]
    with data._open(0) as shot:
        assert data._test_indices(shot, 0).tolist() == [36, 108, 180, 253]  # LaViLa's of a whole file, golden case


def test_charades_trains_on_texts(root):
    data = charades(root, split="train")
    assert data[0][0]["text"].tolist() == [2, 0, 0, 0]
    with pytest.raises(Exception, match="row 1 has no text"):
        data[1]


def test_charades_lists_with_mistakes_are_refused(root):
    with pytest.raises(UserError, match=r"row 1: expected actions such as 'c092 11.90 21.20', found 'c200 1 2'"):
        charades(root, "c200 1 2")
    (root / "cut.txt").write_text("c000 Doing thing 0\nc002 Doing thing 2\n")
    with pytest.raises(UserError, match="line 2: expected 'c001 text', found 'c002 Doing"):
        charades(root, names="cut.txt")


def egtea(root, lines="P01-R01-Pasta-100-200-F1-F2 2 1 5\n", views=1):
    (root / "action_idx.txt").write_text("Cut tomato 1\nOpen fridge 2\n")
    (root / "test.txt").write_text(lines)
    names = {"metadata_val": root / "test.txt", "action_names": root / "action_idx.txt", "root": root}
    return Egtea(spec(root, views), "test", **{key: str(name) for key, name in names.items()})


def test_egtea_labels_count_from_zero(root):
    data = egtea(root, views=3)
    assert (data.classes, data[0][2]["labels"].item()) == (("Cut tomato", "Open fridge"), 1)
    assert data.class_texts == [["Cut tomato"], ["Open fridge"]]


def test_egtea_lists_with_mistakes_are_refused(root):
    for lines, said in (
        ("P01-R01-Pasta-100-200-F1-F2 3 1\n", "line 1: expected 'P01-R01-Pasta-… action', found .* 3"),
        ("../P01-R01-Pasta-100-200 1 1\n", "line 1: expected 'P01"),
        ("no number\n", "line 1: expected a text and a number, found 'no number'"),
        ("\nP01-R01-Pasta-100-200 3 1\n", "line 2: expected 'P01"),
        ("", "expected lines of a text and a number, found none"),
    ):
        with pytest.raises(UserError, match=said):
            egtea(root, lines)
