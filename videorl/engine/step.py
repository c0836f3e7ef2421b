"""The exact optimizer step: any split into micro-batches and ranks gives the gradient of one process with the whole.

Separable losses are divided by counts over the whole step. Coupled losses take two passes (Gao et al., "Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup", 2021): embed every micro-batch, all but the last without a
graph; differentiate the losses to the embeddings of all ranks joined; push the cached gradient through the graph of the
last and through each other micro-batch, which is run again with the same random numbers. Randomness of micro-batch c of
step s comes from (seed, s, c): there is nothing to save or to restore.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from videorl import dist
from videorl.clip import regions
from videorl.clip.mixup import mix_video
from videorl.engine.objective import Objective
from videorl.registry import REQUIRED, UserError, parameters_of
from videorl.spec import Clip

Batch = Mapping[str, object]
CPU = torch.device("cpu")


@dataclass
class Precision:
    """Autocast type (None: float32) and the gradient scaler that float16 needs."""

    device: torch.device
    dtype: torch.dtype | None = None

    def __post_init__(self):
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def scale(self) -> float:
        """Factor of the loss that keeps float16 gradients in range; 1 for other types."""
        # Not `get_scale`: only `scale` sets the scaler up, and without it the first `unscale_` fails.
        return float(self.scaler.scale(torch.ones((), device=self.device)))

    def autocast(self):
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def to_device(batch: Batch, device: torch.device, clip: Clip) -> dict:
    """The batch on the device; `video` [B, T, 3, H, W] uint8 becomes [B, 3, T, H, W] normalised float.

    `regions` and `cuts` become `pixels` where clips are masked, else `video`.
    """
    batch = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
    if "regions" in batch:
        made = regions.clips(batch.pop("regions"), batch.pop("cuts"))
        batch["pixels" if "visible" in batch else "video"] = made
    if "video" in batch:
        video = normalise(batch["video"], clip)
        batch["video"] = mix_video(video, batch["mix"]) if batch.get("mix") is not None else video
    return batch


def normalise(video: Tensor, clip: Clip) -> Tensor:
    """uint8 [B, T, C, H, W] -> float [B, C, T, H, W], (x / 255 - mean) / std."""
    mean = torch.tensor(clip.mean, device=video.device).view(1, -1, 1, 1, 1)
    std = torch.tensor(clip.std, device=video.device).view(1, -1, 1, 1, 1)
    return video.transpose(1, 2).float().div_(255).sub_(mean).div_(std)


def call(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The model's outputs, as float32, for the entries of the batch that its `forward` names."""
    names = parameters_of(unwrap(model).forward)
    missing = [name for name, p in names.items() if p.default is REQUIRED and name not in batch]
    if missing:
        raise UserError(
            f"{type(unwrap(model)).__name__} reads {', '.join(missing)}, but the data set gives"
            f" {', '.join(sorted(batch))}: choose another model or data set (with MASK.RATIO above 0 clips are masked)"
        )
    try:
        outputs = model(**{name: batch[name] for name in names if name in batch})
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "batch norm needs more than one value of each channel: expected two videos or more in a micro-batch of a"
            " process, found one; raise TRAIN.BATCH_SIZE (and lower GRAD_ACCU_NUM_BATCH)"
        ) from None
    return {name: value.float() for name, value in outputs.items()}


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    return getattr(model, "_orig_mod", model)


def seed_chunk(seed: int, step: int, chunk: int, device: torch.device = CPU) -> None:
    """Sets torch's random state for one micro-batch: the same for a chunk of a step, whatever the rank.

    Of the CPU and of `device`, from which alone a model draws: `torch.manual_seed` takes 0.4 ms for those of all.
    """
    number = int(np.random.SeedSequence([seed, step, chunk]).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)


def backward(
    model: nn.Module,
    objective: Objective,
    batches: Sequence[Batch],
    *,
    clip: Clip,
    precision: Precision,
    seed: int,
    step: int,
) -> dict[str, float]:
    """Adds the gradient of the step's objective to the parameters (averaged over ranks where the model is DDP).

    `batches` are this rank's micro-batches, on the CPU. Returns the value of each loss, true means over the whole step,
    `loss`, their weighted sum, and what losses monitor.
    """
    totals = objective.totals(batches)
    forward = _Forward(model, batches, clip, precision, seed, step)
    cached, values, seen, kept = _coupled_gradients(objective, forward)
    sums: dict[str, Tensor] = dict(seen)  # [1] of losses, [2] of what they monitor
    # The last is the one whose graph is kept: it goes first, so that there are never two graphs.
    order = [len(batches) - 1, *range(len(batches) - 1)]
    for m in order:
        with forward.sync(m == order[-1]):
            batch, outputs = kept.pop() if kept else forward(m)
            if not objective.checked:
                with torch.no_grad(), torch.random.fork_rng():
                    objective.check_sums({**batch, **outputs})
            parts = objective.separable_part({**batch, **outputs}, totals)
            _push(objective.weighted(parts), outputs, cached[m], precision.scale() * objective.gradient_factor)
        with torch.no_grad():
            found = {name: value.detach().double().reshape(1) for name, value in parts.items()}
            for name, value in {**found, **objective.monitor({**batch, **outputs}, objective.separable)}.items():
                sums[name] = sums.get(name, 0) + value
        del batch, outputs, parts
    _average_loss_gradients(objective)
    return _totalled(objective, sums, values)


@dataclass
class _Forward:
    """Gives of micro-batch m, as often as it is asked, the batch on the device and the model's outputs: the same."""

    model: nn.Module
    batches: Sequence[Batch]
    clip: Clip
    precision: Precision
    seed: int
    step: int

    def __call__(self, m: int) -> tuple[dict, dict[str, Tensor]]:
        batch = to_device(self.batches[m], self.precision.device, self.clip)
        seed_chunk(self.seed, self.step, dist.rank() * len(self.batches) + m, self.precision.device)
        with self.precision.autocast():
            return batch, call(self.model, batch)

    def sync(self, now: bool):
        """Around forward and backward: whether the gradients of all so far are averaged over ranks."""
        return contextlib.nullcontext() if now or not hasattr(self.model, "no_sync") else self.model.no_sync()


def _push(value, outputs: Mapping[str, Tensor], cached: Mapping[str, Tensor], scale: float) -> None:
    """Backward of the separable part and of the cached gradients together, so that the graph is walked once.

    DDP averages over ranks where sums are due: hence the factor. It also waits for every parameter: an output that no
    loss uses gets a gradient of zero.
    """
    factor = scale * dist.world_size()
    roots, gradients = [], []
    if isinstance(value, Tensor):
        roots.append(value)
        gradients.append(torch.full_like(value, factor))
    for name, output in outputs.items():
        if output.requires_grad:
            roots.append(output)
            gradients.append(cached[name] * factor if name in cached else torch.zeros_like(output))
    torch.autograd.backward(roots, gradients)


def _coupled_gradients(objective: Objective, forward: _Forward):
    """For each micro-batch the gradients of the coupled losses to its outputs; their values; what they monitor; and
    what `forward` gave for the last one with its graph, which need not be made again.

    All ranks find the same values.
    """
    count = len(forward.batches)
    if not objective.coupled:
        return [{}] * count, {}, {}, []
    collected: list[dict[str, Tensor]] = []
    with _frozen_statistics(forward.model), torch.no_grad():
        for m in range(count - 1):
            collected.append(_needed(objective, *forward(m)))
    with forward.sync(count == 1):
        kept = forward(count - 1)
    collected.append(_needed(objective, *kept))
    from_model = kept[1].keys()
    joined, mine = {}, {}
    for name in collected[0]:
        joined[name], mine[name] = dist.rows(torch.cat([c[name] for c in collected]))
    leaves = {n: joined[n].requires_grad_() for n in joined if n in from_model}
    parts = objective.coupled_part(joined)
    total = objective.weighted(parts)
    own = [p for name in objective.coupled for p in objective.losses[name].parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total, [*leaves.values(), *own], allow_unused=True)
    for p, g in zip(own, gradients[len(leaves) :], strict=True):
        _add_gradient(p, g, forward.precision.scale() * objective.gradient_factor)
    sizes = [len(next(iter(c.values()))) for c in collected]
    cached = [{} for _ in collected]
    for name, gradient in zip(leaves, gradients, strict=False):
        if gradient is not None:
            for m, rows in enumerate(gradient[mine[name]].split(sizes)):
                cached[m][name] = rows
    values = {name: value.detach() for name, value in parts.items()}
    return cached, values, objective.monitor(joined, objective.coupled), [kept]


def _needed(objective: Objective, batch: Batch, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the coupled losses need of a micro-batch, without its graph."""
    values = {**batch, **outputs}
    return {n: values[n].detach() for n in objective.coupled_names if isinstance(values.get(n), Tensor)}


def _add_gradient(p: Tensor, gradient: Tensor | None, scale: float) -> None:
    if gradient is not None:
        p.grad = gradient * scale if p.grad is None else p.grad + gradient * scale


@contextlib.contextmanager
def _frozen_statistics(model: nn.Module):
    """The first pass must not move running statistics: the second does."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    saved = [(m.momentum, m.num_batches_tracked.clone() if m.num_batches_tracked is not None else None) for m in layers]
    for m in layers:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, (momentum, tracked) in zip(layers, saved, strict=True):
            m.momentum = momentum
            if tracked is not None:
                m.num_batches_tracked.copy_(tracked)


def _average_loss_gradients(objective: Objective) -> None:
    """The losses' own parameters are outside DDP: their gradients are averaged here as DDP does with the model's."""
    for p in objective.parameters():
        if p.requires_grad and dist.world_size() > 1:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_sum(p.grad).div_(dist.world_size())


def _totalled(objective, sums, coupled_values) -> dict[str, float]:
    """The loss, each loss, and what losses monitor, over all ranks. What no sample of the step has is left out."""
    summed = dist.all_sum(torch.cat(list(sums.values())).cpu()) if sums else torch.zeros(0)
    parts = dict(zip(sums, summed.split([len(value) for value in sums.values()]), strict=True))
    losses = {n: float(value) for n, value in parts.items() if len(value) == 1}
    losses |= {n: float(value) for n, value in coupled_values.items()}
    monitored = {n: objective.shown.get(n, float)(float(v[0] / v[1])) for n, v in parts.items() if len(v) == 2 and v[1]}
    return {"loss": sum(objective.weights[n] * v for n, v in losses.items()), **losses, **monitored}
