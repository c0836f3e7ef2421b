"""A project in one file: a small model and a loss."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videorl.registry import LOSSES, MODELS, Count, NonNegative
from videorl.spec import Spec


@MODELS.register("FramePool", node="FRAMEPOOL", num_classes="MODEL.NUM_CLASSES")
class FramePool(nn.Module):
    """Convolutions on single frames, then one over time: about the least that can tell left from right.

    Keys:
        width: channels of the last layer
        kernel: frames that the convolution over time spans
    """

    def __init__(self, spec: Spec, *, num_classes: int, width: Count = 64, kernel: Count = 3):
        super().__init__()
        widths = [spec.clip.channels, width // 4, width // 2, width]
        frame = [nn.Conv3d(a, b, (1, 3, 3), (1, 2, 2), (0, 1, 1)) for a, b in zip(widths, widths[1:], strict=False)]
        self.frame = nn.Sequential(*(layer for conv in frame for layer in (conv, nn.GELU())))
        self.time = nn.Conv3d(width, width, (kernel, 3, 3), padding=(kernel // 2, 1, 1))
        self.head = nn.Linear(width, num_classes)

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """video [B, 3, T, H, W] -> logits [B, C], features [B, D]."""
        features = self.time(self.frame(video)).relu().amax((2, 3, 4))
        return {"logits": self.head(features), "features": features}


@LOSSES.register("focal")
class Focal(nn.Module):
    """-(1 - p)^gamma log p of the right class (Lin et al., ICCV 2017), summed over samples.

    Keys:
        gamma: how much less well-classified samples count; 0: cross-entropy
    """

    coupled = False  # each sample's term stands alone: the engine divides the sum by `count`

    def __init__(self, spec: Spec, *, gamma: NonNegative = 2.0):
        super().__init__()
        self.gamma = gamma

    def count(self, batch) -> int:
        return len(batch["labels"])

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits [B, C], labels [B] -> scalar."""
        own = F.log_softmax(logits, 1).gather(1, labels[:, None])[:, 0]
        return -((1 - own.exp()) ** self.gamma * own).sum()

    @torch.no_grad()
    def monitor(self, logits: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, int]]:
        """Right answers and samples, for the log."""
        return {"top1": ((logits.argmax(1) == labels).sum(), len(labels))}
