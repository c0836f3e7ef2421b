"""The loss of masked autoencoders: how far the predicted pixels of the hidden tokens are off.

Tong et al., VideoMAE, NeurIPS 2022; with a mask for the decoder too, Wang et al., VideoMAE V2, CVPR 2023.
"""

import math

import torch
from torch import Tensor, nn

from videorl.metrics.pixels import Targets, unseen
from videorl.registry import LOSSES
from videorl.spec import Spec


@LOSSES.register("masked_pixels")
class MaskedPixels(nn.Module):
    """Mean squared error over the pixels of a token, summed over the predicted tokens that the encoder did not see.

    MASK.TARGET and MASK.NORMALISE say which pixels, and in which units.
    """

    coupled = False

    def __init__(self, spec: Spec):
        super().__init__()
        self.targets = Targets.of(spec)
        self.tokens = _tokens(spec) if spec.masking.decoder == "all" else 0

    def count(self, batch) -> int:
        """Terms of the mean. Where all hidden tokens are predicted, both are all tokens, and no token is in both."""
        visible, masked = batch["visible"], batch["masked"]
        if visible.shape[1] + masked.shape[1] == self.tokens:
            return masked.numel()
        return int(unseen(masked, visible).sum())

    def forward(self, predicted: Tensor, pixels: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """predicted [B, M, P], pixels [B, T, C, H, W] in 0..255, visible [B, V], masked [B, M] -> scalar."""
        with torch.no_grad():
            targets = self.targets(pixels, masked)
        return ((predicted - targets).square().mean(2) * unseen(masked, visible)).sum()


def _tokens(spec: Spec) -> int:
    """Tokens of a training clip."""
    clip, patch = (spec.clip.frames, spec.clip.train_size, spec.clip.train_size), spec.patch
    return math.prod(length // part for length, part in zip(clip, patch, strict=True))
