"""Classification losses: cross-entropy with one class or soft targets, and binary cross-entropy for several labels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videorl.registry import LOSSES, UserError
from videorl.spec import Spec


@LOSSES.register("cross_entropy")
@LOSSES.register("soft_cross_entropy")
class CrossEntropy(nn.Module):
    """-sum_c y_c log softmax(z)_c, summed over samples; y is a class number or a distribution over classes."""

    coupled = False

    def __init__(self, spec: Spec):
        super().__init__()
        _check_one_space(spec)

    def count(self, batch) -> int:
        return len(batch["labels"])

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="sum")

    @torch.no_grad()
    def monitor(self, logits: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, int]]:
        """Samples whose best class is the label (of mixed labels: the larger part), and all samples."""
        wanted = labels if labels.ndim == 1 else labels.argmax(1)
        return {"top1": ((logits.argmax(1) == wanted).sum(), len(labels))}


@LOSSES.register("bce_logit")
class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy of each class's sigmoid, averaged over classes, summed over samples."""

    coupled = False

    def __init__(self, spec: Spec):
        super().__init__()
        _check_one_space(spec)

    def count(self, batch) -> int:
        return len(batch["labels"])

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1).sum()


def _check_one_space(spec: Spec) -> None:
    if len(spec.labels) > 1:
        raise UserError(
            f"this loss is for one label space, DATASETS has {', '.join(spec.labels)};"
            " use LOSSES: {heads: {NAME: multi_head}}"
        )
