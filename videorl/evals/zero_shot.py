"""Classification without training: the texts of classes, embedded, are the classifier."""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from videorl.evals.actions import Actions, part_metrics, softmax
from videorl.evals.views import check_unmasked, classified, merged
from videorl.metrics import HIGHER
from videorl.metrics.classification import charades_average_precision
from videorl.registry import EVALS, Positive, UserError

TEXTS = 256  # embedded at a time


@EVALS.register("zero_shot")
class ZeroShot:
    """Each class is the mean of the embeddings of its texts in all templates, each of length 1; the score of a clip is
    its cosine with it (Radford et al., CLIP, 2021; as LaViLa evaluates EPIC-Kitchens, EGTEA and Charades-Ego).

    Metrics, fractions in 0..1: those of `views`; where the data set knows the `parts` of its classes also `verb_top1`
    and so on, of the softmax of the scores / `temperature`, summed over the classes that have that verb; for several
    labels `map`, and `charades_map`, where a video without labels is behind all others.

    Keys:
        templates: what a text is put into, in place of {}
        merge: mean: scores of views are averaged | max: the highest counts
        temperature: scores are divided by it before the softmax that parts of classes are summed in
    """

    metrics = {**Actions.metrics, "map": HIGHER, "charades_map": HIGHER}

    def __init__(
        self,
        spec,
        *,
        templates: tuple[str, ...] = ("#C C {}", "#C {}"),
        merge: Literal["mean", "max"] = "mean",
        temperature: Positive = 0.07,
    ):
        check_unmasked(spec, "zero_shot")
        if not templates or any(template.count("{}") != 1 for template in templates):
            raise UserError(f"TEMPLATES {list(templates)}: expected texts with one {{}} each, such as '#C C {{}}'")
        self.templates, self.how, self.temperature = templates, merge, temperature
        self.views = spec.views.clips * spec.views.crops
        self.classes, self.parts = "", {}

    @property
    def protocol(self) -> str:
        views = f"{self.views} view{'s' if self.views > 1 else ''}, {self.how}"
        return f"zero-shot, cosine with texts of classes{self.classes}, templates {', '.join(self.templates)}, {views}"

    def begin(self, model, dataset) -> None:
        """Embeds the texts of the classes of the data set."""
        if not getattr(dataset, "class_texts", None):
            raise UserError("zero_shot needs a data set with texts of classes: epic_cls, egtea or charades_ego")
        self.parts = getattr(dataset, "parts", {})
        device = next(model.parameters()).device
        embedded = [self._class(model, dataset.tokenize, texts, device) for texts in dataset.class_texts]
        self.classifier = torch.stack(embedded)  # [C, D]
        self.classes = f" ({len(embedded)})"

    def _class(self, model, tokenize, texts: list[str], device) -> torch.Tensor:
        """[D] of length 1."""
        filled = [template.replace("{}", text) for text in texts for template in self.templates]
        parts = [tokenize(filled[k : k + TEXTS]).to(device) for k in range(0, len(filled), TEXTS)]
        embeds = torch.cat([model.embed_text(part[:, None]).float().flatten(1) for part in parts])
        return F.normalize(F.normalize(embeds, dim=1).mean(0), dim=0)

    def step(self, model, batch) -> dict[str, torch.Tensor]:
        """Rows of one batch: sample index, view, labels and scores [B, C]."""
        videos = F.normalize(model(video=batch["video"])["video_embed"].float(), dim=1)
        scores = videos @ self.classifier.T
        return {"index": batch["index"], "view": batch["view"], "labels": batch["labels"], "scores": scores}

    def merge(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One row per video of all its views, which come sorted by (index, view)."""
        return merged(rows, self.views, self.how)

    def finish(self, rows: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics, and the rows."""
        scores, labels = rows["scores"], rows["labels"]
        found = classified(scores, labels)
        if labels.ndim == 2:
            found["charades_map"] = float(np.nanmean(charades_average_precision(scores, labels)))
        found |= part_metrics(self.parts, softmax(scores / self.temperature), labels)
        return found, rows
