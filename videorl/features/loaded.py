"""The model of a config with the weights of a checkpoint, ready to be run on clips."""

from pathlib import Path

from videorl import checkpoint, config
from videorl.engine import build, determinism, weights
from videorl.features.encoder import Encoder


def load(cfg, file: Path, kind: type[Encoder] = Encoder) -> Encoder:
    """Raises `UserError` where the file lacks some of the weights, or `kind` does not take such a model."""
    determinism.set_level(cfg.DETERMINISM)
    model = build.model(cfg)
    encoder = kind(model, cfg.MODEL.MODEL_NAME, config.spec(cfg).clip, build.precision(cfg))
    weights.take(cfg, model, checkpoint.read(file), file, testing=True)
    return encoder
