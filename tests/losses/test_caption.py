"""The loss of narrators against the golden figures of LaViLa."""

import math
import sys
from pathlib import Path

import pytest
import torch

from videorl.losses.caption import Caption, perplexity

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import assert_close, limits, load_case  # noqa: E402


def golden(padding: int):
    """The case, its logits `[B, M, V]`, and its texts with a start, filled up with `padding`."""
    case = load_case(GOLDEN / "narrator/caption_loss.pt")
    labels = case["inputs"]["labels"]
    text = torch.nn.functional.pad(labels.where(labels != 0, padding), (1, 0), value=3)
    return case, case["inputs"]["logits"].mT.clone().requires_grad_(), text


@pytest.mark.parametrize("padding", [0, -1])
def test_published_mean_over_positions(padding):
    case, logits, text = golden(padding)
    loss = Caption(None, mean="positions")
    value = loss(logits, text) / loss.count({"text": text})
    value.backward()
    assert_close(value, torch.tensor(case["expected"]["loss"]), *limits(case))
    assert_close(logits.grad.mT, case["expected"]["grad"], *limits(case))


def test_mean_over_real_tokens():
    _, logits, text = golden(-1)
    logits = logits.detach()
    loss = Caption(None)
    rows = [-logits.log_softmax(-1)[b, k, text[b, k + 1]] for b in range(3) for k in range(6) if text[b, k + 1] >= 0]
    assert loss.count({"text": text}) == len(rows) == 10
    assert float(loss(logits, text)) == pytest.approx(float(sum(rows)), rel=1e-6)
    assert float(loss(logits, text[:, None])) == float(loss(logits, text))
    nats, count = loss.monitor(logits, text)["perplexity"]
    assert perplexity(float(nats / count)) == pytest.approx(math.exp(float(sum(rows)) / 10), rel=1e-6)
    assert perplexity(1e9) == math.inf


def test_token_0_is_a_token_and_left_out_only_as_published():
    logits, text = torch.randn(1, 3, 5), torch.tensor([[4, 0, 2, 0]])
    assert float(Caption(None)(logits, text)) > float(Caption(None, mean="positions")(logits, text)) > 0
    assert [Caption(None, mean=mean).count({"text": text}) for mean in ("tokens", "positions")] == [3, 3]


def test_padding_at_the_end_of_all_texts_may_be_left_out_of_the_logits():
    text = torch.tensor([[1, 2, 3, -1, -1], [1, 4, -1, -1, -1]])
    logits = torch.randn(2, 4, 5)
    for mean in ("tokens", "positions"):
        assert Caption(None, mean=mean)(logits, text) == Caption(None, mean=mean)(logits[:, :2], text)
