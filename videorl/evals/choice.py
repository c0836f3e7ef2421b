"""Which of several clips does a text describe: EgoMCQ."""

import logging

import numpy as np
import torch

from videorl.evals.retrieval import embeddings
from videorl.evals.views import check_unmasked, mean_of_views
from videorl.metrics import HIGHER
from videorl.metrics.choice import accuracy_by_type, choice_scores
from videorl.registry import EVALS, UserError

log = logging.getLogger("videorl")


@EVALS.register("choice")
class Choice:
    """Questions with one text and several clips, each of which is a sample (see the data set egomcq).

    Metrics, fractions in 0..1: `inter` and `intra`, right answers among the questions whose clips are of several videos
    and of one, by dot products, with which LaViLa published its figures; `inter_cosine` and `intra_cosine` by cosines,
    which are the same where the model gives embeddings of length 1. Embeddings are averaged over views. Ties are wrong.
    A question that misses one of its clips is left out, and told of.
    """

    metrics = dict.fromkeys(("inter", "intra", "inter_cosine", "intra_cosine"), HIGHER)

    def __init__(self, spec):
        check_unmasked(spec, "choice")
        self.views = spec.views.clips * spec.views.crops
        self.counted = ""  # in the last evaluation

    @property
    def protocol(self) -> str:
        views = f"{self.views} views averaged" if self.views > 1 else "1 view"
        return f"choice of a text's clip{self.counted}, {views}, dot product and cosine, ties are wrong"

    def step(self, model, batch) -> dict[str, torch.Tensor]:
        """Rows of one batch: index, view, group, relevancy, kind, video_embed and text_embed [B, D]."""
        if "kind" not in batch:
            raise UserError("choice needs a data set of questions, such as egomcq; name another evaluation here")
        return {**{k: batch[k] for k in ("index", "view", "group", "relevancy", "kind")}, **embeddings(model, batch)}

    def finish(self, rows: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics, and for each question that counts its first sample's index, its answer and what was chosen."""
        clips = mean_of_views(rows["video_embed"], self.views)
        one = {name: values[:: self.views] for name, values in rows.items()}
        _, first, number = np.unique(one["group"], return_index=True, return_counts=True)
        choices = int(number.max())
        starts = np.sort(first[number == choices])
        if len(starts) < len(first):
            log.warning("choice: %d of %d questions miss a clip and do not count", len(first) - len(starts), len(first))
        places = starts[:, None] + np.arange(choices)  # [Q, K]
        answers, kinds = one["relevancy"][places].argmax(1), one["kind"][starts]
        self.counted = f" among {choices} ({len(starts)} questions)"
        scores = {
            ending: choice_scores(one["text_embed"][starts], clips[places], cosine=bool(ending))
            for ending in ("", "_cosine")
        }
        metrics = {
            f"{name}{ending}": value
            for ending, score in scores.items()
            for name, value in accuracy_by_type(score, answers, kinds).items()
        }
        return metrics, {"index": one["index"][starts], "answer": answers, "chosen": scores[""].argmax(1)}
