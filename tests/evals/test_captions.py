"""The evaluation of captions, on a language model and texts small enough to judge by other means."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from videorl.data.text import tokenizer
from videorl.evals.captions import Captions, bert_text, scores
from videorl.metrics import captions as metrics
from videorl.models.narrator import Narrator
from videorl.registry import UserError
from videorl.spec import Clip, Spec, Text, Views
from videorl.toy import egocentric

VIDEO = {"PATCH_SIZE": 4, "EMBED_DIM": 24, "DEPTH": 1, "NUM_HEADS": 2}
SAID = ("#C C moves the red disc left", "#C C slides the golden ring upwards", "#C C pushes the blue star right")
REFERENCES = [(SAID[0],), (SAID[1], "#C C moves the yellow hoop up"), (SAID[2],)]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    egocentric._write_words(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(toy):
    tokenize = tokenizer(Text(str(toy / "tokenizer"), length=10))
    return SimpleNamespace(tokenize=tokenize, texts=lambda i: REFERENCES[i], moment=lambda i: (i, i + 1), seconds=15)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    shape = {"width": 16, "heads": 2, "layers": 2, "vocabulary": len(egocentric.words()) + 2, "context": 12}
    return Narrator(Spec(Clip(2, 1, 8, 8)), video=VIDEO, queries=4, **shape).eval()


def evaluation(model, dataset, **keys) -> Captions:
    made = Captions(Spec(Clip(2, 1, 8, 8)), max_length=10, **keys)
    made.begin(model, dataset)
    return made


def batch_of(dataset) -> dict:
    video = torch.randn(3, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    return {"video": video, "text": dataset.tokenize([texts[0] for texts in REFERENCES]), "index": torch.arange(3)}


def arrays(rows: dict) -> dict:
    return {name: value.detach().numpy() for name, value in rows.items()}


def test_perplexity_is_that_of_the_tokens_and_texts_are_those_generated(model, dataset):
    made, batch = evaluation(model, dataset, returns=2), batch_of(dataset)
    found, saved = made.finish(arrays(made.step(model, batch)))
    with torch.no_grad():
        logs = model(batch["video"], batch["text"])["token_logits"].log_softmax(-1)
        ids, likely = model.generate(batch["video"], batch["index"], made.sampling)
    nats = [[-float(logs[b, k - 1, token]) for k, token in enumerate(row) if k and token >= 0]
            for b, row in enumerate(batch["text"].tolist())]  # fmt: skip
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(sum(nats, []))), rel=1e-5)
    assert found["perplexity_clip"] == pytest.approx(np.mean([np.exp(np.mean(row)) for row in nats]), rel=1e-5)
    assert saved["texts"].tolist() == [[dataset.tokenize.decode(text) for text in clip] for clip in ids.tolist()]
    assert saved["judged"].tolist() == saved["texts"][np.arange(3), likely.argmax(1)].tolist()
    assert [tuple(json.loads(texts)) for texts in saved["references"]] == REFERENCES


def test_texts_are_judged_against_all_their_references(dataset, model, toy):
    made = evaluation(model, dataset, facts=str(toy / "facts.json"))
    judged = ["#C C drags the scarlet circle left", "#C C moves the yellow hoop up", "#C C pushes the blue star left"]
    ids = dataset.tokenize(judged)[:, None].numpy()
    rows = {"index": np.arange(3), "ids": ids, "nats": np.ones(3), "tokens": np.ones(3, int)}
    found, saved = made.finish({**rows, "log_likelihood": np.zeros((3, 1))})
    assert found["cider"] == pytest.approx(metrics.cider(judged, REFERENCES).mean())
    assert saved["rouge_l"][1] == 1.0
    assert found["bleu4"] == metrics.bleu(judged, REFERENCES)[3]
    assert (found["match_colour"], found["match_shape"]) == (1.0, 1.0)
    assert found["match_direction"] == found["match_all"] == pytest.approx(2 / 3)
    assert saved["match_all"].tolist() == [True, True, False]
    assert found["perplexity"] == pytest.approx(np.e)


def test_normalised_texts_are_in_lower_case_and_taken_apart(tmp_path, dataset, model):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "#", "c", "the", "ball", "##s", "picks", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    assert bert_text(str(tmp_path / "vocab.txt"))("#C C picks  the Balls.") == "# c c picks the balls."
    made = evaluation(model, dataset, bert_vocabulary=str(tmp_path / "vocab.txt"))
    rows = arrays(made.step(model, batch_of(dataset)))
    found, _ = made.finish(rows)
    assert {f"{name}_bert" for name in ("bleu1", "rouge_l", "cider")} <= found.keys()
    with pytest.raises(UserError, match="BERT_VOCABULARY nowhere.txt: no such file"):
        evaluation(model, dataset, bert_vocabulary="nowhere.txt")


def test_without_java_there_is_no_meteor_and_the_log_says_what_it_needs(monkeypatch, caplog):
    monkeypatch.setattr(metrics, "meteor_is_here", lambda: False)
    assert "meteor" not in scores(["a"], [["a"]])[0]
    assert "no METEOR, for it needs Java" in caplog.text


def test_what_cannot_be_judged_is_refused(model, dataset, tmp_path):
    with pytest.raises(UserError, match="Linear writes no texts"):
        evaluation(torch.nn.Linear(1, 1), dataset)
    with pytest.raises(UserError, match="expected a data set with texts"):
        evaluation(model, SimpleNamespace(tokenize=None))
    with pytest.raises(UserError, match="RETURNS 4: a search with BEAMS 2 gives no more"):
        evaluation(model, dataset, beams=2, returns=4)
    with pytest.raises(UserError, match="takes one view of a clip"):
        Captions(Spec(Clip(2, 1, 8, 8), views=Views(2)))
    (tmp_path / "facts.json").write_text("[1]")
    with pytest.raises(UserError, match="FACTS .*: expected"):
        evaluation(model, dataset, facts=str(tmp_path / "facts.json"))


def test_the_protocol_says_how_texts_were_made(model, dataset):
    said = [evaluation(model, dataset, **keys).protocol for keys in (
        {"temperature": 0.0}, {"returns": 10, "top_k": 5, "seed": 3}, {"beams": 3})]  # fmt: skip
    assert said[0] == "captions: one text of up to 10 tokens, the likeliest tokens"
    assert "the likeliest of 10 texts" in said[1]
    assert said[1].endswith("temperature 0.7, top-p 0.95, top-k 5, seed 3")
    assert said[2].endswith("3 beams, length penalty 1")


def test_tokens_beyond_the_end_do_not_count(dataset):
    ids = dataset.tokenize(["#C C moves the red disc left"])[0]
    end = F.pad(ids[ids >= 0], (0, 2), value=5)
    assert dataset.tokenize.decode(end.tolist()) == "#C C moves the red disc left"
