"""InfoNCE between video and text in both directions, with a learned temperature (Radford et al., CLIP, 2021)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videorl.registry import LOSSES


@LOSSES.register("infonce")
class InfoNCE(nn.Module):
    """Cross-entropy of each video among all texts and of each text among all videos, averaged.

    Keys:
        temperature: first value of the temperature; the similarities are divided by it
        learn_temperature: whether it is trained
        max_scale: upper limit of 1 / temperature
    """

    coupled = True

    def __init__(self, spec, *, temperature: float = 0.07, learn_temperature: bool = True, max_scale: float = 100.0):
        super().__init__()
        self.max_scale = max_scale
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learn_temperature)

    def forward(self, video_embed: Tensor, text_embed: Tensor) -> Tensor:
        """video_embed, text_embed [B, D], of any length (they are normalised here) -> scalar."""
        scale = self.log_scale.exp().clamp(max=self.max_scale)
        logits = scale * F.normalize(video_embed, dim=1) @ F.normalize(text_embed, dim=1).T
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
