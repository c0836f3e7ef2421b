"""What of a training recipe is switched on that is off by default, and what of its numbers can hardly be meant."""

from collections.abc import Iterator

import torch

from videorl import config, dist
from videorl.engine import optim

# Above these no published recipe of videos trains: Adam moves every weight by about the learning rate in a step.
HIGHEST_RATES = {"sgd": 10.0, "adam": 0.02, "adamw": 0.02}


def parts(cfg, optimizer: torch.optim.Optimizer, rate: float) -> list[str]:
    """Each part in a few words with its settings, for the log. `rate`: the learning rate of the last layer."""
    augment, masking, mix = config.spec(cfg).augment, config.spec(cfg).masking, cfg.MIXUP
    rates = [rate * group["lr_scale"] for group in optimizer.param_groups]
    words = {
        f"layer decay {cfg.SOLVER.LAYER_DECAY:g} (learning rates {min(rates):.3g} to {max(rates):.3g})":
            cfg.SOLVER.LAYER_DECAY != 1,
        f"MixUp {mix.ALPHA:g}": mix.ENABLE and mix.ALPHA,
        f"CutMix {mix.CUTMIX_ALPHA:g}": mix.ENABLE and mix.CUTMIX_ALPHA,
        f"RandAugment {augment.rand_augment}": augment.rand_augment,
        f"random erasing {augment.erase_prob:g}": augment.erase_prob,
        f"{augment.clips} clips of a video": augment.clips > 1,
        f"{augment.copies // augment.clips} copies of each clip": augment.copies > augment.clips,
        f"moving average of the weights {cfg.EMA.DECAY:g}": cfg.EMA.ENABLED,
        f"masks {masking.ratio:g} ({masking.kind})": masking.ratio,
        f"moments of the optimizer shared by {dist.world_size()} processes": cfg.SOLVER.ZERO and dist.world_size() > 1,
    }  # fmt: skip
    return [text for text, is_on in words.items() if is_on]


def doubts(cfg, steps: int, rate: float, factor: float) -> Iterator[str]:
    """A line for each number that is allowed, but hardly meant.

    `steps` of an epoch; `rate`: learning rate after warm-up; `factor`: what the rates of SOLVER are multiplied by.
    """
    solver, ema = cfg.SOLVER, cfg.EMA
    warmup, start = optim.warmup_epochs(solver, steps), solver.WARMUP_START_LR * factor
    if solver.WARMUP_STEPS and solver.WARMUP_EPOCHS:
        yield f"SOLVER.WARMUP_STEPS {solver.WARMUP_STEPS} takes the place of WARMUP_EPOCHS {solver.WARMUP_EPOCHS:g}"
    if warmup >= solver.MAX_EPOCH:
        yield (
            f"the warm-up of {warmup:g} epochs is as long as the run or longer: SOLVER.MAX_EPOCH is {solver.MAX_EPOCH};"
            " shorten SOLVER.WARMUP_EPOCHS or WARMUP_STEPS"
        )
    if warmup and start > rate:
        yield (
            f"the warm-up begins above the learning rate that it leads to: {start:g} for {rate:g}; set"
            " SOLVER.WARMUP_START_LR below BASE_LR"
        )
    if solver.LR_POLICY == "cosine" and solver.COSINE_END_LR > solver.BASE_LR:
        yield f"the learning rate rises: SOLVER.COSINE_END_LR {solver.COSINE_END_LR:g}, BASE_LR {solver.BASE_LR:g}"
    if rate > HIGHEST_RATES[solver.OPTIMIZING_METHOD]:
        yield (
            f"learning rate {rate:g}: with {solver.OPTIMIZING_METHOD} expected at most"
            f" {HIGHEST_RATES[solver.OPTIMIZING_METHOD]:g}; see SOLVER.BASE_LR"
        )
    left = ema.DECAY ** (solver.MAX_EPOCH * steps)
    if ema.ENABLED and left > 0.1:
        yield (
            f"EMA.DECAY {ema.DECAY:g}: after all {solver.MAX_EPOCH * steps} steps {left:.0%} of the moving average are"
            f" still the first weights, and evaluations use it; {1 - 5 / (solver.MAX_EPOCH * steps + 5):.2g} leaves 1 %"
        )
