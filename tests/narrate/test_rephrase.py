"""Rephrasing by random models of each kind: other words only, each text once, the same list however it is made."""

import json
import os
import pickle
import signal
from pathlib import Path

import pytest
import torch

from tests.narrate.world import code, content
from videorl.cli.rephrase import main
from videorl.data import narrations
from videorl.narrate import rephrase
from videorl.registry import UserError

transformers = pytest.importorskip("transformers")
WORDS = ("<pad>", "<unk>", "<end>", "user", "paraphrase", ":", *"abcdefghijklmnop", "C", "opens", "the", "door")
ROWS = [
    ("v", 0.0, 1.0, "#C C opens the door"),
    ("v", 1.0, 2.0, "a b c"),
    ("w", 0.0, 1.0, "a b c"),
    ("w", 1.0, 2.0, ["d e", "f g"]),
    ("w", 2.0, 3.0, None),
    *(("x", float(k), k + 1.0, f"{word} the door") for k, word in enumerate("abcdefgh")),
]


def model(folder: Path, kind: str) -> Path:
    """A random model of `WORDS` with its tokenizer, as transformers saves it."""
    torch.manual_seed(0)
    marks = {"vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 2}
    if kind == "text to text":
        shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
        made = transformers.T5ForConditionalGeneration(transformers.T5Config(**marks, **shape))
    else:
        shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 96, "bos_token_id": 2}
        made = transformers.GPT2LMHeadModel(transformers.GPT2Config(**marks, **shape))
    for value in made.parameters():
        value.data += 0.5 * torch.randn_like(value)
    made.save_pretrained(folder)
    ids = {word: number for number, word in enumerate(WORDS)}
    tokenizer = {
        "version": "1.0",
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"},
        "added_tokens": [],
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder")),
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<end>"}
    names |= {"chat_template": "user {{ messages[0]['content'] }} :"} if kind == "chat" else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"unk_token": "<unk>"}))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    torch.set_num_threads(1)
    return {kind: model(tmp_path_factory.mktemp("model"), kind) for kind in ("text to text", "chat", "plain")}


@pytest.fixture
def run(models, tmp_path):
    def run(*words, out="out", kind="text to text", rows=ROWS) -> int:
        (tmp_path / "list.pkl").write_bytes(pickle.dumps(rows))
        common = ["--metadata", tmp_path / "list.pkl", "--model", models[kind], "--out", tmp_path / out, "--batch", 3]
        return code(main, [*common, *words])

    return run


@pytest.mark.parametrize("kind", ["text to text", "chat", "plain"])
def test_rows_get_other_words_in_the_published_layout(run, models, tmp_path, kind):
    assert run("--top", 2, kind=kind) == 0
    file = tmp_path / "out/list.rephraser.pkl"
    listed = pickle.loads(file.read_bytes())
    assert [row[:3] for row in listed] == [row[:3] for row in ROWS]
    assert listed[1][3] == listed[2][3]
    assert listed[4][3] == []
    one = rephrase.Rephraser(str(models[kind]), 2, "", torch.device("cpu"))
    for row, (_, _, _, said) in zip(listed, ROWS):
        own = [said] if isinstance(said, str) else said or []
        alone = [text for text in own for text in one([text])[0]]
        assert row[3] == (list(dict.fromkeys(alone)) or own)
        assert len(row[3]) <= 2 * len(own)
    assert sum(bool(row[3]) and row[3] != [said] for row, (_, _, _, said) in zip(listed, ROWS)) > 6
    assert all(text.startswith("#C ") for text in listed[0][3])
    read = narrations.read(file)
    assert [read[i].texts for i in range(len(read))] == [tuple(row[3]) for row in listed]
    assert not read[0].pseudo


def test_copies_and_empty_answers_are_dropped():
    answers = ["A b, C!", "", "d e", "D  e.", "f", "g"]
    assert rephrase.others("a b c", answers, 2) == ["d e", "f"]
    assert rephrase.cleaned('\n "C opens it." \nThat is all.') == "C opens it."


def test_a_text_longer_than_the_model_s_context_keeps_its_words(run, tmp_path, capsys):
    long = "a " * 60
    assert run(kind="chat", rows=[("v", 0.0, 1.0, long), ("v", 1.0, 2.0, "a b c")]) == 0
    assert "1 have no other words" in capsys.readouterr().out
    assert pickle.loads((tmp_path / "out/list.rephraser.pkl").read_bytes())[0][3] == [long]


@pytest.mark.parametrize("shards", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_it_goes_on_to_the_same_list(run, tmp_path, monkeypatch, shards):
    assert run() == 0
    answer, calls = rephrase.Rephraser.__call__, []

    def dying(rephraser, texts):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(rephraser, texts)

    words, killed = [["--num_shards", shards, "--shard_id", k] for k in range(shards)], []
    for own in words:
        pid = os.fork()
        if not pid:
            monkeypatch.setattr(rephrase.Rephraser, "__call__", dying)
            os._exit(run(*own, out="killed"))
        killed.append(os.WIFSIGNALED(os.waitpid(pid, 0)[1]))
    assert any(killed)
    for own in words:
        assert run(*own, out="killed") == 0
    assert content(tmp_path / "killed") == content(tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "none"], "--model none is no folder"),
        (["--prompt", "say it"], "expected a text with {}"),
        (["--top", 0], "expected 1 or more"),
        (["--top", 4], "holds texts with top 3 (asked for 4)"),
    ],
)
def test_mistakes_are_one_line(run, capsys, words, said):
    if words == ["--top", 4]:
        assert run() == 0
    assert run(*words) == 2
    assert said in capsys.readouterr().err


def test_what_a_narrator_wrote_is_not_rephrased(tmp_path):
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([("v", 0.0, 1.0, ["a"], [1.0])]))
    with pytest.raises(UserError, match="rows of a narrator"):
        rephrase.Rephrasing(narrations.read(tmp_path / "list.pkl"), 4, None, tmp_path / "made.pkl")
