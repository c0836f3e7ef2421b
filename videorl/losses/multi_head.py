"""Losses of a model with a head for each of several data sets, and projections between the heads.

Liang et al., Multi-dataset Training of Transformers for Robust Action Recognition, NeurIPS 2022
(JunweiLiang/MultiTrain, slowfast/models/losses.py).
"""

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videorl.registry import LOSSES, NonNegative, Range, UserError
from videorl.spec import Spec


@LOSSES.register("multi_head")
class MultiHead(nn.Module):
    """sum_d w_d * s_d * ( L(z_d, y_d) + projection_weight * mean over a != d of L(P_ad z_a, y_d) ), over all samples.

    z_d are the logits of head d, y_d its targets, s_d the share of data set d in the sample, P_ad the projection of
    head a's logits to the classes of d. L is the cross-entropy; of data sets with several labels the class-averaged
    binary one. Divided by all samples of the step, not by those of the data set.

    Keys:
        weights: w_d in the order of DATASETS; empty: all 1
        projection_weight: factor of the projection loss (where MULTI.PROJECTION is on)
        add_to_pred: add the projected logits, times projection_weight, to the head's own, and take one loss of the sum
        learn_weights: replace each data set's mean loss S by S / (2 v) + log(v) / 2 with a learned v (Kendall et al.,
            CVPR 2018)
    """

    coupled = False

    def __init__(
        self,
        spec: Spec,
        *,
        weights: Annotated[list[float], Range(">= 0")] = (),
        projection_weight: NonNegative = 1.0,
        add_to_pred: bool = False,
        learn_weights: bool = False,
    ):
        super().__init__()
        if len(spec.labels) < 2:
            raise UserError("loss multi_head needs two or more entries of DATASETS, each with a head")
        if weights and len(weights) != len(spec.labels):
            raise UserError(f"multi_head WEIGHTS {list(weights)}: expected one for each of {', '.join(spec.labels)}")
        self.labels, self.several = dict(spec.labels), spec.several
        self.weights = dict(zip(self.labels, weights or [1.0] * len(self.labels), strict=True))
        self.projection_weight, self.add_to_pred = projection_weight, add_to_pred
        self.log_variance = nn.Parameter(torch.zeros(len(self.labels))) if learn_weights else None

    def count(self, batch) -> int:
        return len(batch["labels"])

    def forward(self, logits: Tensor, labels: Tensor, spaces: Tensor, projected: Tensor | None = None) -> Tensor:
        """logits and labels [B, sum of C], spaces [B, S], projected [B, P] (see `MultiHead` of the model) -> scalar."""
        logits, labels = self._split(logits), self._split(labels)
        projected = {} if projected is None else self._split_projected(projected)
        total = logits[next(iter(logits))].new_zeros(())
        for d, (name, weight) in enumerate(self.weights.items()):
            share, others = spaces[:, d], projected.get(name, [])
            own = logits[name]
            if self.add_to_pred:
                own = own + self.projection_weight * sum(others)
            terms = self._terms(name, own, labels[name], share)
            if others and not self.add_to_pred:
                parts = [self._terms(name, z, labels[name], share) for z in others]
                terms = terms + self.projection_weight * torch.stack(parts).mean(0)
            total = total + self._learned(d, weight * terms.sum(), len(share))
        return total

    def _learned(self, d: int, total: Tensor, samples: int) -> Tensor:
        if self.log_variance is None:
            return total
        log_variance = self.log_variance[d]
        return total / (2 * log_variance.exp()) + samples * log_variance / 2

    def _terms(self, name: str, logits: Tensor, targets: Tensor, share: Tensor) -> Tensor:
        """[B]: the loss of each sample times its share. Targets of a mixed sample sum to its share already."""
        if name in self.several:
            targets = targets / share.clamp(min=1e-12)[:, None]
            return share * F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        # A sample of another data set has no share, even where smoothing gave it targets (the published way).
        return (share > 0) * -(targets * logits.log_softmax(1)).sum(1)

    def _split(self, values: Tensor) -> dict[str, Tensor]:
        """[B, sum of C] -> [B, C] of each label space."""
        return dict(zip(self.labels, values.split(list(self.labels.values()), dim=1), strict=True))

    def _split_projected(self, values: Tensor) -> dict[str, list[Tensor]]:
        """Of each target space the logits projected to it, [B, C] from each other head."""
        others = len(self.labels) - 1
        blocks = values.split([others * classes for classes in self.labels.values()], dim=1)
        return {name: block.chunk(others, dim=1) for name, block in zip(self.labels, blocks, strict=True)}

    @torch.no_grad()
    def monitor(self, logits: Tensor, labels: Tensor, spaces: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Of each data set, right answers and samples; a mixed sample counts where its larger part belongs."""
        found = {}
        logits, labels = self._split(logits), self._split(labels)
        mine = spaces.argmax(1)
        for d, name in enumerate(self.labels):
            if name not in self.several:
                right = (logits[name].argmax(1) == labels[name].argmax(1)) & (mine == d)
                found[f"top1_{name}"] = right.sum(), (mine == d).sum()
        return found


@LOSSES.register("sparsity")
class Sparsity(nn.Module):
    """Sum of the absolute values of all projection weights: which class of one data set tells of which of another."""

    coupled = False

    def __init__(self, spec: Spec):
        super().__init__()
        if not spec.head.projection:
            raise UserError("loss sparsity is about the maps between heads: set MULTI.PROJECTION True")

    def count(self, batch: Mapping) -> int:
        return len(batch["labels"])

    def forward(self, projection_weights: Tensor, labels: Tensor) -> Tensor:
        """projection_weights [N]; the same for every sample, so that the mean over samples is the penalty itself."""
        return len(labels) * projection_weights.abs().sum()
