"""Learning rate and weight decay as pure functions of the epoch, parameter groups, and the optimizer."""

import math

import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from videorl import dist
from videorl.registry import UserError


def lr_factor(solver, machines: int, clips: int) -> float:
    """What BASE_LR, WARMUP_START_LR and COSINE_END_LR are multiplied by, with `clips` in an optimizer step."""
    if solver.BASE_LR_BATCH and solver.BASE_LR_SCALE_NUM_SHARDS:
        raise UserError(
            f"SOLVER.BASE_LR_BATCH {solver.BASE_LR_BATCH}: expected clips in a step, or 0;"
            " it scales the learning rate, so BASE_LR_SCALE_NUM_SHARDS must be off"
        )
    if solver.BASE_LR_BATCH:
        return clips / solver.BASE_LR_BATCH
    return float(machines) if solver.BASE_LR_SCALE_NUM_SHARDS else 1.0


def warmup_epochs(solver, steps: int) -> float:
    """Length of the warm-up in epochs of `steps` optimizer steps."""
    return solver.WARMUP_STEPS / steps if solver.WARMUP_STEPS else solver.WARMUP_EPOCHS


def lr_at(solver, epoch: float, steps: int = 1, factor: float = 1.0) -> float:
    """Learning rate at a fractional epoch of `steps` optimizer steps, times `factor`: linear warm-up, then a policy.

    PySlowFast's rules (slowfast/utils/lr_policy.py): the warm-up would reach the policy in the step after its last one.
    With WARMUP_INCLUSIVE VideoMAE's (utils.py, cosine_scheduler): it reaches the policy's first value in its last step,
    and the policy then begins with it again.
    """
    warmup = warmup_epochs(solver, steps)
    if epoch >= warmup:
        return factor * _policy(solver, epoch, warmup, steps)
    start, end = solver.WARMUP_START_LR, _policy(solver, warmup, warmup, steps)
    length = warmup - (1 / steps if solver.WARMUP_INCLUSIVE else 0.0)
    # A warm-up of one step has no second one that could reach the end.
    done = min(epoch / length, 1.0) if length > 0 else 0.0
    return factor * (start + (end - start) * done)


def _policy(solver, epoch: float, warmup: float, steps: int) -> float:
    if solver.LR_POLICY == "linear":
        end = solver.DECAY_STEPS / steps if solver.DECAY_STEPS else solver.MAX_EPOCH
        left = max(end - epoch, 0.0) / (end - warmup) if end > warmup else 0.0
        return solver.COSINE_END_LR + (solver.BASE_LR - solver.COSINE_END_LR) * left
    if solver.LR_POLICY == "cosine":
        offset = warmup if solver.COSINE_AFTER_WARMUP else 0.0
        if offset >= solver.MAX_EPOCH:
            raise UserError(f"SOLVER.WARMUP_EPOCHS {offset:g} must be below SOLVER.MAX_EPOCH {solver.MAX_EPOCH}")
        return _cosine(solver.BASE_LR, solver.COSINE_END_LR, (epoch - offset) / (solver.MAX_EPOCH - offset))
    if not solver.STEPS or solver.STEPS[0] != 0 or len(solver.LRS) < len(solver.STEPS):
        raise UserError(f"SOLVER.STEPS {solver.STEPS} must begin with 0 and have one of SOLVER.LRS {solver.LRS} each")
    current = sum(epoch >= step for step in solver.STEPS) - 1
    return solver.LRS[current] * solver.BASE_LR


def weight_decay_at(solver, epoch: float) -> float:
    """Weight decay at a fractional epoch: WEIGHT_DECAY, or on half a cosine from there to WEIGHT_DECAY_END."""
    if solver.WEIGHT_DECAY_END < 0:
        return solver.WEIGHT_DECAY
    return _cosine(solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_END, epoch / solver.MAX_EPOCH)


def _cosine(start: float, end: float, part: float) -> float:
    """From `start` at part 0 to `end` at part 1."""
    return end + (start - end) * (math.cos(math.pi * part) + 1.0) / 2.0


def parameter_groups(model: nn.Module, solver, bn_weight_decay: float = 0.0) -> list[dict]:
    """Trainable parameters by weight decay and factor of the learning rate (`lr_scale`).

    `decays`: whether the weight decay is SOLVER's, which a schedule may change; that of batch norm stays as it is.
    No decay: parameters that `model.no_weight_decay()` names a part of; with ZERO_WD_1D_PARAM also biases and 1-D ones.
    LAYER_DECAY d < 1: a parameter of layer l of L (`model.layer_of(name)`) has the factor d ** (L - l).
    """
    norms = {
        id(p) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for p in m.parameters(False)
    }
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    scales = _lr_scales(model, solver.LAYER_DECAY)
    groups: dict[tuple, dict] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        one_dimensional = p.ndim <= 1 or name.endswith(".bias")
        free = any(part in name for part in spared) or (solver.ZERO_WD_1D_PARAM and one_dimensional)
        decays = id(p) not in norms and not free
        decay = solver.WEIGHT_DECAY if decays else bn_weight_decay if id(p) in norms else 0.0
        settings = {"weight_decay": decay, "lr_scale": scales.get(name, 1.0), "decays": decays}
        group = groups.setdefault(tuple(settings.values()), {"params": [], "names": [], **settings})
        group["params"].append(p)
        group["names"].append(name)
    return list(groups.values())


def _lr_scales(model: nn.Module, decay: float) -> dict[str, float]:
    if decay == 1.0:
        return {}
    if not hasattr(model, "layer_of"):
        raise UserError(
            f"SOLVER.LAYER_DECAY needs a model with layer_of(name); {type(model).__name__} has none: set it to 1.0"
        )
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    top = max(layers.values())
    return {name: decay ** (top - layer) for name, layer in layers.items()}


def build_optimizer(cfg, model: nn.Module, objective: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the model's and the losses' own parameters (the latter without weight decay).

    Adam is fused, on the CPU too, where it takes a fifth of the time. It then reads a gradient in the order in which
    its parameter lies in memory, see `align`. With SOLVER.ZERO each process keeps the moments of a part of the
    parameters and sends what it makes of these to the others (Rajbhandari et al., ZeRO, 2020, stage 1).
    """
    solver = cfg.SOLVER
    groups = parameter_groups(model, solver, cfg.BN.WEIGHT_DECAY)
    own = [(name, p) for name, p in objective.named_parameters() if p.requires_grad]
    if own:
        names = [f"loss.{name}" for name, _ in own]
        settings = {"weight_decay": 0.0, "lr_scale": 1.0, "decays": False}
        groups.append({"params": [p for _, p in own], "names": names, **settings})
    kind, settings = _kind(solver)
    if solver.ZERO and dist.world_size() > 1:
        return ZeroRedundancyOptimizer(groups, kind, **settings)
    return kind(groups, **settings)


def _kind(solver) -> tuple[type[torch.optim.Optimizer], dict]:
    """The optimizer that SOLVER names, and its settings."""
    if solver.OPTIMIZING_METHOD == "sgd":
        # PySlowFast's default pair of options, momentum 0 with Nesterov, is one that torch refuses.
        nesterov = solver.NESTEROV and solver.MOMENTUM > 0 and solver.DAMPENING == 0
        momentum = {"momentum": solver.MOMENTUM, "dampening": solver.DAMPENING, "nesterov": nesterov}
        # Not fused: a first step that overflows in float16 leaves its momentum uninitialised (torch 2.15).
        return torch.optim.SGD, {"lr": solver.BASE_LR, **momentum, "fused": False}
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    settings = {"lr": solver.BASE_LR, "betas": tuple(solver.BETAS), "eps": 1e-8, "fused": True}
    return kinds[solver.OPTIMIZING_METHOD], settings


def state_of(optimizer: torch.optim.Optimizer) -> dict:
    """What a checkpoint holds of it, alike with SOLVER.ZERO and without. All ranks call it; only rank 0's is whole."""
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        optimizer.consolidate_state_dict()
        return optimizer.state_dict() if dist.is_main() else {}
    return optimizer.state_dict()


def restore(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Takes over what `state_of` gave; weight decay and the like stay as they are. With SOLVER.ZERO each rank keeps its
    part."""
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        for p, moments in optimizer.optim.state.items():
            if "step" in moments:  # it puts this one on the CPU, where a fused Adam of a GPU does not look for it
                moments["step"] = moments["step"].to(p.device)


def align(parameters) -> None:
    """Gives gradients the memory layout of their parameters. Autograd's have it; those a loss cached may not."""
    for p in parameters:
        if p.grad.stride() != p.stride():
            p.grad = torch.empty_like(p).copy_(p.grad)


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Sets the learning rate, times each group's scale, and the weight decay of those groups that decay."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        if group["decays"]:
            group["weight_decay"] = weight_decay
