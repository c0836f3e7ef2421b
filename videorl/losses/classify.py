"""Classification losses: cross-entropy with one class or soft targets, and binary cross-entropy for several labels."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videorl.registry import LOSSES, Counts, Range, ShareBelow1, UserError
from videorl.spec import Spec

Weights = Annotated[tuple[float, ...], Range("> 0")]


class Classify(nn.Module):
    """What the losses of one label space share: a term for each sample, and whether logits and labels fit."""

    coupled = False

    def __init__(self, spec: Spec):
        super().__init__()
        if len(spec.labels) > 1:
            raise UserError(
                f"this loss is for one label space, DATASETS has {', '.join(spec.labels)};"
                " use LOSSES: {heads: {NAME: multi_head}}"
            )

    def count(self, batch) -> int:
        return len(batch["labels"])


@LOSSES.register("cross_entropy")
@LOSSES.register("soft_cross_entropy")
class CrossEntropy(Classify):
    """-sum_c y_c log softmax(z)_c, summed over samples; y is a class number or a distribution over classes.

    With smoothing s, y becomes y (1 - s) + s / C, as in timm's LabelSmoothingCrossEntropy; MixUp smooths by itself.

    Keys:
        label_smoothing: share of a label that all classes get, without MixUp (with it: MIXUP.LABEL_SMOOTH_VALUE)
        class_weights: factor of each class, by number, on the terms of its samples, whose number the sum is divided by
            (mean 1 over samples keeps the learning rate's meaning); empty: all 1
    """

    def __init__(self, spec: Spec, *, label_smoothing: ShareBelow1 = 0.0, class_weights: Weights = ()):
        super().__init__(spec)
        self.smoothing = label_smoothing
        (classes,) = spec.labels.values()
        if class_weights and len(class_weights) != classes:
            raise UserError(f"CLASS_WEIGHTS: expected {classes} numbers, one a class, found {len(class_weights)}")
        weights = torch.tensor(class_weights) if class_weights else None
        self.register_buffer("weights", weights, persistent=False)
        if spec.several:
            raise UserError(
                "cross-entropy expects one label a video, found DATA.MULTI_LABEL True: set MODEL.LOSS_FUNC bce_logit,"
                " or MULTI_LABEL False"
            )

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits [B, C], labels [B] int64 or [B, C] float -> scalar."""
        check_fit(logits, labels)
        return F.cross_entropy(logits, labels, self.weights, reduction="sum", label_smoothing=self.smoothing)

    @torch.no_grad()
    def monitor(self, logits: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, int]]:
        """Samples whose best class is the label (of mixed labels: the larger part), and all samples."""
        wanted = labels if labels.ndim == 1 else labels.argmax(1)
        return {"top1": ((logits.argmax(1) == wanted).sum(), len(labels))}


@LOSSES.register("parts")
class Parts(Classify):
    """Cross-entropy of each of several labels of a sample, summed: of verb, noun and action, as LaViLa trains them.

    The logits of all of them stand side by side, those of the last label after those of the others. With smoothing s
    the right class of C gets 1 - s + s / C, and each other s / C.

    Keys:
        heads: number of classes of each label but the last, [97, 300] for EPIC-Kitchens
        label_smoothing: share of a label that all classes get
    """

    def __init__(self, spec: Spec, *, heads: Counts = (), label_smoothing: ShareBelow1 = 0.0):
        super().__init__(spec)
        self.heads, self.smoothing = list(heads), label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits [B, C], labels [B, S] int64, or [B] where HEADS is empty -> scalar."""
        last = logits.shape[1] - sum(self.heads)
        labels = labels if labels.ndim == 2 else labels[:, None]
        if last < 1 or labels.shape[1] != len(self.heads) + 1:
            raise UserError(
                f"parts: expected {len(self.heads) + 1} labels and more than {sum(self.heads)} logits for HEADS"
                f" {self.heads}, found {labels.shape[1]} and {logits.shape[1]}: MODEL.NUM_CLASSES is the sum of all"
            )
        parts = zip(logits.split([*self.heads, last], 1), labels.unbind(1))
        return sum(F.cross_entropy(*part, reduction="sum", label_smoothing=self.smoothing) for part in parts)


@LOSSES.register("bce_logit")
class BinaryCrossEntropy(Classify):
    """Binary cross-entropy of each class's sigmoid, averaged over classes, summed over samples."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits [B, C], labels [B, C] float, or [B] int64: one class, and the others are not -> scalar."""
        check_fit(logits, labels)
        targets = labels if labels.ndim == 2 else F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1).sum()


def check_fit(logits: Tensor, labels: Tensor) -> None:
    """Raises `UserError` unless the labels are class numbers [B], or targets of the shape of the logits [B, C]."""
    numbers = labels.ndim == 1 and not labels.is_floating_point()
    targets = labels.ndim == 2 and labels.is_floating_point()
    if logits.ndim != 2 or not (numbers or targets) or labels.shape != logits.shape[: labels.ndim]:
        kind = str(labels.dtype).removeprefix("torch.")
        raise UserError(
            f"the loss expects logits [B, C] and labels [B] int64 or [B, C] float, found logits {list(logits.shape)}"
            f" and labels {list(labels.shape)} {kind}: MODEL.NUM_CLASSES, DATA.MULTI_LABEL and the data set must agree"
        )
