"""Informative loss: embeddings should vary in every dimension, and the dimensions should not repeat each other.

The variance and covariance terms of VICReg (Bardes et al., ICLR 2022) as used in Liang et al., Multi-dataset Training
of Transformers for Robust Action Recognition, NeurIPS 2022 (JunweiLiang/MultiTrain).
"""

import torch
from torch import Tensor, nn

from videorl.registry import LOSSES, NonNegative, UserError


@LOSSES.register("informative")
class Informative(nn.Module):
    """std_weight * mean_j relu(1 - sqrt(Var_j + 1e-4)) + covariance_weight * sum_{j != k} C_jk^2 / D.

    Keys:
        std_weight: factor of the variance term
        covariance_weight: factor of the covariance term
        learn_weight: replace the loss L by L / (2 v) + log(v) / 2 with a learned v (Kendall et al., CVPR 2018)
    """

    coupled = True

    def __init__(
        self, spec, *, std_weight: NonNegative = 25.0, covariance_weight: NonNegative = 1.0, learn_weight: bool = False
    ):
        super().__init__()
        self.std_weight, self.covariance_weight = std_weight, covariance_weight
        self.log_variance = nn.Parameter(torch.zeros(())) if learn_weight else None

    def forward(self, features: Tensor, expanded: Tensor | None = None) -> Tensor:
        """features or, where the model has an expander, `expanded` [B, D] -> scalar. Needs two samples in a step."""
        loss = self._loss(features if expanded is None else expanded)
        if self.log_variance is None:
            return loss
        return loss / (2 * self.log_variance.exp()) + self.log_variance / 2

    def _loss(self, features: Tensor) -> Tensor:
        samples, dim = features.shape
        if samples < 2:
            raise UserError("informative compares samples: expected two or more in a step, found one")
        centred = features - features.mean(0)
        spread = (1 - (centred.var(0) + 1e-4).sqrt()).relu().mean()
        covariance = centred.T @ centred / (samples - 1)
        repeated = (covariance.square().sum() - covariance.diagonal().square().sum()) / dim
        return self.std_weight * spread + self.covariance_weight * repeated
