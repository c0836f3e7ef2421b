"""Retrieval of clips by text and of texts by clip, with the embeddings of a model of two towers."""

import numpy as np
import torch

from videorl.evals.views import check_unmasked, mean_of_views
from videorl.metrics import HIGHER, LOWER
from videorl.metrics.retrieval import ranks, summary
from videorl.registry import EVALS, UserError, parameters_of


@EVALS.register("retrieval")
class Retrieval:
    """Zero-shot retrieval as in antoine77340/MIL-NCE_HowTo100M (eval_youcook.py, eval_msrvtt.py).

    A clip's embedding is the mean over its windows; similarity is the plain dot product. Each sample is a text and its
    clip; samples of the same `group` have the same clip, which is there once. A text looks for its clip among all
    clips; a clip for its texts among all texts, where the best placed of its own counts (as of MSR-VTT's 20 and MSVD's
    40 sentences a video). Metrics for text to video (`t2v_`) and video to text (`v2t_`): `r1`, and of more items than
    that `r5`, `r10`, fractions in 0..1; `medr`, the median rank, at least 1. Ties count against the query.
    """

    metrics = {f"{way}_{name}": LOWER if name == "medr" else HIGHER for way in ("t2v", "v2t")
               for name in ("r1", "r5", "r10", "medr")}  # fmt: skip

    def __init__(self, spec):
        check_unmasked(spec, "retrieval")
        self.views = spec.views.clips * spec.views.crops
        self.sizes = ""  # of the last evaluation

    @property
    def protocol(self) -> str:
        windows = f"{self.views} windows averaged" if self.views > 1 else "1 window"
        return (
            f"retrieval of a text's clip among all clips and of a clip's best placed text among all texts{self.sizes},"
            f" {windows}, dot product, ties count against the query"
        )

    def step(self, model, batch) -> dict[str, torch.Tensor]:
        """Rows of one batch: sample index, view, group, video_embed and text_embed [B, D]."""
        group = batch.get("group", batch["index"])
        return {"index": batch["index"], "view": batch["view"], "group": group, **embeddings(model, batch)}

    def finish(self, rows: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics, and each sample's ranks: of its clip, and of the best text of its clip. Rows come sorted by
        (index, view)."""
        videos = mean_of_views(rows["video_embed"], self.views)  # [N, D]
        texts, groups = rows["text_embed"][:: self.views], rows["group"][:: self.views]
        clips, first, clip_of = np.unique(groups, return_index=True, return_inverse=True)
        scores = texts @ videos[first].T  # [N texts, M clips]
        found = {"t2v": ranks(scores, groups, clips), "v2t": ranks(scores.T, clips, groups)}
        items = {"t2v": len(clips), "v2t": len(texts)}
        self.sizes = f" ({len(clips)} clips, {len(texts)} texts)"
        metrics = {f"{way}_{name}": v for way, r in found.items() for name, v in summary(r, items[way]).items()}
        index = rows["index"][:: self.views]
        return metrics, {"index": index, "t2v_rank": found["t2v"], "v2t_rank": found["v2t"][clip_of]}


def embeddings(model, batch) -> dict[str, torch.Tensor]:
    """`video_embed` and `text_embed` [B, D] float32 of a batch. Raises `UserError` where a sample has several texts."""
    found = outputs(model, batch)
    if missing := {"video_embed", "text_embed"} - found.keys():
        raise UserError(
            f"retrieval and choice compare clips and texts, but model and data set give no {' and no '.join(missing)}:"
            " choose others"
        )
    if found["text_embed"].ndim == 3 and found["text_embed"].shape[1] > 1:
        raise UserError(
            f"retrieval and choice read one text a sample, found {found['text_embed'].shape[1]}: name a data set that"
            " gives each of them as a sample, and the same `group` to those of one clip"
        )
    return {name: found[name].float().flatten(1) for name in ("video_embed", "text_embed")}


def outputs(model, batch) -> dict[str, torch.Tensor]:
    """What a model makes of those entries of a batch that its `forward` names."""
    plain = getattr(model, "_orig_mod", model)  # inside torch.compile
    names = parameters_of(getattr(plain, "forward", plain))
    return model(**{name: batch[name] for name in names if name in batch})
