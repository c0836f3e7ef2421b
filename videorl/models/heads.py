"""Heads that turn pooled features into logits, for one label space or several.

Liang et al., Multi-dataset Training of Transformers for Robust Action Recognition, NeurIPS 2022
(JunweiLiang/MultiTrain): a head for each data set, projections from each head's logits to the classes of the others,
and an expander in front of the informative loss.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videorl.registry import UserError
from videorl.spec import Spec


class LinearHead(nn.Module):
    """Dropout and one linear layer: features `[B, D]` to raw logits `[B, C]`."""

    def __init__(self, space: str, dim: int, classes: int, dropout: float):
        super().__init__()
        self.space = space
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(dim, classes)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"logits": self.projection(self.dropout(features))}

    def class_axes(self) -> dict[str, tuple[str | None, ...]]:
        """Of each parameter with an axis of classes, the label space of each axis (None: no classes)."""
        return {"projection.weight": (self.space, None), "projection.bias": (self.space,)}


def hidden_width(dim: int, ratio: float) -> int:
    """`dim * ratio` rounded down, as published. A ratio may be written with six digits: 4.363636 is 48 / 11."""
    return int(dim * ratio * (1 + 1e-6))


class Mlp(nn.Module):
    """Linear, GELU or another activation, dropout, linear."""

    def __init__(self, dim: int, hidden: int, dim_out: int, dropout: float = 0.0, activation: Callable = F.gelu):
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(self.activation(self.fc1(x))))


class MultiHead(nn.Module):
    """A head for each label space, their logits side by side in the order of `labels`.

    While training, with `projection`, also `projected`: the logits of each other head mapped to a space's classes, side
    by side for every target space and, within it, every source; and, with `expander`, `expanded` features `[B, D]`.
    """

    train_only = ("projections.", "expander.")  # parameters that a checkpoint need not have for testing

    def __init__(self, labels: Mapping[str, int], dim: int, *, hidden: int, dropout: float, projection: bool,
                 expander: int, drop_logits: bool):  # fmt: skip
        super().__init__()
        self.labels = dict(labels)
        self.hidden = hidden
        self.dropout = nn.Dropout(0.0 if hidden else dropout)
        self.drop_logits = nn.Dropout(dropout if drop_logits else 0.0)
        self.heads = nn.ModuleDict(
            {
                n: Mlp(dim, hidden, classes, dropout) if hidden else nn.Linear(dim, classes)
                for n, classes in labels.items()
            }
        )
        if projection:
            self.projections = nn.ModuleDict(
                {
                    a: nn.ModuleDict({b: nn.Linear(labels[a], labels[b], bias=False) for b in labels if b != a})
                    for a in labels
                }
            )
        if expander:
            self.expander = Mlp(dim, expander, dim)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        dropped = self.dropout(features)
        logits = {name: self.drop_logits(head(dropped)) for name, head in self.heads.items()}
        found = {"logits": torch.cat(list(logits.values()), dim=1)}
        if self.training and hasattr(self, "projections"):
            found["projected"] = torch.cat(
                [self.projections[a][b](logits[a]) for b in logits for a in logits if a != b], 1
            )
            found["projection_weights"] = torch.cat([p.flatten() for p in self.projections.parameters()])
        if self.training and hasattr(self, "expander"):
            found["expanded"] = self.expander(features)
        return found

    def class_axes(self) -> dict[str, tuple[str | None, ...]]:
        """Of each parameter with an axis of classes, the label space of each axis (None: no classes)."""
        last = "fc2." if self.hidden else ""
        axes = {}
        for name in self.labels:
            axes |= {f"heads.{name}.{last}weight": (name, None), f"heads.{name}.{last}bias": (name,)}
        if hasattr(self, "projections"):
            axes |= {f"projections.{a}.{b}.weight": (b, a) for a in self.labels for b in self.labels if a != b}
        return axes


def class_head(spec: Spec, dim: int) -> nn.Module:
    """The head for the label spaces of a spec: one space, one linear layer; several, a head each."""
    head = spec.head
    _check(spec)
    if len(spec.labels) == 1:
        ((space, classes),) = spec.labels.items()
        return LinearHead(space, dim, classes, head.dropout)
    return MultiHead(
        spec.labels, dim, hidden=head.hidden, dropout=head.dropout, projection=head.projection, expander=head.expander,
        drop_logits=head.drop_logits,
    )  # fmt: skip


def _check(spec: Spec) -> None:
    if not spec.labels:
        raise UserError("a classifier needs a label space: name a data set with classes")
    for name in spec.labels:
        if hasattr(nn.ModuleDict, name):
            raise UserError(
                f"a data set cannot be called {name}, which PyTorch keeps for itself; rename it in DATASETS"
            )
    head = spec.head
    if len(spec.labels) == 1 and (head.hidden or head.projection or head.expander):
        raise UserError(
            "MULTI.HEAD_HIDDEN, PROJECTION and EXPANDER are for two or more entries of DATASETS; turn them off"
        )
