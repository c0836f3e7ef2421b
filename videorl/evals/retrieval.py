"""Retrieval of clips by text and of texts by clip, with the embeddings of a model of two towers."""

import numpy as np
import torch

from videorl.evals.views import check_unmasked
from videorl.metrics.retrieval import ranks, summary
from videorl.registry import EVALS


@EVALS.register("retrieval")
class Retrieval:
    """Zero-shot retrieval as in antoine77340/MIL-NCE_HowTo100M (eval_youcook.py, eval_msrvtt.py).

    A clip's embedding is the mean over its windows; similarity is the plain dot product. Each sample has one text, and
    the others' clips and texts are what it is told from. Metrics for text to video (`t2v_`) and video to text (`v2t_`):
    `r1`, `r5`, `r10`, fractions in 0..1, and `medr`, the median rank, at least 1. Ties count against the query.
    """

    def __init__(self, spec):
        check_unmasked(spec, "retrieval")
        self.views = spec.views.clips * spec.views.crops

    @property
    def protocol(self) -> str:
        windows = f"{self.views} windows averaged" if self.views > 1 else "1 window"
        return f"text and video retrieval, {windows}, dot product, ties count against the query"

    def step(self, model, batch) -> dict[str, torch.Tensor]:
        """Rows of one batch: sample index, view, video_embed and text_embed [B, D]."""
        found = model(video=batch["video"], text=batch["text"])
        embeds = {name: found[name].float() for name in ("video_embed", "text_embed")}
        return {"index": batch["index"], "view": batch["view"], **{k: v.flatten(1) for k, v in embeds.items()}}

    def finish(self, rows: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics, and each sample's ranks. Rows come sorted by (index, view)."""
        videos = rows["video_embed"].reshape(-1, self.views, rows["video_embed"].shape[-1]).mean(1)  # [N, D]
        texts = rows["text_embed"][:: self.views]
        scores = texts @ videos.T
        found = {"t2v": ranks(scores), "v2t": ranks(scores.T)}
        metrics = {f"{way}_{name}": value for way, r in found.items() for name, value in summary(r).items()}
        return metrics, {"index": rows["index"][:: self.views], **{f"{way}_rank": r for way, r in found.items()}}
