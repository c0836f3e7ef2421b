"""Multi-instance retrieval: clips and sentences that fit each other to a degree (EPIC-Kitchens)."""

import numpy as np
import torch

from videorl.evals.retrieval import embeddings
from videorl.evals.views import check_unmasked, mean_of_views
from videorl.metrics import HIGHER
from videorl.metrics.multi_instance import summary
from videorl.registry import EVALS, UserError


@EVALS.register("multi_instance")
class MultiInstance:
    """Retrieval between clips and distinct sentences, by the relevancies of the data set (see epic_mir).

    Metrics, fractions in 0..1: `map` as published, `ndcg`, and `binary_map`, the textbook's, which counts what fits in
    part as wrong; each for video to text (`v2t_`), text to video (`t2v_`) and as the average of both. Similarity is the
    dot product of embeddings averaged over views. A clip that cannot be read is left out on both sides.
    """

    metrics = {f"{way}{name}": HIGHER for name in ("map", "ndcg", "binary_map") for way in ("", "v2t_", "t2v_")}

    def __init__(self, spec):
        check_unmasked(spec, "multi_instance")
        self.views = spec.views.clips * spec.views.crops
        self.sizes = ""  # of the last evaluation

    @property
    def protocol(self) -> str:
        views = f"{self.views} views averaged" if self.views > 1 else "1 view"
        return f"multi-instance retrieval{self.sizes}, {views}, dot product"

    def begin(self, model, dataset) -> None:
        """Takes the relevancies [clips, sentences] of the data set, and which samples the sentences are of."""
        if not hasattr(dataset, "relevancies"):
            raise UserError("multi_instance needs a data set with relevancies, epic_mir; name retrieval for others")
        self.relevancies, self.sentences = dataset.relevancies, dataset.sentences

    def step(self, model, batch) -> dict[str, torch.Tensor]:
        """Rows of one batch: sample index, view, video_embed and text_embed [B, D]."""
        return {"index": batch["index"], "view": batch["view"], **embeddings(model, batch)}

    def finish(self, rows: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics, and of each clip its index and the relevancy of the sentence that is nearest to it."""
        index = rows["index"][:: self.views]
        clips, texts = (mean_of_views(rows[name], self.views) for name in ("video_embed", "text_embed"))
        kept = np.isin(self.sentences, index)
        columns = np.searchsorted(index, self.sentences[kept])
        scores = clips @ texts[columns].T  # [N, M]
        relevancies = self.relevancies[index][:, kept]
        self.sizes = f" of {len(index)} clips and {len(columns)} sentences"
        nearest = relevancies[np.arange(len(index)), scores.argmax(1)]
        return summary(scores, relevancies), {"index": index, "relevancy": nearest}
