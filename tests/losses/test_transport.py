"""Norton's loss and its parts: against the published figures, slow references, and the library POT."""

import sys
from pathlib import Path

import pytest
import torch

from videorl.losses import soft_maxima as fine
from videorl.losses.infonce import InfoNCE
from videorl.losses.transport import Norton
from videorl.metrics.transport import sinkhorn
from videorl.registry import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import check, load_case  # noqa: E402


def pooled(tokens, mask):
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def inputs_of(case) -> dict:
    """Hidden states, which have a gradient, masks and pooled embeddings, as the loss takes them."""
    given = case["inputs"]
    text = given["text_outputs"].requires_grad_()
    video = (given["video_noise"] + 0.3 * text.detach().mean(1, keepdim=True)).requires_grad_()
    return {
        "video_embed": pooled(video, given["video_mask"]),
        "text_embed": pooled(text, given["text_mask"]),
        "video_tokens": video,
        "video_token_mask": given["video_mask"].float(),
        "text_tokens": text,
        "text_token_mask": given["text_mask"].float(),
    }


def check_only(case, found) -> None:
    check(case | {"expected": {name: case["expected"][name] for name in found}}, found)


@pytest.mark.parametrize("name", ["default", "beta_0", "published_shapes_64", "threshold_4_alpha_half"])
def test_norton_as_published(name):
    case = load_case(GOLDEN / f"norton/loss_{name}.pt")
    settings, given = case["config"]["loss"], inputs_of(case)
    sequences = settings["sequence_contrast"]
    loss = Norton(
        None,
        soft_targets=settings["beta"],
        iterations=settings["sinkhorn_iterations"],
        sequence_weight=sequences["sequence_contrast_weight"],
        sequence_length=sequences["threshold"],
        bucket=sequences["prompt_ratio"],
        entropy=sequences["scale"],
        alpha=settings["alpha_lse"],
        coarse_weight=settings["fusion_weight"],
    )
    value = loss(**given)
    value.backward()
    similarity = loss.similarity(*(given[name] for name in ("video_embed", "text_embed")), *list(given.values())[2:])
    check_only(
        case,
        {
            "loss": value,
            "sequence_loss": loss.sequences(*given.values()),
            "grad_video_outputs": given["video_tokens"].grad,
            "grad_text_outputs": given["text_tokens"].grad,
            "Q": sinkhorn((given["video_embed"] @ given["text_embed"].T).detach(), loss.iterations),
            "C": similarity,
            "p": loss.bucket_score(similarity) * loss.entropy,
        },
    )


def test_infonce_of_one_direction_as_published():
    case = load_case(GOLDEN / "norton/loss_infonce.pt")
    given = inputs_of(case)
    plain = {"temperature": 1.0, "learn_temperature": False, "cosine": False}
    found = {}
    for way in ("t2v", "v2t", "both"):
        found[way] = InfoNCE(None, direction=way, **plain)(given["video_embed"], given["text_embed"])
    found["t2v_grad_video_outputs"] = torch.autograd.grad(found["t2v"], given["video_tokens"])[0]
    torch.testing.assert_close(2 * found.pop("both"), found["t2v"] + found["v2t"])
    check_only(case, found)


def naive_plan(scores, iterations, bucket=None):
    """Scaling of rows and columns of exp(scores) in float64, one number after the other."""
    kernel, (m, n) = scores.double().exp(), scores.shape
    rows, columns = torch.ones(m).double(), torch.full((n,), m / n).double()
    if bucket is not None:
        framed = torch.full((m + 1, n + 1), float(bucket)).double().exp()
        framed[:m, :n] = kernel
        kernel, rows, columns = framed, torch.tensor([1.0] * m + [n]), torch.tensor([1.0] * n + [m])
    of_columns = torch.ones(kernel.shape[1]).double()
    for _ in range(iterations):
        of_rows = torch.stack([r / sum(k * of_columns) for r, k in zip(rows, kernel)])
        of_columns = torch.stack([c / sum(k * of_rows) for c, k in zip(columns, kernel.T)])
    return (of_rows[:, None] * kernel * of_columns)[:m, :n].float()


@pytest.mark.parametrize("bucket", [None, 0.4])
@pytest.mark.parametrize("shape", [(5, 5), (3, 6)])
def test_sinkhorn_is_the_scaling_of_rows_and_columns(shape, bucket):
    scores = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)) * 3
    plan = sinkhorn(scores.requires_grad_(), 7, None if bucket is None else torch.tensor(bucket))
    expected = torch.stack([naive_plan(s.detach(), 7, bucket) for s in scores])
    torch.testing.assert_close(plan, expected, rtol=1e-5, atol=1e-6)
    assert not plan.requires_grad
    assert sinkhorn(scores.half(), 1).dtype == torch.float32


def test_sinkhorn_is_that_of_pot():
    ot = pytest.importorskip("ot")
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    entropy = 0.5
    uniform = [torch.full((n,), 1 / n, dtype=torch.float64) for n in scores.shape]
    expected = ot.sinkhorn(*uniform, -scores, entropy, stopThr=1e-12, numItermax=5000)
    torch.testing.assert_close(sinkhorn(scores / entropy, 500).double() / 6, expected, rtol=1e-4, atol=1e-7)


def slow_soft_maxima(words, word_mask, frames, frame_mask, alpha):
    """Loops over pairs and places, in the words of the docstring."""
    unit = torch.nn.functional.normalize
    words, frames = unit(words, dim=2) * word_mask[..., None], unit(frames, dim=2) * frame_mask[..., None]
    tables = []
    for outer, outer_mask, inner, inner_mask in (
        (words, word_mask, frames, frame_mask),
        (frames, frame_mask, words, word_mask),
    ):
        table = [
            [
                sum(alpha * ((x @ ys[m].T) / alpha).exp().sum().log() for x in xs) / xs_mask.sum()
                for ys, m in zip(inner, inner_mask)
            ]
            for xs, xs_mask in zip(outer, outer_mask)
        ]
        tables.append(torch.stack([torch.stack(row) for row in table]))
    return tables[0], tables[1].T


@pytest.mark.parametrize("at_once", [1, 60, 10**6])
def test_soft_maxima_in_blocks_are_those_of_loops(at_once, monkeypatch):
    monkeypatch.setattr(fine, "AT_ONCE", at_once)
    draw = torch.Generator().manual_seed(2)
    words = torch.randn(5, 4, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    frames = torch.randn(3, 5, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    word_mask = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0], [0, 1, 1, 1]]).bool()
    frame_mask = torch.tensor([[0, 1, 1, 0, 1], [0, 1, 0, 0, 1], [1, 1, 1, 1, 1]]).bool()
    weights = torch.randn(2, 5, 3, generator=draw, dtype=torch.float64)
    found = [f(words, word_mask, frames, frame_mask, 0.05) for f in (fine.soft_maxima, slow_soft_maxima)]
    for ours, slow in zip(*found):
        torch.testing.assert_close(ours, slow)
    gradients = [torch.autograd.grad(sum((w * t).sum() for w, t in zip(weights, f)), (words, frames)) for f in found]
    torch.testing.assert_close(*gradients)


def test_keys_that_take_parts_of_the_loss_away():
    given = inputs_of(load_case(GOLDEN / "norton/loss_default.pt"))
    embeds = {name: given[name] for name in ("video_embed", "text_embed")}
    videoclip = 2 * InfoNCE(None, temperature=1.0, cosine=False)(**embeds)
    torch.testing.assert_close(Norton(None, soft_targets=0.0, sequence_weight=0.0)(**embeds), videoclip)
    no_bucket, with_bucket = (Norton(None, bucket=b).sequences(*given.values()) for b in (0.0, 0.3))
    assert no_bucket.isfinite()
    assert (no_bucket - with_bucket).abs() > 0.01
    parts = [{k: v[start : start + 16] for k, v in given.items()} for start in (0, 16)]
    of_parts = sum(Norton(None)(**part) for part in parts) / 2
    torch.testing.assert_close(Norton(None, clips_together=16)(**given), of_parts)
    learned = Norton(None, learn_temperature=True)
    learned(**given).backward()
    assert learned.log_scale.grad.abs() > 0.01


def test_what_norton_cannot_do_is_said():
    given = inputs_of(load_case(GOLDEN / "norton/loss_default.pt"))
    with pytest.raises(UserError, match="norton needs video_tokens, .*SEQUENCE_WEIGHT 0"):
        Norton(None)(given["video_embed"], given["text_embed"])
    with pytest.raises(UserError, match="SEQUENCE_LENGTH 5: 32 clips are compared"):
        Norton(None, sequence_length=5)(**given)
    with pytest.raises(UserError, match="CLIPS_TOGETHER 24: a step has 32 clips"):
        Norton(None, clips_together=24)(**given)
