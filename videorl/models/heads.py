"""Heads that turn pooled features into logits."""

from collections.abc import Mapping

from torch import Tensor, nn

from videorl.registry import UserError


class LinearHead(nn.Module):
    """Dropout and one linear layer: features `[B, D]` to raw logits `[B, C]`."""

    def __init__(self, dim: int, classes: int, *, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(dim, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.projection(self.dropout(features))


def class_head(labels: Mapping[str, int], dim: int, *, dropout: float = 0.0) -> nn.Module:
    """The head for the label spaces of a spec (name -> number of classes): one space, one plain linear head."""
    if len(labels) != 1:
        raise UserError(f"a classifier needs one label space, found {sorted(labels)}; name one data set with classes")
    (classes,) = labels.values()
    return LinearHead(dim, classes, dropout=dropout)
