"""Evaluations of video and text on arrays small enough to work out by hand, or by the metric of one view."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from videorl.evals.actions import Actions, softmax
from videorl.evals.choice import Choice
from videorl.evals.multi_instance import MultiInstance
from videorl.evals.zero_shot import ZeroShot
from videorl.metrics.classification import topk_accuracy
from videorl.metrics.multi_instance import summary
from videorl.registry import UserError
from videorl.spec import Clip, Spec, Views


def spec(views: int = 1) -> Spec:
    return Spec(Clip(4, 1, 8, 8), views=Views(views))


def viewed(values: np.ndarray, rng) -> np.ndarray:
    """Two views of each row, whose mean is the row."""
    shift = rng.normal(size=values.shape)
    return np.stack([values + shift, values - shift], 1).reshape(-1, values.shape[-1])


def test_choices_are_judged_by_question_and_a_question_without_a_clip_is_left_out(caplog):
    rng = np.random.default_rng(0)
    texts, clips = rng.normal(size=(3, 6)), rng.normal(size=(3, 4, 6))
    answers = np.array([2, 0, 1])
    clips[0, 2], clips[2, 1] = 9 * texts[0], 9 * texts[2]  # right by far; question 1 is left to chance
    clips[1] = [texts[1] * 2, texts[1] * 5 + 9 * np.eye(6)[0], *rng.normal(size=(2, 6)) / 99]  # longer, not nearer
    index = np.arange(12)
    rows = {
        "index": index,
        "group": np.repeat([7, 3, 9], 4),
        "relevancy": (np.arange(4) == answers[:, None]).astype(float).ravel(),
        "kind": np.repeat([1, 2, 2], 4),
        "text_embed": np.repeat(texts, 4, 0),
    }
    rows = {name: np.repeat(values, 2, 0) for name, values in rows.items()}
    rows["video_embed"] = viewed(clips.reshape(12, 6), rng)
    found, chosen = Choice(spec(2)).finish(rows)
    assert found == {"inter": 1.0, "intra": 0.5, "inter_cosine": 1.0, "intra_cosine": 1.0}
    assert chosen["answer"].tolist() == answers.tolist()
    without = {name: np.delete(values, [8, 9], 0) for name, values in rows.items()}  # a choice of question 3
    found, chosen = Choice(spec(2)).finish(without)
    assert found["intra"] == 1.0
    assert chosen["index"].tolist() == [0, 8]
    assert "1 of 3 questions miss a clip" in caplog.text


def test_sentences_are_those_of_their_clips_and_unread_clips_leave_both_sides():
    rng = np.random.default_rng(1)
    videos, texts = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    relevancies = rng.choice([0, 0.5, 1.0], size=(6, 3))
    dataset = SimpleNamespace(relevancies=relevancies, sentences=np.array([4, 0, 3]))
    evaluation = MultiInstance(spec(2))
    evaluation.begin(None, dataset)
    rows = {"index": np.repeat(np.arange(6), 2), "video_embed": viewed(videos, rng), "text_embed": viewed(texts, rng)}
    found, _ = evaluation.finish(rows)
    expected = summary(videos @ texts[[4, 0, 3]].T, relevancies)
    assert found == pytest.approx(expected, nan_ok=True)
    kept = [0, 1, 2, 4, 5]  # clip 3 is bad: its sentence, the last one, goes too
    found, _ = evaluation.finish({name: np.delete(values, [6, 7], 0) for name, values in rows.items()})
    assert found == pytest.approx(summary(videos[kept] @ texts[[4, 0]].T, relevancies[kept][:, :2]), nan_ok=True)


class Model(torch.nn.Module):
    """A clip's embedding stands in its first frame, a text's in its tokens; `logits` are that embedding."""

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, video, text=None):
        return {"video_embed": video[:, 0, 0, 0], "logits": video[:, 0, 0, 0]}

    def embed_text(self, text):
        return text.float()


WORDS = {"cut": (1, 0, 0), "#C C cut": (2, 1, 0), "slice": (0, 3, 0), "#C C slice": (0, 1, 1), "boil": (0, 0, 5)}
WORDS["#C C boil"] = (1, 0, 1)


def test_the_classifier_is_the_mean_direction_of_all_texts_in_all_templates():
    dataset = SimpleNamespace(
        class_texts=[["cut", "slice"], ["boil"]],
        tokenize=lambda texts: torch.tensor([WORDS[text] for text in texts]),
        parts={"verb": np.array([1, 0])},
    )
    evaluation = ZeroShot(spec(), templates=("{}", "#C C {}"))
    evaluation.begin(Model(), dataset)
    groups = [("cut", "#C C cut", "slice", "#C C slice"), ("boil", "#C C boil")]
    units = [F.normalize(torch.tensor([WORDS[text] for text in group], dtype=torch.float), dim=1) for group in groups]
    expected = torch.stack([F.normalize(unit.mean(0), dim=0) for unit in units])
    torch.testing.assert_close(evaluation.classifier, expected)
    video = torch.tensor([[1.0, 1, 0], [0, 0, 7], [0, 0, 1]])[:, None, None, None].expand(-1, 3, 1, 1, -1)
    batch = {"video": video, "index": torch.arange(3), "view": torch.zeros(3), "labels": torch.tensor([0, 1, 0])}
    rows = {name: values.numpy() for name, values in evaluation.step(Model(), batch).items()}
    found, _ = evaluation.finish(rows)
    assert found["top1"] == pytest.approx(2 / 3)
    assert found["verb_top1"] == pytest.approx(2 / 3)


def test_several_labels_give_both_mean_average_precisions():
    evaluation = ZeroShot(spec())
    scores, labels = np.array([[0.9, 0.1], [0.8, 0.7], [0.2, 0.3]]), np.array([[0, 0], [1, 1], [1, 0]], float)
    rows = {"index": np.arange(3), "view": np.zeros(3), "scores": scores, "labels": labels}
    found, _ = evaluation.finish(rows)
    assert found["map"] == pytest.approx((np.mean([1 / 2, 2 / 3]) + 1) / 2)
    assert found["charades_map"] == pytest.approx(1.0)  # the first video has no label: it is behind the others


def test_parts_of_actions_by_sums_or_by_their_own_logits():
    rng = np.random.default_rng(2)
    parts = {"verb": np.array([0, 1, 1, 2, 0, 3, 1]), "noun": np.array([0, 0, 1, 2, 3, 4, 5])}
    logits, labels = rng.normal(size=(40, 7)), rng.integers(7, size=40)
    rows = {"index": np.repeat(np.arange(40), 2), "labels": np.repeat(labels, 2), "scores": viewed(logits, rng)}
    summed = Actions(spec(2))
    summed.begin(None, SimpleNamespace(parts=parts, heads=()))
    found, _ = summed.finish(summed.merge(rows))
    chances = softmax(logits)
    verbs = np.stack([chances[:, parts["verb"] == verb].sum(1) for verb in range(4)], 1)
    assert found["verb_top1"] == pytest.approx(topk_accuracy(verbs, parts["verb"][labels], 1))
    own = Actions(spec(2))
    own.begin(None, SimpleNamespace(parts=parts, heads=(4, 6)))
    wide = rng.normal(size=(40, 17))
    triple = np.stack([parts["verb"][labels], parts["noun"][labels], labels], 1)
    triples = {**rows, "labels": np.repeat(triple, 2, 0), "scores": viewed(wide, rng)}
    found, _ = own.finish(own.merge(triples))
    assert found["verb_top1"] == pytest.approx(topk_accuracy(wide[:, :4], triple[:, 0], 1))
    assert found["noun_top5"] == pytest.approx(topk_accuracy(wide[:, 4:10], triple[:, 1], 5))
    assert found["top5"] == pytest.approx(topk_accuracy(wide[:, 10:], labels, 5))
    declared = Actions.metrics.keys() - {"verb_top5"}  # of four verbs the right one is always among five
    assert found.keys() == declared
    zero_shot = ZeroShot(spec(2))
    zero_shot.parts = parts
    assert (
        zero_shot.finish(zero_shot.merge(rows))[0].keys()
        == declared
        == ZeroShot.metrics.keys() - {"verb_top5", "map", "charades_map"}
    )


def test_data_sets_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="zero_shot needs a data set with texts of classes"):
        ZeroShot(spec()).begin(Model(), SimpleNamespace(class_texts=[]))
    with pytest.raises(UserError, match="multi_instance needs a data set with relevancies"):
        MultiInstance(spec()).begin(Model(), SimpleNamespace())
    with pytest.raises(UserError, match="actions needs a data set whose classes have parts"):
        Actions(spec()).begin(Model(), SimpleNamespace())
    with pytest.raises(UserError, match="choice needs a data set of questions"):
        Choice(spec()).step(Model(), {"video": None, "text": None})
    batch = dict.fromkeys(("video", "text", "index", "view", "group", "relevancy", "kind"))
    given = {"video_embed": torch.zeros(2, 3), "text_embed": torch.zeros(2, 4, 3)}
    for evaluation in (Choice(spec()), MultiInstance(spec())):
        with pytest.raises(UserError, match="one text a sample, found 4"):
            evaluation.step(lambda video, text: given, batch)
    with pytest.raises(UserError, match="expected texts with one {} each"):
        ZeroShot(spec(), templates=("cut",))
