"""Which of several texts fits a clip? MSR-VTT's questions."""

import numpy as np
import torch

from videorl.evals.retrieval import outputs
from videorl.evals.views import check_unmasked, mean_of_views
from videorl.metrics import HIGHER
from videorl.registry import EVALS, UserError


@EVALS.register("text_choice")
class TextChoice:
    """The text of the largest dot product with the clip, averaged over views. Metric: `acc`, the part that is right, in
    0..1; ties are wrong."""

    metrics = {"acc": HIGHER}

    def __init__(self, spec):
        check_unmasked(spec, "text_choice")
        self.views = spec.views.clips * spec.views.crops

    @property
    def protocol(self) -> str:
        return f"choice of a clip's text, {self.views} view{'s' if self.views > 1 else ''}, dot product, ties are wrong"

    def step(self, model, batch) -> dict[str, torch.Tensor]:
        """Rows of one batch: index, view, labels and scores [B, K]."""
        found = outputs(model, batch)
        texts = found.get("text_embed")
        if texts is None or texts.ndim != 3 or "labels" not in batch:
            raise UserError("text_choice needs clips with several texts each: msrvtt_qa")
        scores = torch.einsum("bd,bkd->bk", found["video_embed"].float(), texts.float())
        return {"index": batch["index"], "view": batch["view"], "labels": batch["labels"], "scores": scores}

    def finish(self, rows: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The metric, and each sample's scores."""
        scores, labels = mean_of_views(rows["scores"], self.views), rows["labels"][:: self.views]
        right = scores[np.arange(len(scores)), labels]
        others = np.where(np.arange(scores.shape[1]) == labels[:, None], -np.inf, scores)
        found = {"index": rows["index"][:: self.views], "labels": labels, "scores": scores}
        return {"acc": float((right > others.max(1)).mean())}, found
