"""Captions to word numbers, against the golden cases of MIL-NCE."""

import sys
from pathlib import Path

import numpy as np
import pytest

from videorl.data.text import Tokenizer, split_words
from videorl.registry import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import load_case  # noqa: E402

CASE = load_case(GOLDEN / "data/howto100m_tokens.pt")


@pytest.fixture
def dictionary(tmp_path) -> str:
    np.save(tmp_path / "dict.npy", np.array(CASE["inputs"]["vocabulary"]))
    return str(tmp_path / "dict.npy")


@pytest.mark.parametrize("case", CASE["expected"]["cases"], ids=lambda case: case["max_words"])
def test_words_and_their_numbers(dictionary, case):
    sentences = CASE["inputs"]["sentences"]
    assert [split_words(sentence) for sentence in sentences] == case["words"]
    assert Tokenizer(dictionary, case["max_words"])(sentences).tolist() == case["ids"]


def test_unknown_words_leave_room_for_known_ones(dictionary):
    numbers = Tokenizer(dictionary, 2)(["zzz cut qqq the tomato", "zzz", ""])
    assert numbers.tolist() == [[3, 1], [0, 0], [0, 0]]


def test_the_published_dictionary_is_read():
    tokenize = Tokenizer(str(GOLDEN / "data/howto100m/dict.npy"), 3)
    words = np.load(GOLDEN / "data/howto100m/dict.npy").tolist()
    assert tokenize([words[0], words[-1]]).tolist() == [[1, 0, 0], [len(words), 0, 0]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.array([1, 2]), "expected an array"),
        (np.array([["a"]]), "expected an array"),
        (np.array(["a", None], object), "Object arrays"),
        (b"words", "expected an array of texts"),
        (None, "No such file"),
    ],
)
def test_a_dictionary_that_is_none(tmp_path, content, said):
    file = tmp_path / "dict.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content, allow_pickle=True)
    with pytest.raises(UserError, match=said) as error:
        Tokenizer(str(file), 20)
    assert "TEXT.DICT" in str(error.value)


def test_a_dictionary_must_be_named():
    with pytest.raises(UserError, match="TEXT.DICT is empty"):
        Tokenizer("", 20)
