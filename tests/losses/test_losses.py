"""Losses against the golden figures of the published systems, and against torch's own."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from videorl.losses.classify import BinaryCrossEntropy, CrossEntropy
from videorl.losses.infonce import InfoNCE
from videorl.losses.informative import Informative
from videorl.losses.milnce import MILNCE
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
    assert_close(
        {"loss": loss, "grad_video": video.grad, "grad_text": text.grad},
        {k: expected[k] for k in ("loss", "grad_video", "grad_text")},
        atol,
        max(rtol, 3e-6),
    )


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


def test_infonce():
    case = load_case(GOLDEN / "lavila/losses.pt")
    expected = case["expected"]["clip"]
    video, text = case["inputs"]["video"].requires_grad_(), case["inputs"]["text"].requires_grad_()
    criterion = InfoNCE(None)
    loss = criterion(video, text)
    loss.backward()
    got = {"loss": loss, "grad_video": video.grad, "grad_text": text.grad, "grad_logit_scale": criterion.log_scale.grad}
    assert_close(got, {k: expected[k] for k in got}, 1e-6, 1e-5)


def test_cross_entropy_is_the_sum_of_torch_s():
    logits, labels = torch.randn(5, 7), torch.randint(7, (5,))
    loss = CrossEntropy(Spec(Clip(2, 1, 4, 4), {"a": 7}))
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
