"""Retrieval from similarities [N, N], where query i looks for item i."""

import numpy as np


def ranks(scores: np.ndarray) -> np.ndarray:
    """Rank of each query's own item, from 1: the number of items that do not score below it. [N] int64

    A tie counts against the query, and so does a nan: a model that says the same of everything is never right.
    antoine77340/MIL-NCE_HowTo100M (metrics.py) gives the same ranks where no two scores are equal; a query with ties
    it counts several times, once for each place of the tie.
    """
    own = scores.diagonal()[:, None]
    return (~(scores < own)).sum(1)


def recall(ranks: np.ndarray, k: int) -> float:
    """Part of the queries whose item is among the k best: 0..1 (nan for none)."""
    return float((ranks <= k).mean()) if len(ranks) else float("nan")


def summary(ranks: np.ndarray) -> dict[str, float]:
    """Recall at 1, 5 and 10, and the median rank (1 is best): `r1`, `r5`, `r10`, `medr`."""
    median = float(np.median(ranks)) if len(ranks) else float("nan")
    return {**{f"r{k}": recall(ranks, k) for k in (1, 5, 10)}, "medr": median}
