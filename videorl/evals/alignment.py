"""When is what a narrator says to be seen, if ever: HTM-Align."""

import numpy as np
import torch
import torch.nn.functional as F

from videorl.metrics import HIGHER
from videorl.metrics.alignment import auc, hits, similarity, texts_of_windows
from videorl.registry import EVALS, UserError


@EVALS.register("alignment")
class Alignment:
    """Zero-shot alignment of sentences with videos, by cosines of sentences and of the hidden states of frames.

    Metrics: `recall`, the part of the sentences that can be aligned whose best second lies within their span, and
    `auc`, the chance that one that can be aligned has a higher best cosine than one that cannot.
    """

    metrics = {"recall": HIGHER, "auc": HIGHER}

    def __init__(self, spec):
        if spec.views.clips * spec.views.crops != 1:
            raise UserError("alignment reads each video once: set CLIPS 1 and CROPS 1 in its entry of EVALS")
        self.counted = ""

    @property
    def protocol(self) -> str:
        return f"alignment of sentences with seconds{self.counted}, cosine, averaged where windows overlap"

    def begin(self, model, dataset) -> None:
        if not hasattr(dataset, "most_texts"):
            raise UserError("alignment needs a data set of sentences with times: htm_align")
        self.most = dataset.most_texts

    def step(self, model, batch) -> dict[str, torch.Tensor]:
        """Rows of one batch: index and, for each sentence of a video [B, most], whether there is one, the best cosine,
        whether it can be aligned, and whether its best second is right."""
        rows = {"score": np.zeros((len(batch["windows"]), self.most), np.float32)}
        rows |= {name: np.zeros(rows["score"].shape, bool) for name in ("there", "alignable", "hit")}
        for row, video in enumerate(batch["windows"]):
            table, notes = self.similarity(model, video), video.notes
            rows["there"][row, : len(table)] = True
            rows["score"][row, : len(table)] = table.max(1)
            rows["alignable"][row, : len(table)] = notes["alignable"]
            rows["hit"][row, : len(table)] = hits(table, notes["starts"], notes["ends"])
        return {"index": batch["index"], **{name: torch.from_numpy(values) for name, values in rows.items()}}

    @staticmethod
    def similarity(model, video) -> np.ndarray:
        """[sentences, seconds] of a video."""
        notes, found = video.notes, cosines(model, video, video.notes)
        middles = (notes["starts"] + notes["ends"]) / 2
        looked_for = texts_of_windows(middles, notes["alignable"], video.starts, found.shape[2])
        return similarity(found, looked_for, video.starts, video.seconds)

    def finish(self, rows: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics, and each video's rows."""
        right, scores, found = (rows[name][rows["there"]] for name in ("alignable", "score", "hit"))
        self.counted = f" ({int(right.sum())} of {len(right)} can be aligned)"
        recall = float(found[right].mean()) if right.any() else float("nan")
        return {"recall": recall, "auc": auc(scores, right)}, rows


def cosines(model, video, texts) -> np.ndarray:
    """[W, N, L]: cosines of `text` with `text_mask` [N, T] with the hidden states of the windows of a video."""
    device = next(model.parameters()).device
    embeds = model.embed_text(texts["text"].to(device), texts["text_mask"].to(device))["text_embed"].float()
    states = model.embed_video(video.features.to(device), video.mask.to(device))["video_tokens"][:, 1:-1].float()
    return torch.einsum("nd,wld->wnl", F.normalize(embeds, dim=-1), F.normalize(states, dim=-1)).cpu().numpy()
