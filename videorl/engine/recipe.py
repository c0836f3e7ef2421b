"""What is switched on of the parts of a training recipe that are off by default."""

import torch

from videorl import config, dist


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
