"""Train and test video models on real video files."""

__version__ = "0.1.0"


def load(run, *, cfg: str = "", head: str = "", settings=()):
    """The classifier of a run or checkpoint: `videorl.load("runs/mine")("a.mp4").top()`. See `predict.classifier`."""
    from videorl.predict import classifier

    return classifier.load(run, cfg=cfg, head=head, settings=settings)
