"""Actions that have parts, as those of EPIC-Kitchens have a verb and a noun."""

import numpy as np
import torch

from videorl.evals.views import check_unmasked, classified, merged
from videorl.metrics import HIGHER
from videorl.metrics.classification import marginalise, topk_accuracy
from videorl.registry import EVALS, UserError

TOP = (1, 5)


@EVALS.register("actions")
class Actions:
    """Classification of actions and of their parts, by a model that scores actions alone, or each part and actions.

    Metrics, fractions in 0..1: `top1`, `top5` and `mean_class` of actions, `verb_top1`, `verb_top5` and so on of their
    parts: from the logits of these where the model has them (EPIC_CLS.HEADS), else from the probabilities of all
    actions with that part. Logits are averaged over views, as LaViLa does.
    """

    metrics = {
        **dict.fromkeys(("top1", "top5", "mean_class"), HIGHER),
        **{f"{part}_top{k}": HIGHER for part in ("verb", "noun") for k in TOP},
    }

    def __init__(self, spec):
        check_unmasked(spec, "actions")
        self.views = spec.views.clips * spec.views.crops
        self.parts: dict[str, np.ndarray] = {}
        self.heads: tuple[int, ...] = ()

    @property
    def protocol(self) -> str:
        views = f"{self.views} view{'s' if self.views > 1 else ''} per video, mean of logits"
        return f"{views}; verbs and nouns {'by their own logits' if self.heads else 'by sums over actions'}"

    def begin(self, model, dataset) -> None:
        """Takes the parts of the actions of the data set, and whether labels are of parts too."""
        if not hasattr(dataset, "parts"):
            raise UserError("actions needs a data set whose classes have parts: epic_cls; name views for others")
        self.parts, self.heads = dataset.parts, dataset.heads

    def step(self, model, batch) -> dict[str, torch.Tensor]:
        """Rows of one batch: sample index, view, labels and scores [B, C]."""
        logits = model(video=batch["video"])["logits"].float()
        return {"index": batch["index"], "view": batch["view"], "labels": batch["labels"], "scores": logits}

    def merge(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One row per video of all its views, which come sorted by (index, view)."""
        return merged(rows, self.views, "mean")

    def finish(self, rows: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics, and one row per video: index, number and scores of its action."""
        logits, labels = rows["scores"], rows["labels"]
        first = sum(self.heads)
        scores, label = logits[:, first:], labels[:, -1] if self.heads else labels
        found = classified(scores, label)
        if self.heads:
            own = np.split(logits[:, :first], np.cumsum(self.heads)[:-1], axis=1)
            for k, (name, of_part) in enumerate(zip(self.parts, own)):
                found |= _topk(name, of_part, labels[:, k])
        else:
            found |= part_metrics(self.parts, softmax(scores), label)
        return found, {"index": rows["index"], "labels": label, "scores": scores}


def part_metrics(parts: dict[str, np.ndarray], scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`verb_top1`, … of probabilities [N, C] of actions, summed over those that have a verb. `parts`: name -> [C]."""
    found = {}
    for name, part_of in parts.items():
        found |= _topk(name, marginalise(scores, part_of, int(part_of.max()) + 1), part_of[labels])
    return found


def _topk(name: str, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {f"{name}_top{k}": topk_accuracy(scores, labels, k) for k in TOP if k < scores.shape[1]}


def softmax(scores: np.ndarray) -> np.ndarray:
    """[N, C] along C."""
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
