"""The multi-data-set loss against MultiTrain's golden figures, and by hand."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from videorl.losses.multi_head import MultiHead, Sparsity
from videorl.registry import UserError
from videorl.spec import Clip, Head, Spec

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import assert_close, limits, load_case  # noqa: E402

CASE = load_case(GOLDEN / "multitrain/multi_head_loss.pt")


def loss_of(settings: dict) -> tuple[MultiHead, Spec]:
    names = settings["MULTI_DATASETS"]
    several = {n for n, f in zip(names, settings["MULTI_LOSS_FUNCS"]) if f.startswith("bce")}
    labels = dict(zip(names, settings["MULTI_NUM_CLASSES"]))
    spec = Spec(Clip(2, 1, 4, 4), labels, several=frozenset(several))
    loss = MultiHead(
        spec,
        weights=[float(w) for w in settings["MULTI_LOSS_WEIGHTS"]],
        projection_weight=settings.get("MULTI_PROJ_LOSS_WEIGHT", 1.0),
        add_to_pred=settings.get("MULTI_CROSS_PROJ_ADD_TO_PRED", False),
        learn_weights=settings.get("MULTI_USE_MTL_WEIGHT", False),
    )
    return loss, spec


@pytest.mark.parametrize("number", range(len(CASE["inputs"]["cases"])))
def test_equals_multitrain(number):
    given, expected = CASE["inputs"]["cases"][number], CASE["expected"]["cases"][number]
    settings = given["settings"]
    names = settings["MULTI_DATASETS"]
    loss, _ = loss_of(settings)
    predictions = {n: v.clone().requires_grad_() for n, v in given["predictions"].items()}
    logits = torch.cat([predictions[n] for n in names], 1)
    labels = torch.cat([given["labels"][n] for n in names], 1)
    spaces = torch.stack([given["masks"][n].float() for n in names], 1)
    projected = None
    if settings["MULTI_ADD_CROSS_PROJ"]:
        projected = torch.cat([predictions[f"{a}_{b}"] for b in names for a in names if a != b], 1)
    value = loss(logits, labels, spaces, projected) / loss.count({"labels": labels})
    value.backward()
    atol, rtol = limits(CASE)
    assert_close(value, expected["loss"], atol, rtol)
    for name, gradient in expected["grads"].items():
        nothing = torch.zeros_like(predictions[name])
        got = predictions[name].grad
        assert_close(nothing if got is None else got, nothing if gradient is None else gradient, atol, rtol, name)


SPEC = Spec(Clip(2, 1, 4, 4), {"a": 3, "b_c": 2}, several=frozenset({"b_c"}))


def test_a_mixed_sample_counts_in_both_heads_by_its_shares():
    logits, shares = torch.randn(1, 5), torch.tensor([[0.7, 0.3]])
    labels = torch.tensor([[0.0, 0.7, 0.0, 0.3, 0.0]])
    a = 0.7 * F.cross_entropy(logits[:, :3], torch.tensor([1]))
    b = 0.3 * F.binary_cross_entropy_with_logits(logits[:, 3:], torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(MultiHead(SPEC)(logits, labels, shares), a + b)


def test_learned_weights_are_trained():
    loss = MultiHead(SPEC, learn_weights=True)
    logits, labels = torch.randn(4, 5), torch.cat([torch.eye(3)[[0, 1, 2, 0]], torch.zeros(4, 2)], 1)
    loss(logits, labels, torch.tensor([[1.0, 0.0]] * 4)).backward()
    assert [n for n, _ in loss.named_parameters()] == ["log_variance"]
    mean = F.cross_entropy(logits[:, :3], torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(loss.log_variance.grad / 4, torch.stack([0.5 - mean / 2, torch.tensor(0.5)]))


def test_right_answers_are_counted_by_data_set():
    spec = Spec(Clip(2, 1, 4, 4), {"a": 3, "b": 2})
    logits = torch.tensor([[9.0, 0, 0, 0, 1], [9, 0, 0, 0, 1], [0, 9, 0, 5, 0]])
    labels = torch.tensor([[1.0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0]])
    found = MultiHead(spec).monitor(logits, labels, torch.tensor([[1.0, 0], [1, 0], [0, 1]]))
    assert {n: (int(r), int(of)) for n, (r, of) in found.items()} == {"top1_a": (1, 2), "top1_b": (1, 1)}


def test_one_weight_for_each_data_set():
    with pytest.raises(UserError, match=r"WEIGHTS \[1.0\]: expected one for each of a, b_c"):
        MultiHead(SPEC, weights=[1.0])


def test_sparsity_is_the_sum_of_absolute_values():
    weights = torch.tensor([1.0, -2.0, 0.5])
    assert Sparsity(replace(SPEC, head=Head(projection=True)))(weights, torch.zeros(4, 5)) / 4 == 3.5
