"""Learning rate as a pure function of the epoch, parameter groups, and the optimizer."""

import math

import torch
from torch import nn

from videorl.registry import UserError


def lr_at(solver, epoch: float, shards: int = 1) -> float:
    """Learning rate at a fractional epoch: linear warm-up, then cosine or steps.

    PySlowFast's rules (slowfast/utils/lr_policy.py). `shards` scales every rate where
    SOLVER.BASE_LR_SCALE_NUM_SHARDS is on.
    """
    factor = shards if solver.BASE_LR_SCALE_NUM_SHARDS else 1
    if epoch >= solver.WARMUP_EPOCHS:
        return factor * _policy(solver, epoch)
    start, end = solver.WARMUP_START_LR, _policy(solver, solver.WARMUP_EPOCHS)
    return factor * (start + (end - start) * epoch / solver.WARMUP_EPOCHS)


def _policy(solver, epoch: float) -> float:
    if solver.LR_POLICY == "cosine":
        offset = solver.WARMUP_EPOCHS if solver.COSINE_AFTER_WARMUP else 0.0
        if offset >= solver.MAX_EPOCH:
            raise UserError(f"SOLVER.WARMUP_EPOCHS {offset:g} must be below SOLVER.MAX_EPOCH {solver.MAX_EPOCH}")
        turn = (math.cos(math.pi * (epoch - offset) / (solver.MAX_EPOCH - offset)) + 1.0) / 2.0
        return solver.COSINE_END_LR + (solver.BASE_LR - solver.COSINE_END_LR) * turn
    if solver.LR_POLICY == "steps_with_relative_lrs":
        if not solver.STEPS or solver.STEPS[0] != 0 or len(solver.LRS) < len(solver.STEPS):
            raise UserError(
                f"SOLVER.STEPS {solver.STEPS} must begin with 0 and have one of SOLVER.LRS {solver.LRS} each"
            )
        current = sum(epoch >= step for step in solver.STEPS) - 1
        return solver.LRS[current] * solver.BASE_LR
    raise UserError(f"SOLVER.LR_POLICY {solver.LR_POLICY!r}: expected cosine or steps_with_relative_lrs")


def parameter_groups(model: nn.Module, solver, bn_weight_decay: float = 0.0) -> list[dict]:
    """Trainable parameters by weight decay and factor of the learning rate (`lr_scale`).

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
        decay = bn_weight_decay if id(p) in norms else 0.0 if free else solver.WEIGHT_DECAY
        key = (decay, scales.get(name, 1.0))
        group = groups.setdefault(key, {"params": [], "names": [], "weight_decay": decay, "lr_scale": key[1]})
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
    """The optimizer of the model's and the losses' own parameters (the latter without weight decay)."""
    solver = cfg.SOLVER
    groups = parameter_groups(model, solver, cfg.BN.WEIGHT_DECAY)
    own = [(name, p) for name, p in objective.named_parameters() if p.requires_grad]
    if own:
        names = [f"loss.{name}" for name, _ in own]
        groups.append({"params": [p for _, p in own], "names": names, "weight_decay": 0.0, "lr_scale": 1.0})
    fused = all(p.is_cuda for g in groups for p in g["params"])
    lr = solver.BASE_LR
    if solver.OPTIMIZING_METHOD == "sgd":
        # PySlowFast's default pair of options, momentum 0 with Nesterov, is one that torch refuses.
        nesterov = solver.NESTEROV and solver.MOMENTUM > 0 and solver.DAMPENING == 0
        return torch.optim.SGD(
            groups, lr=lr, momentum=solver.MOMENTUM, dampening=solver.DAMPENING, nesterov=nesterov, fused=fused
        )
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if solver.OPTIMIZING_METHOD not in kinds:
        raise UserError(f"SOLVER.OPTIMIZING_METHOD {solver.OPTIMIZING_METHOD!r}: expected sgd, adam or adamw")
    return kinds[solver.OPTIMIZING_METHOD](groups, lr=lr, betas=tuple(solver.BETAS), eps=1e-8, fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
