"""A class for each second of a clip: the fine-tuning of VideoCLIP and Norton on COIN."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videorl.registry import LOSSES, UserError


@LOSSES.register("frame_cross_entropy")
class FrameCrossEntropy(nn.Module):
    """Cross-entropy of the class of each second, averaged over all that have one."""

    coupled = False

    def __init__(self, spec):
        super().__init__()

    def count(self, batch) -> int:
        """Seconds that have a class."""
        return int((batch["frame_labels"] >= 0).sum())

    def forward(self, logits: Tensor, frame_labels: Tensor) -> Tensor:
        """logits [B, L, C], frame_labels [B, L] int64, -100 for seconds without a class -> sum over seconds."""
        highest = int(frame_labels.max()) if frame_labels.numel() else -1  # a process may have no samples of a step
        if logits.ndim != 3 or logits.shape[:2] != frame_labels.shape or highest >= logits.shape[2]:
            raise UserError(
                f"frame_cross_entropy: logits {list(logits.shape)} and labels {list(frame_labels.shape)} up to"
                f" {highest} do not fit: choose VideoCLIPFrames, and VIDEOCLIP.CLASSES one more"
            )
        return F.cross_entropy(logits.flatten(0, 1), frame_labels.flatten(), reduction="sum")

    @torch.no_grad()
    def monitor(self, logits: Tensor, frame_labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Seconds whose class has the highest logit, and all that have a class."""
        counted = frame_labels >= 0
        return {"frame_acc": ((logits.argmax(2) == frame_labels)[counted].sum(), counted.sum())}
