"""Captions to word numbers, against the golden cases of MIL-NCE."""

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from videorl.data.text import Tokenizer, split_words, tokenizer
from videorl.registry import UserError
from videorl.spec import Text

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


def test_clip_tokens_equal_the_published():
    """Texts of more than 75 tokens keep the end token, as OpenAI's do."""
    case = json.loads((GOLDEN / "lavila/clip_tokens.json").read_text())
    texts, expected = case["inputs"]["strings"], case["expected"]
    found = tokenizer(Text("clip", length=77))(texts).tolist()
    for text, ids, published, openai in zip(texts, found, expected["ids"], expected["openai_ids"], strict=True):
        if "<|" not in text:  # such a name in a text is CLIP's token in the published code, and letters in open_clip
            assert ids == (openai or published), text


@pytest.mark.parametrize("name", ["", "vocab.txt"])
def test_word_pieces_of_a_vocabulary(name, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "cut", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenize = tokenizer(Text(str(tmp_path / name), length=6))
    assert tokenize(["The cats cut.", "zebra", ""]).tolist() == [
        [2, 5, 6, 7, 8, 3],
        [2, 1, 3, 0, 0, 0],
        [2, 3, 0, 0, 0, 0],
    ]
    assert pickle.loads(pickle.dumps(tokenize))(["cut"]).tolist() == [[2, 8, 3, 0, 0, 0]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Text("clpi", length=77), "unknown TEXT.TOKENIZER 'clpi'; did you mean clip"),
        (Text("clip", length=2), "TEXT.MAX_WORDS 2: expected 3 or more"),
        (Text("FOLDER", length=77), "no tokenizer is read from there"),
        (Text("FOLDER/vocab.txt", length=77), r"expected a vocabulary of BERT, found none of \[PAD\]"),
    ],
)
def test_tokenizers_that_cannot_be_are_refused(settings, said, tmp_path):
    (tmp_path / "vocab.txt").write_text("cat\n")
    (tmp_path / "empty").mkdir()
    folder = tmp_path if settings.tokenizer.endswith("txt") else tmp_path / "empty"
    settings = replace(settings, tokenizer=settings.tokenizer.replace("FOLDER", str(folder)))
    with pytest.raises(UserError, match=said) as error:
        tokenizer(settings)
    assert "\n" not in str(error.value)
