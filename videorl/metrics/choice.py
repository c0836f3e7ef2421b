"""Questions with several answers, of which one is right: EgoMCQ (Lin et al., EgoVLP, NeurIPS 2022)."""

import numpy as np

from videorl.metrics.classification import topk_accuracy

INTER, INTRA = 1, 2  # `types` of egomcq.json: the wrong clips are of other videos, or of the same one


def choice_scores(texts: np.ndarray, clips: np.ndarray, *, cosine: bool) -> np.ndarray:
    """Score [N, K] of each of K clips [N, K, D] for the text [N, D] of a question.

    Dot products are what LaViLa published its figures with, of embeddings as the model gives them.
    """
    if cosine:
        texts, clips = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (texts, clips))
    return np.einsum("nd,nkd->nk", texts, clips)


def accuracy_by_type(scores: np.ndarray, answers: np.ndarray, types: np.ndarray) -> dict[str, float]:
    """Part of the questions answered rightly, `inter` and `intra` (nan where there are none). A tie is wrong.

    LaViLa and EgoVLP print the two under each other's names: their "Intra-video" is type 1, which is inter.
    """
    kinds = {"inter": types == INTER, "intra": types == INTRA}
    return {name: topk_accuracy(scores[rows], answers[rows], 1) for name, rows in kinds.items()}
