"""The loss of masked autoencoders against the golden figures of V-SWIFT and VideoMAE V2, and a loop over tokens."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from videorl import config
from videorl.clip.masks import draw as draw_masks
from videorl.losses.pixels import MaskedPixels
from videorl.metrics.pixels import unseen
from videorl.registry import EVALS, LOSSES
from videorl.spec import Clip, Masking, Spec

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import assert_close, check, load_case  # noqa: E402

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
SPEC = Spec(Clip(4, 1, 8, 8), patch=(2, 4, 4), masking=Masking(0.75))
VISIBLE = torch.tensor([[0, 3], [2, 7]])
MASKED = torch.tensor([[1, 2, 3, 6], [0, 2, 6, 7]])  # of these 3, and 2 and 7, are visible


def numbers(mask: torch.Tensor) -> torch.Tensor:
    """The true places of each row, `[B, K]`."""
    return mask.nonzero()[:, 1].view(len(mask), -1)


def draw() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8, generator=generator)
    predicted = torch.randn(2, 4, 96, generator=generator)
    return {"predicted": predicted, "pixels": pixels, "visible": VISIBLE, "masked": MASKED}


@pytest.mark.parametrize("name", ["pretrain_small", "pretrain_patch16"])
def test_published_targets_and_losses(name):
    case = load_case(GOLDEN / f"videomae/{name}.pt")
    config, expected = case["config"], case["expected"]
    patch = (config["tubelet_size"], config["patch_size"], config["patch_size"])
    loss = MaskedPixels(Spec(Clip(config["frames"], 1, config["img_size"], config["img_size"]), patch=patch))
    video = case["inputs"]["video"].transpose(1, 2)
    visible, masked = numbers(~expected["mask"]), numbers(expected["mask"])
    # V-SWIFT standardises the clip as its encoder gets it, VideoMAE the clip in 0..1.
    check(case, {"target": loss.targets(255 * video, masked)})
    pixels = 255 * (video * STD + MEAN)
    check(case, {"v2_target": loss.targets(pixels, masked)})
    if isinstance(expected["prediction_raster_order"], torch.Tensor):
        predicted = expected["prediction_raster_order"]
        total = loss(predicted, 255 * video, visible, masked)
        check(case, {"loss_raster_order": total / loss.count({"visible": visible, "masked": masked})})
        total = loss(predicted, pixels, visible, masked)
        check(case, {"v2_loss": total / masked.numel()})
    predicted_by_decoder = numbers(~case["inputs"]["decoder_mask"])
    assert_close(unseen(predicted_by_decoder, visible).sum(1), expected["v2_decoder_masked_scored"])
    assert (
        loss.count({"visible": visible, "masked": predicted_by_decoder}) == expected["v2_decoder_masked_scored"].sum()
    )


def test_seen_tokens_do_not_count():
    batch, loss = draw(), MaskedPixels(SPEC)
    targets, total, counted = loss.targets(batch["pixels"], MASKED), 0.0, 0
    for b in range(2):
        for m, token in enumerate(MASKED[b].tolist()):
            if token not in VISIBLE[b].tolist():
                total += float((batch["predicted"][b, m] - targets[b, m]).square().mean())
                counted += 1
    assert loss.count(batch) == counted == 5
    assert float(loss(**batch)) == pytest.approx(total, rel=1e-5)


def test_tokens_are_counted_from_sizes_where_all_are_hidden_or_seen():
    for masking in (SPEC.masking, replace(SPEC.masking, ratio=0.5, decoder="running_cell")):
        drawn = [draw_masks(np.random.default_rng(seed), (2, 2, 2), masking) for seed in range(3)]
        visible, masked = (torch.tensor(np.stack(rows)) for rows in zip(*drawn))
        batch = {"visible": visible, "masked": masked}
        loss = MaskedPixels(replace(SPEC, masking=masking))
        assert loss.count(batch) == unseen(masked, visible).sum()
    assert MaskedPixels(SPEC).tokens == 8


def test_gradient_of_one_token():
    batch, loss = draw(), MaskedPixels(SPEC)
    predicted = batch["predicted"].requires_grad_()
    loss(**batch).backward()
    targets = loss.targets(batch["pixels"], MASKED)
    torch.testing.assert_close(predicted.grad[0, 0], 2 / 96 * (predicted - targets)[0, 0])
    assert predicted.grad[0, 2].eq(0).all()


def test_pixels_as_they_are():
    batch, loss = draw(), MaskedPixels(replace(SPEC, masking=Masking(0.75, normalise=False)))
    first = batch["pixels"][0, :2, :, :4, 4:].permute(0, 2, 3, 1).flatten() / 255  # token 1
    torch.testing.assert_close(loss.targets(batch["pixels"], MASKED)[0, 0], first)


@pytest.mark.parametrize(("normalise", "target"), [(True, "tubelet"), (False, "tubelet"), (True, "frame")])
def test_one_key_says_what_the_loss_and_its_evaluation_take_for_targets(normalise, target):
    named = ["LOSSES.a.NAME", "masked_pixels", "EVALS.b.NAME", "reconstruction", "EVALS.b.DATASET", "kinetics"]
    named += ["MASK.RATIO", "0.9", "MASK.NORMALISE", str(normalise), "MASK.TARGET", target]
    cfg = config.load([], named)
    for what, name in ((LOSSES, "a"), (EVALS, "b")):
        entry, values = config.component(cfg, what, name)
        targets = entry(config.spec(cfg), values=values).targets
        assert (targets.standard, targets.first_frame) == (normalise, target == "frame")


def test_every_key_is_documented():
    assert [name for name, key in LOSSES["masked_pixels"].keys.items() if not key.doc] == []
