"""MixUp (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of whole batches, as timm and PySlowFast draw and apply them.

The partner of a sample is its mirror place in the batch (`flip(0)`); one draw holds for the batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Mix:
    """Share of a sample's own pixels and label, and the box (top, bottom, left, right) that CutMix takes over."""

    lam: float
    box: tuple[int, int, int, int] | None = None


def draw(
    rng, *, mixup_alpha: float, cutmix_alpha: float, prob: float, switch_prob: float, height: int, width: int
) -> Mix:
    """How to mix a batch: not at all (lam 1) with chance 1 - prob; where both alphas are positive, CutMix with
    chance switch_prob. `rng`: anything with `random()`, `beta(a, b)` and `integers(low, high)`.
    """
    if max(mixup_alpha, cutmix_alpha) <= 0 or rng.random() >= prob:
        return Mix(1.0)
    cutmix = rng.random() < switch_prob if min(mixup_alpha, cutmix_alpha) > 0 else cutmix_alpha > 0
    alpha = cutmix_alpha if cutmix else mixup_alpha
    lam = float(rng.beta(alpha, alpha))
    if not cutmix:
        return Mix(lam)
    y, x = int(rng.integers(0, height)), int(rng.integers(0, width))
    return cut_at(y, x, lam, height, width)


def cut_at(y: int, x: int, lam: float, height: int, width: int) -> Mix:
    """The CutMix box of area 1 - lam around (y, x); lam is then corrected for what the borders cut off."""
    side = math.sqrt(1 - lam)
    h, w = int(height * side), int(width * side)
    top, bottom = max(y - h // 2, 0), min(y + h // 2, height)
    left, right = max(x - w // 2, 0), min(x + w // 2, width)
    return Mix(1.0 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def mix_video(video: torch.Tensor, mix: Mix) -> torch.Tensor:
    """float [B, 3, T, H, W] -> a new tensor of that shape (the same tensor where there is nothing to mix)."""
    if mix.lam == 1.0:
        return video
    if mix.box is None:
        return torch.lerp(video.flip(0), video, mix.lam)
    top, bottom, left, right = mix.box
    mixed = video.clone()
    mixed[..., top:bottom, left:right] = video.flip(0)[..., top:bottom, left:right]
    return mixed


def smooth(labels: torch.Tensor, sizes: Sequence[int], smoothing: float, spaces: torch.Tensor | None = None):
    """int [B] or float targets [B, C] -> float [B, C], `y (1 - s) + s / classes` in the label spaces of a sample.

    `sizes`: classes of each label space, C together. `spaces` [B, S]: share of each in a sample; None: all.
    """
    if not labels.is_floating_point():
        labels = F.one_hot(labels, sum(sizes)).float()
    even = torch.cat([torch.full((size,), smoothing / size) for size in sizes])
    if spaces is not None:
        even = even * spaces.repeat_interleave(torch.tensor(sizes), dim=1)
    return labels * (1 - smoothing) + even


def mix_rows(values: torch.Tensor, mix: Mix) -> torch.Tensor:
    """Targets or shares [B, ...], each row with its partner's."""
    return values * mix.lam + values.flip(0) * (1 - mix.lam)


@dataclass(frozen=True)
class Mixer:
    """Mixes the labels of a collated batch and leaves in `batch["mix"]` how its video is to be mixed on the device.

    `sizes`: classes of each label space; `settings`: of `draw`. One draw for a whole optimizer step, from (seed, epoch,
    step): every micro-batch of every rank is mixed alike, and `Plan.chunks` keeps partners together.

    Where the partner is of another label space, its targets and its share of the sample go to that space's head.
    The published MultiTrain smooths all heads by one number of classes (`paper_classes`) and leaves shares unmixed, so
    that the partner's part of the target is lost; 0 for the right way.
    """

    seed: int
    sizes: tuple[int, ...]
    smoothing: float
    settings: dict
    paper_classes: int = 0

    def __call__(self, batch: dict, job) -> dict:
        mix = draw(np.random.default_rng([self.seed, job.epoch, job.step]), **self.settings)
        return {**batch, **self.targets(batch["labels"], batch.get("spaces"), mix), "mix": mix}

    def targets(self, labels: torch.Tensor, spaces: torch.Tensor | None, mix: Mix) -> dict[str, torch.Tensor]:
        """`labels` and, with several label spaces, `spaces`, after smoothing and mixing."""
        if self.paper_classes and spaces is not None:
            smoothed = labels * (1 - self.smoothing) + self.smoothing / self.paper_classes
            return {"labels": mix_rows(smoothed, mix)}
        mixed = {"labels": mix_rows(smooth(labels, self.sizes, self.smoothing, spaces), mix)}
        return mixed if spaces is None else mixed | {"spaces": mix_rows(spaces, mix)}
