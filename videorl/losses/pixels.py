"""The loss of masked autoencoders: how far the predicted pixels of the hidden tokens are off.

Tong et al., VideoMAE, NeurIPS 2022; with a mask for the decoder too, Wang et al., VideoMAE V2, CVPR 2023.
"""

import torch
from torch import Tensor, nn

from videorl.metrics.pixels import patches, standardised, unseen
from videorl.registry import LOSSES
from videorl.spec import Spec


@LOSSES.register("masked_pixels", normalise="MASK.NORMALISE")
class MaskedPixels(nn.Module):
    """Mean squared error over the pixels of a token, summed over the predicted tokens that the encoder did not see.

    Keys:
        normalise: predict pixels with mean 0 and variance 1 for each patch and colour, not pixels in 0..1
    """

    coupled = False

    def __init__(self, spec: Spec, *, normalise: bool = True):
        super().__init__()
        self.patch, self.channels, self.normalise = tuple(spec.patch), spec.clip.channels, normalise

    def count(self, batch) -> int:
        return int(unseen(batch["masked"], batch["visible"]).sum())

    def forward(self, predicted: Tensor, pixels: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """predicted [B, M, P], pixels [B, T, C, H, W] in 0..255, visible [B, V], masked [B, M] -> scalar."""
        errors = (predicted - self.targets(pixels, masked)).square().mean(2)
        return (errors * unseen(masked, visible)).sum()

    @torch.no_grad()
    def targets(self, pixels: Tensor, masked: Tensor) -> Tensor:
        """[B, M, P]."""
        values = patches(pixels, masked, self.patch)
        return standardised(values, self.channels) if self.normalise else values
