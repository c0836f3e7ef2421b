"""Losses against the golden figures of the published systems, and against torch's own."""

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy

from videorl.clip.mixup import smooth
from videorl.losses.classify import BinaryCrossEntropy, CrossEntropy
from videorl.losses.egonce import EgoNCE, ego_nce
from videorl.losses.infonce import InfoNCE
from videorl.losses.informative import Informative
from videorl.losses.milnce import MILNCE
from videorl.losses.ranking import MaxMargin
from videorl.registry import UserError
from videorl.spec import Clip, Spec

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import assert_close, limits, load_case  # noqa: E402


@pytest.mark.parametrize("number", range(6))
def test_milnce(number):
    case = load_case(GOLDEN / "milnce/loss.pt")
    given, expected = case["inputs"]["cases"][number], case["expected"]["cases"][number]
    video = given["video"].requires_grad_()
    text = given["text"].requires_grad_()
    loss = MILNCE(None)(video, text.view(given["B"], given["K"], given["D"]))
    loss.backward()
    atol, rtol = limits(case)
    assert_close(loss, expected["loss"], atol, rtol)
    # The published gradients are those of float32 and themselves up to 4e-6 from the true ones (next test).
    gradients = {"grad_video": video.grad, "grad_text": text.grad}
    assert_close(gradients, {k: expected[k] for k in gradients}, atol, 4e-6)


@pytest.mark.parametrize("number", range(6))
def test_milnce_in_float64_is_its_formula(number):
    case = load_case(GOLDEN / "milnce/loss.pt")
    given, expected = case["inputs"]["cases"][number], case["expected"]["cases"][number]
    video, text = given["video"].double().requires_grad_(), given["text"].double().requires_grad_()
    clips, texts = len(video), given["K"]
    terms = []
    for i in range(clips):
        x = [[video[a] @ text[b * texts + k] for k in range(texts)] for a, b in [(i, j) for j in range(clips)]]
        y = [[video[j] @ text[i * texts + k] for k in range(texts)] for j in range(clips)]
        everything = torch.stack([value for row in x + y for value in row])
        terms.append(everything.logsumexp(0) - torch.stack(x[i]).logsumexp(0))
    gradients = torch.autograd.grad(torch.stack(terms).mean(), (video, text))
    loss = MILNCE(None)(video, text.view(clips, texts, -1))
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(loss, (video, text))
    torch.testing.assert_close(ours, gradients, rtol=1e-10, atol=1e-14)
    off = [(a - expected[k]).abs().max().item() for a, k in zip(gradients, ("grad_video", "grad_text"))]
    assert max(off) <= 1e-6 + 4e-6 * max(g.abs().max().item() for g in gradients)


def test_milnce_in_blocks_is_milnce_at_once(monkeypatch):
    video, text = torch.randn(7, 6, requires_grad=True), torch.randn(7, 3, 6, requires_grad=True)
    whole = MILNCE(None)(video, text)
    monkeypatch.setattr("videorl.losses.milnce.AT_ONCE", 2 * 21)
    parts = MILNCE(None)(video, text)
    torch.testing.assert_close(parts, whole)
    gradients = [torch.autograd.grad(loss, (video, text)) for loss in (parts, whole)]
    torch.testing.assert_close(*gradients)


def test_milnce_of_a_lone_clip_is_ln_2():
    loss = MILNCE(None)(torch.randn(1, 6), torch.randn(1, 3, 6))
    assert loss.item() == pytest.approx(0.693147, abs=1e-6)


def test_informative():
    case = load_case(GOLDEN / "multitrain/informative_loss.pt")
    atol, rtol = limits(case)
    for given, expected in zip(case["inputs"]["cases"], case["expected"]["cases"], strict=True):
        features = given["embedding"].requires_grad_()
        loss = Informative(None)(features)
        loss.backward()
        assert_close({"loss": loss, "grad": features.grad}, {k: expected[k] for k in ("loss", "grad")}, atol, rtol)


LAVILA = {
    "clip": (lambda: InfoNCE(None), {}),
    "ssl+use_vissl=True": (
        lambda: InfoNCE(None, pseudo_temperature=0.1),
        {"pseudo": lambda given: given["is_human"] == 0},
    ),
    "max_margin+margin=0.2": (lambda: MaxMargin(None), {}),
    "max_margin+margin=0.2+fix_norm=False": (lambda: MaxMargin(None, fix_norm=False), {}),
    "adaptive_max_margin+margin=0.4": (
        lambda: MaxMargin(None, margin=0.4, adaptive=True),
        {"relevancy": lambda given: given["weight"]},
    ),
}


@pytest.mark.parametrize("name", LAVILA)
def test_losses_of_lavila(name):
    case = load_case(GOLDEN / "lavila/losses.pt")
    given, expected = case["inputs"], case["expected"][name]
    make, more = LAVILA[name]
    criterion, video, text = make(), given["video"].requires_grad_(), given["text"].requires_grad_()
    loss = criterion(video, text, **{k: pick(given) for k, pick in more.items()})
    loss.backward()
    got = {"loss": loss, "grad_video": video.grad, "grad_text": text.grad}
    scales = {"log_scale": "grad_logit_scale", "log_pseudo_scale": "grad_logit_scale_pseudo"}
    got |= {scales[n]: p.grad for n, p in criterion.named_parameters()}
    assert_close(got, {k: expected[k] for k in got}, *limits(case))


@pytest.mark.parametrize(
    ("name", "words"), [("normsoftmax", ""), ("egonce", "verb noun"), ("egonce_noun_only", "noun")]
)
def test_losses_of_egovlp(name, words):
    case = load_case(GOLDEN / "lavila/egovlp_losses.pt")
    given, expected = case["inputs"], case["expected"][name]
    similarity = given["similarity"].requires_grad_()
    shared = [given[kind] > 0 for kind in words.split()] or [torch.zeros(8, 8, dtype=torch.bool)]
    loss = ego_nce(similarity / 0.05, torch.eye(8, dtype=torch.bool) | torch.stack(shared).all(0))
    loss.backward()
    assert_close({"loss": loss, "grad": similarity.grad}, expected, *limits(case))


def test_egonce_finds_who_shares_words_and_norm_softmax_is_twice_infonce():
    verbs, nouns = torch.eye(3)[[0, 0, 1, 0]], torch.tensor([[1, 1, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1]])
    both, nouns_alone = EgoNCE(None).shared(verbs, nouns), EgoNCE(None, verbs=False).shared(verbs, nouns)
    assert torch.nonzero(both.triu(1)).tolist() == [[0, 1]]
    assert torch.nonzero(nouns_alone.triu(1)).tolist() == [[0, 1], [0, 2], [1, 2], [2, 3]]
    video, text = torch.randn(4, 6), torch.randn(4, 6)
    alone = EgoNCE(None)(video, text, torch.eye(4), torch.eye(4))
    torch.testing.assert_close(alone, 2 * InfoNCE(None, temperature=0.05)(video, text))
    torch.testing.assert_close(EgoNCE(None)(video, text[:, None], torch.eye(4), torch.eye(4)), alone)


@pytest.mark.parametrize(("log_scale", "back_after"), [(math.log(1000.0), "down"), (-2.0, "up")])
def test_a_temperature_outside_its_clamp_comes_back(log_scale, back_after):
    """The value is clamped and the gradient passes: at the limit a step inwards is a step."""
    torch.manual_seed(0)
    video = torch.randn(6, 8)
    text = video if back_after == "up" else -video  # perfect: a larger scale helps; all wrong: a smaller one
    criterion, limit = InfoNCE(None), math.log(100.0) if back_after == "down" else 0.0
    criterion.log_scale.data.fill_(log_scale)
    optimizer = torch.optim.SGD(criterion.parameters(), lr=0.01)
    loss = criterion(video, text)
    torch.testing.assert_close(criterion.log_scale.detach(), torch.tensor(limit))
    logits = math.exp(limit) * F.normalize(video, dim=1) @ F.normalize(text, dim=1).T
    by_hand = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    torch.testing.assert_close(loss, by_hand)
    loss.backward()
    optimizer.step()
    moved = criterion.log_scale.item() - limit
    assert moved < -1e-3 if back_after == "down" else moved > 1e-3


def test_a_first_temperature_outside_the_clamp_is_said(caplog):
    criterion = InfoNCE(None, temperature=0.001, learn_temperature=False)
    assert "infonce TEMPERATURE 0.001: begins at 0.01, for 1 / MAX_SCALE" in caplog.text
    assert float(criterion.log_scale) == pytest.approx(math.log(100.0))
    assert not criterion.log_scale.requires_grad


def test_infonce_of_several_texts():
    video, text = torch.randn(4, 6), torch.randn(4, 3, 6)
    one = InfoNCE(None)
    torch.testing.assert_close(one(video, text[:, :1]), one(video, text[:, 0]))
    with pytest.raises(UserError, match="infonce expects one text a clip, found 3.*SEVERAL_POSITIVES True"):
        one(video, text)
    found = InfoNCE(None, several_positives=True)(video, text)
    logits = (F.normalize(video, dim=1) @ F.normalize(text.flatten(0, 1), dim=1).T / 0.07).double().exp()
    of_video = [-(logits[i, 3 * i : 3 * i + 3].sum() / logits[i].sum()).log() for i in range(4)]
    of_text = [-(logits[j // 3, j] / logits[:, j].sum()).log() for j in range(12)]
    by_hand = (sum(of_video) / 4 + sum(of_text) / 12) / 2
    torch.testing.assert_close(found.double(), by_hand, rtol=1e-5, atol=1e-6)
    right = InfoNCE(None, several_positives=True).monitor(video, text)["top1"]
    assert right == (sum(int(logits[i].argmax()) // 3 == i for i in range(4)), 4)


@pytest.mark.parametrize("loss", [Informative(None), MaxMargin(None)])
def test_losses_that_compare_samples_refuse_a_lone_one(loss):
    with pytest.raises(UserError, match="two or more in a step, found one"):
        loss(*[torch.randn(1, 6)] * (2 if isinstance(loss, MaxMargin) else 1))


ONE = Spec(Clip(2, 1, 4, 4), {"a": 7})


def test_soft_cross_entropy_as_published():
    case = load_case(GOLDEN / "mvit/soft_cross_entropy.pt")
    logits = case["inputs"]["logits"].requires_grad_()
    loss = CrossEntropy(ONE)(logits, case["inputs"]["target"]) / len(logits)
    loss.backward()
    assert_close({"loss": loss, "grad": logits.grad}, case["expected"], *limits(case))


@pytest.mark.parametrize("loss", [CrossEntropy(ONE), BinaryCrossEntropy(ONE)])
@pytest.mark.parametrize(
    "labels",
    [torch.zeros(5, 8), torch.zeros(4, dtype=torch.int64), torch.zeros(5), torch.zeros(5, 7, dtype=torch.int64)],
)
def test_labels_of_another_shape_are_refused(loss, labels):
    with pytest.raises(UserError, match=r"logits \[5, 7\] and labels \["):
        loss(torch.randn(5, 7), labels)


def test_several_labels_are_not_for_cross_entropy():
    with pytest.raises(
        UserError, match="one label a video, found DATA.MULTI_LABEL True: set MODEL.LOSS_FUNC bce_logit"
    ):
        CrossEntropy(Spec(Clip(2, 1, 4, 4), {"a": 7}, several=frozenset("a")))


def test_binary_cross_entropy_of_one_label():
    logits, labels = torch.randn(4, 6), torch.tensor([0, 5, 2, 2])
    one = F.binary_cross_entropy_with_logits(logits, torch.eye(6)[labels])
    torch.testing.assert_close(BinaryCrossEntropy(ONE)(logits, labels) / 4, one)


def test_label_smoothing_without_mixup_is_timm_s():
    """A slow reference: (1 - s) times the log-probability of the label, and s times the mean of all classes'."""
    torch.manual_seed(0)
    logits, labels, s = torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 3, 6, 3, 1]), 0.1
    logs = [(z - torch.logsumexp(z, 0)) for z in logits]
    expected = -sum((1 - s) * row[label] + s * row.mean() for row, label in zip(logs, labels, strict=True))
    loss = CrossEntropy(ONE, label_smoothing=s)
    assert loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-12)
    assert loss(logits, labels).item() / 5 == pytest.approx(LabelSmoothingCrossEntropy(s)(logits, labels).item())
    # Soft targets as MixUp without mixing smooths them.
    assert loss(logits, F.one_hot(labels, 7).double()).item() == pytest.approx(
        CrossEntropy(ONE)(logits, smooth(labels, [7], s).double()).item(), rel=1e-6
    )


def test_cross_entropy_is_the_sum_of_torch_s():
    logits, labels = torch.randn(5, 7), torch.randint(7, (5,))
    loss = CrossEntropy(ONE)
    assert loss(logits, labels) == F.cross_entropy(logits, labels, reduction="sum")
    soft = torch.rand(5, 7).softmax(1)
    by_hand = -(soft * logits.log_softmax(1)).sum()
    torch.testing.assert_close(loss(logits, soft), by_hand)
    assert loss.count({"labels": labels}) == 5
    assert loss.monitor(logits, labels)["top1"] == ((logits.argmax(1) == labels).sum(), 5)


def test_binary_cross_entropy_averages_over_classes():
    logits, targets = torch.randn(4, 6), torch.randint(2, (4, 6)).float()
    mean = F.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(BinaryCrossEntropy(Spec(Clip(2, 1, 4, 4), {"a": 6}))(logits, targets) / 4, mean)
