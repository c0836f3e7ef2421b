"""Parameters and multiply-adds of a model, by part."""

import logging

import torch
from torch.utils.flop_counter import FlopCounterMode

from videorl import config
from videorl.registry import MODELS

log = logging.getLogger("videorl")


def model_info(cfg) -> list[tuple[str, int, float]]:
    """(part, parameters, multiply-adds of one clip of the training size) for the model and each of its children.

    Counted on the meta device, where nothing is computed and attention counts too (on the CPU it counts as zero).
    """
    entry, values = config.component(cfg, MODELS, cfg.MODEL.MODEL_NAME)
    spec = config.spec(cfg)
    with torch.device("meta"):
        model = entry(spec, values=values).eval()
        video = torch.empty(1, spec.clip.channels, spec.clip.frames, spec.clip.train_size, spec.clip.train_size)
        with FlopCounterMode(display=False) as counter:
            model(video=video)
    counts = {name: sum(operations.values()) / 2 for name, operations in counter.get_flop_counts().items()}
    root = type(model).__name__
    rows = [(root, _parameters(model), counts.get("Global", 0.0))]
    rows += [(name, _parameters(child), counts.get(f"{root}.{name}", 0.0)) for name, child in model.named_children()]
    return rows


def _parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def log_model_info(cfg) -> None:
    for name, parameters, adds in model_info(cfg):
        log.info("%-24s %12d parameters %10.3f G multiply-adds a clip", name, parameters, adds / 1e9)
