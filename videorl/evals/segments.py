"""What is done in each second of a video: COIN, with a classifier or with the texts of the steps."""

import numpy as np
import torch

from videorl.metrics import HIGHER
from videorl.metrics.segments import (
    frame_counts,
    frame_metrics,
    mean_of_windows,
    zero_shot_classes,
    zero_shot_threshold,
)
from videorl.registry import EVALS, UserError

COUNTS = ("seconds", "found", "steps", "found_steps")
WINDOWS = 64  # at a time


@EVALS.register("segments")
class Segments:
    """The class of each second, from scores that are averaged where windows of the video overlap.

    A model that gives `logits` says it by the highest of them. Of another the scores are dot products of the hidden
    states of frames, which do not attend to [CLS], and the texts of the steps; nothing is done (class 0) unless the
    best is above the largest dot product of the texts of two steps. Metrics: `frame_acc`, the part of all seconds,
    0..1; `all_background_acc`, what it would be if nothing were ever done, which zero-shot models rarely beat;
    `step_acc`, of the seconds in which something is done.
    """

    metrics = dict.fromkeys(("frame_acc", "all_background_acc", "step_acc"), HIGHER)

    def __init__(self, spec):
        if spec.views.clips * spec.views.crops != 1:
            raise UserError("segments reads each video once: set CLIPS 1 and CROPS 1 in its entry of EVALS")
        self.labels = None

    @property
    def protocol(self) -> str:
        how = "the best logit" if self.labels is None else f"zero-shot, {len(self.labels)} texts of steps"
        return f"class of each second, {how}, averaged where windows overlap, background counts"

    def begin(self, model, dataset) -> None:
        """Embeds the texts of the steps, unless the model has a head of classes."""
        self.labels = None
        if not hasattr(dataset, "label_texts"):
            raise UserError("segments needs a data set of steps: coin")
        if hasattr(model, "head"):
            return
        self.numbers = np.array([0, *dataset.label_texts])
        texts = dataset.texts(list(dataset.label_texts.values()))
        device = next(model.parameters()).device
        found = model.embed_text(texts["text"].to(device), texts["text_mask"].to(device))
        self.labels = found["text_embed"].float()  # [C, D]
        self.threshold = zero_shot_threshold(self.labels.cpu().numpy())

    def step(self, model, batch) -> dict[str, torch.Tensor]:
        """Rows of one batch: index and, for each video, the counts of its seconds."""
        counts = [frame_counts(self._classes(model, video), video.notes["labels"]) for video in batch["windows"]]
        return {"index": batch["index"], **{name: torch.tensor([c[name] for c in counts]) for name in COUNTS}}

    def _classes(self, model, video) -> np.ndarray:
        """[seconds] int64."""
        scores = mean_of_windows(self.scores(model, video), video.starts, video.seconds)
        if self.labels is None:
            return scores.argmax(1)
        return self.numbers[zero_shot_classes(scores, self.threshold)]

    def scores(self, model, video) -> np.ndarray:
        """[W, L, C] of the windows of a video."""
        device = next(model.parameters()).device
        parts = [(f.to(device), m.to(device)) for f, m in zip(video.features.split(WINDOWS), video.mask.split(WINDOWS))]
        if self.labels is None:
            found = [model(*part)["logits"] for part in parts]
        else:
            states = [model.embed_video(*part, attend_cls=False)["video_tokens"][:, 1:-1] for part in parts]
            found = [s.float() @ self.labels.T for s in states]
        return torch.cat(found).float().cpu().numpy()

    def finish(self, rows: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics, and the counts of each video."""
        return frame_metrics({name: int(rows[name].sum()) for name in COUNTS}), rows
