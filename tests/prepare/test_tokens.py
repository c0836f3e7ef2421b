"""Captions as shards of tokens: what MMPT's script writes of them, and what is wrong with captions."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from videorl.cli import tokenize_captions
from videorl.data.features import Features
from videorl.data.shards import Sharded
from videorl.registry import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import norton

SAID = {
    "v0": {"start": [0.0, 2.5], "end": [2.0, 4.0], "text": ["a B c", "d" + " e" * 60]},
    "v1": {"start": [1], "end": [3], "text": [""]},
    "v2": {"start": [0.0], "end": [9.0], "text": ["f zebra g"]},
    "v3": {"start": [1.0, 2.0], "end": [3.0], "text": ["a", "b"]},
}


@pytest.fixture
def words(tmp_path):
    """The command for three shards of features, v0 to v4."""
    norton.write(tmp_path / "features", [norton.video(9, k) for k in range(5)], shard=2)
    norton.spec(tmp_path / "vocab.txt")
    (tmp_path / "said.json").write_text(json.dumps(SAID))
    return [str(tmp_path / "said.json"), "--features", str(tmp_path / "features"), "--vocabulary",
            str(tmp_path / "vocab.txt"), "--out", str(tmp_path / "text/said.")]  # fmt: skip


def written(tmp_path, kind):
    shards = [Sharded(tmp_path / f"text/said.train_{k}.{kind}") for k in range(3)]
    return [[row.tolist() for row in shard[i]] for shard in shards for i in range(len(shard))]


def test_captions_are_cut_to_characters_then_to_tokens(tmp_path, words, caplog):
    tokenize_captions.main([*words, "--tokens", "6"])
    number = {word: k for k, word in enumerate(norton.WORDS)}
    a, b, c, d, e, f, g = (number[word] for word in "abcdefg")
    filled = [-1] * 3
    tokens = written(tmp_path, "caps_ids")
    assert tokens == [[[a, b, c, *filled], [d, *[e] * 5]], [[-1] * 6], [[f, 1, g, *filled]], [], []]
    assert written(tmp_path, "startends") == [[[0, 2], [2.5, 4]], [[1, 3]], [[0, 9]], [], []]
    assert Sharded(tmp_path / "text/said.train_0.caps_ids").data.dtype == np.int32
    assert "2 of 5 videos have no captions; first: v3: 2 starts, 1 ends and 2 texts" in caplog.text
    tokenize_captions.main([*words, "--tokens", "99", "--characters", "7"])
    assert written(tmp_path, "caps_ids")[0][1][:5] == [d, e, e, e, -1]


def test_the_data_set_reads_them(tmp_path, words):
    tokenize_captions.main(words)
    spec = norton.spec(tmp_path / "vocab.txt")
    dataset = Features(spec, "train", root=str(tmp_path / "features"), captions=str(tmp_path / "text/said."))
    assert dataset[0][0]["text_mask"].any()


def test_pickles_of_json_folders_of_csv_and_repeated_words(tmp_path, words):
    tokenize_captions.main(words)
    expected = written(tmp_path, "caps_ids")
    as_text = {name: json.dumps(said) for name, said in SAID.items()}
    (tmp_path / "said.pkl").write_bytes(pickle.dumps(as_text, protocol=4))
    tokenize_captions.main([str(tmp_path / "said.pkl"), *words[1:]])
    assert written(tmp_path, "caps_ids") == expected
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/v0.csv").write_text("start,end,text\n0,2,a b\n2,3,a b c\n")
    tokenize_captions.main([str(tmp_path / "csv"), *words[1:]])
    assert len(written(tmp_path, "caps_ids")[0]) == 2
    tokenize_captions.main([str(tmp_path / "csv"), *words[1:], "--deduplicate", "words"])
    assert len(written(tmp_path, "caps_ids")[0]) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("said.json", "{"), "said.json is no json"),
        (("said.json", "[1]"), "expected {video: {start, end, text}}, found a list"),
        (("said.json", "{}"), "none of 5 videos has captions; first: v0: not in said.json"),
        (("vocab.txt", "a\nb\n"), "expected a vocabulary of BERT"),
        (("features/train_meta.pkl", None), "expected train_meta.pkl"),
        (("said.json", None), "No such file"),
    ],
)
def test_mistakes_are_one_line(tmp_path, words, change, said):
    file, content = tmp_path / change[0], change[1]
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=said) as error:
        tokenize_captions.run(tokenize_captions.parse(words))
    assert "\n" not in str(error.value)
