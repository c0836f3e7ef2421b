"""Classification with several views of each video: the sum, or the maximum, of the scores of its clips and crops."""

import numpy as np
import torch

from videorl.metrics import HIGHER
from videorl.metrics.classification import (
    class_accuracy,
    mean_average_precision,
    mean_class_accuracy,
    topk_accuracy,
)
from videorl.registry import EVALS, UserError

TOP = 5


@EVALS.register("views", ensemble="DATA.ENSEMBLE_METHOD", activation="MODEL.HEAD_ACT")
class Views:
    """PySlowFast's multi-view test (slowfast/utils/meters.py, TestMeter).

    Metrics, fractions in 0..1: `top1`, `top5` (of more than five classes), `mean_class` (mean accuracy of the classes);
    for several labels `map`; none where the head is another data set's, whose classes the labels are not: then the
    scores are what is wanted.

    Keys:
        head: label space (entry of DATASETS) whose classes are scored; empty: that of the data set
    """

    def __init__(self, spec, *, ensemble: str, activation: str, head: str = ""):
        check_unmasked(spec, "views")
        if ensemble not in ("sum", "max"):
            raise UserError(f"DATA.ENSEMBLE_METHOD {ensemble!r}: expected sum or max")
        if activation not in ("softmax", "sigmoid"):
            raise UserError(f"MODEL.HEAD_ACT {activation!r}: expected softmax or sigmoid")
        self.views = spec.views.clips * spec.views.crops
        self.space = head or spec.space
        if self.space not in spec.labels:
            raise UserError(f"there is no head {self.space!r} to test (heads: {', '.join(spec.labels)})")
        before = list(spec.labels)[: list(spec.labels).index(self.space)]
        first = sum(spec.labels[name] for name in before)
        self.columns = slice(first, first + spec.labels[self.space])
        self.foreign = self.space != spec.space
        self.ensemble = ensemble
        self.activation = "sigmoid" if self.space in spec.several else activation
        self.metrics = dict.fromkeys(self._names(spec), HIGHER)

    def _names(self, spec) -> list[str]:
        if self.foreign:
            return []
        if self.space in spec.several:
            return ["map"]
        return ["top1", *[f"top{TOP}"] * (spec.labels[self.space] > TOP), "mean_class"]

    @property
    def protocol(self) -> str:
        return (
            f"{self.views} view{'s' if self.views > 1 else ''} per video, {self.ensemble} of {self.activation} scores"
            f"{f' of head {self.space}' if self.foreign else ''}"
        )

    def step(self, model, batch) -> dict[str, torch.Tensor]:
        """Rows of one batch: sample index, view, label and scores [B, C]."""
        scores = self.scores(model(batch["video"])["logits"])
        return {"index": batch["index"], "view": batch["view"], "labels": batch["labels"], "scores": scores}

    def merge(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One row per video of all its views, which come sorted by (index, view)."""
        return merged(rows, self.views, self.ensemble)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Those of the classes of this evaluation's head, [B, C], from the logits [B, classes of all heads]."""
        logits = logits.float()[:, self.columns]
        return logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(1)

    def finish(self, rows: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics, and one row per video (index, labels, scores) for reports. Rows come merged, sorted by index."""
        if self.foreign:
            return {}, {**rows, "labels": np.full(len(rows["index"]), -1)}
        return classified(rows["scores"], rows["labels"]), rows


def check_unmasked(spec, name: str) -> None:
    """Raises `UserError` where clips are masked, which the evaluation `name` cannot read."""
    if spec.masking.ratio:
        raise UserError(
            f"EVALS: {name} reads whole clips, found MASK.RATIO {spec.masking.ratio}; name reconstruction as the"
            " evaluation, or turn it off (TRAIN.EVAL_PERIOD 0, TEST.ENABLE False)"
        )


def merged(rows: dict[str, np.ndarray], views: int, how: str) -> dict[str, np.ndarray]:
    """`index`, `labels` and the `sum`, `mean` or `max` of the `scores` of each sample, of rows by (sample, view)."""
    scores = rows["scores"].reshape(-1, views, rows["scores"].shape[-1])
    return {**{k: rows[k][::views] for k in ("index", "labels")}, "scores": getattr(scores, how)(1)}


def mean_of_views(values: np.ndarray, views: int) -> np.ndarray:
    """[N * views, D] in the order of (sample, view) -> [N, D]."""
    return values.reshape(-1, views, values.shape[-1]).mean(1)


def classified(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`top1`, `top5` (of more than five classes) and `mean_class` of labels [N]; `map` of several labels [N, C]."""
    if labels.ndim == 2:
        return {"map": mean_average_precision(scores, labels)}
    classes = scores.shape[1]
    return {
        # Of five classes or less the right one is always among five.
        **{f"top{k}": topk_accuracy(scores, labels, k) for k in (1, TOP) if k == 1 or k < classes},
        "mean_class": mean_class_accuracy(class_accuracy(scores.argmax(1), labels, classes)),
    }
