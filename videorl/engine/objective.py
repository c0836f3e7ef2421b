"""The weighted sum of the losses of a run.

A loss is a module whose `forward` takes, by parameter name, tensors of the model's outputs and of the batch. There are
two kinds, told apart by `loss.coupled`:
- separable (False): `forward` returns the sum of independent terms, `count(batch)` their number; the loss is the mean.
- coupled (True): a term depends on other samples; `forward` gets the samples of the whole step and returns the loss.
"""

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from videorl import dist
from videorl.registry import UserError


class Objective(nn.Module):
    """Losses by name with their weights. Learnable parameters of losses are trained and saved.

    `gradient_factor` scales all gradients; other than 1 only where a published system's are to be repeated.
    """

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float], gradient_factor: float = 1.0):
        super().__init__()
        for name, loss in losses.items():
            if not hasattr(loss, "coupled") or not (loss.coupled or hasattr(loss, "count")):
                raise UserError(
                    f"loss {name!r} ({type(loss).__name__}): expected `coupled = True`, or `coupled = False` and"
                    " `count(batch)`, the number of terms that `forward` sums"
                )
        self.gradient_factor = gradient_factor
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)
        self.needs = {name: _parameters(loss.forward) for name, loss in losses.items()}
        self.separable = [name for name, loss in losses.items() if not loss.coupled]
        self.coupled = [name for name, loss in losses.items() if loss.coupled]
        self.checked = False
        self.monitored = {n: _parameters(loss.monitor) for n, loss in losses.items() if hasattr(loss, "monitor")}
        # What is shown of a mean that a loss monitors, by its label in the log, where it is not the mean itself.
        self.shown = {
            label: function
            for name, loss in losses.items()
            for what, function in getattr(loss, "shown", {}).items()
            for label in (what, f"{name}_{what}")
        }

    @property
    def coupled_names(self) -> list[str]:
        """Names of all tensors that coupled losses need."""
        return sorted({n for name in self.coupled for n in self.needs[name]})

    def totals(self, batches: Sequence[Mapping]) -> dict[str, float]:
        """Number of terms of each separable loss over all micro-batches and ranks."""
        counts = [float(sum(self.losses[name].count(b) for b in batches)) for name in self.separable]
        # Summed on the CPU: a few numbers are not worth a wait for the GPU.
        total = dist.all_sum(torch.tensor(counts, dtype=torch.float64))
        return dict(zip(self.separable, total.tolist(), strict=True))

    def separable_part(self, values: Mapping[str, Tensor], totals: Mapping[str, float]) -> dict[str, Tensor]:
        """Of each separable loss, what these samples add to it."""
        return {
            name: self.losses[name](**_take(values, self.needs[name], name)) / max(totals[name], 1.0)
            for name in self.separable
        }

    def check_sums(self, values: Mapping[str, object]) -> None:
        """Raises `UserError` where a separable loss returns the mean of its terms: given all samples twice, it stays.

        Divided by `count` once more, it would be too small by a factor that depends on batch and number of processes.
        Looked at once, with the outputs and the batch of one micro-batch.
        """
        self.checked = True
        twice = _twice(values)
        for name in self.separable:
            loss, needs = self.losses[name], self.needs[name]
            once, again = (float(loss(**_take(v, needs, name))) for v in (values, twice))
            terms, more = (float(loss.count(v)) for v in (values, twice))
            if once and more == 2 * terms and abs(again / once - 1) < 1e-3:
                raise UserError(
                    f"loss {name!r} ({type(loss).__name__}): expected the sum of its terms, found their mean (with"
                    ' every sample twice it is the same): reduction="sum"; the engine divides by `count`'
                )

    def coupled_part(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each coupled loss of the samples of the whole step."""
        return {name: self.losses[name](**_take(values, self.needs[name], name)) for name in self.coupled}

    def weighted(self, parts: Mapping[str, Tensor]) -> Tensor:
        return sum(self.weights[name] * value for name, value in parts.items())

    def monitor(self, values: Mapping[str, Tensor], losses: Sequence[str]) -> dict[str, Tensor]:
        """What `losses` want to see in the log beside themselves: [2] sum and count (right answers, of all) by name."""
        found = {}
        for name, needs in ((name, self.monitored[name]) for name in losses if name in self.monitored):
            for what, (part, whole) in self.losses[name].monitor(**_take(values, needs, name)).items():
                label = what if len(self.monitored) == 1 else f"{name}_{what}"
                found[label] = torch.stack([torch.as_tensor(part), torch.as_tensor(whole).to(part.device)]).double()
        return found


def _twice(values: Mapping[str, object]) -> dict[str, object]:
    """Every sample two times: what has as many rows as `index` (without it: as most tensors) is joined to itself."""
    sizes = [len(v) for v in values.values() if isinstance(v, Tensor) and v.ndim]
    rows = len(values["index"]) if "index" in values else max(sizes, key=sizes.count)
    joined = {n: v for n, v in values.items() if isinstance(v, Tensor) and v.ndim and len(v) == rows}
    return {**values, **{name: torch.cat([value, value]) for name, value in joined.items()}}


def _parameters(function) -> dict[str, bool]:
    """Parameter name to whether it must be given."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default is inspect.Parameter.empty for p in parameters}


def _take(values: Mapping[str, Tensor], names: Mapping[str, bool], loss: str) -> dict[str, Tensor]:
    missing = [name for name, required in names.items() if required and name not in values]
    if missing:
        there = ", ".join(sorted(values))
        raise UserError(
            f"loss {loss!r} needs {', '.join(missing)}, but model and data set give only {there};"
            " choose another loss, model or data set"
        )
    return {name: values[name] for name in names if name in values}
