"""Informative loss: embeddings should vary in every dimension, and the dimensions should not repeat each other.

The variance and covariance terms of VICReg (Bardes et al., ICLR 2022) as used in Liang et al., Multi-dataset Training
of Transformers for Robust Action Recognition, NeurIPS 2022 (JunweiLiang/MultiTrain).
"""

from torch import Tensor, nn

from videorl.registry import LOSSES


@LOSSES.register("informative")
class Informative(nn.Module):
    """std_weight * mean_j relu(1 - sqrt(Var_j + 1e-4)) + covariance_weight * sum_{j != k} C_jk^2 / D.

    Keys:
        std_weight: factor of the variance term
        covariance_weight: factor of the covariance term
    """

    coupled = True

    def __init__(self, spec, *, std_weight: float = 25.0, covariance_weight: float = 1.0):
        super().__init__()
        self.std_weight, self.covariance_weight = std_weight, covariance_weight

    def forward(self, features: Tensor) -> Tensor:
        """features [B, D] -> scalar. Needs at least two samples in a step."""
        samples, dim = features.shape
        centred = features - features.mean(0)
        spread = (1 - (centred.var(0) + 1e-4).sqrt()).relu().mean()
        covariance = centred.T @ centred / (samples - 1)
        repeated = (covariance.square().sum() - covariance.diagonal().square().sum()) / dim
        return self.std_weight * spread + self.covariance_weight * repeated
