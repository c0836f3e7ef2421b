"""Retrieval from similarities [Q, N] of queries and items, of which each query looks for its own."""

import numpy as np


def ranks(scores: np.ndarray, queries: np.ndarray | None = None, items: np.ndarray | None = None) -> np.ndarray:
    """Rank of the best of each query's own items, from 1: one more than the others that do not score below it.

    Returns [Q] int64. Own are those whose number in `items` [N] is the query's in `queries` [Q]; by default item i is
    that of query i.
    A tie counts against the query, and so does a nan: a model that says the same of everything is never right.
    antoine77340/MIL-NCE_HowTo100M (metrics.py) gives the same ranks where no two scores are equal; a query with ties
    it counts several times, once for each place of the tie.
    """
    queries = np.arange(len(scores)) if queries is None else queries
    items = np.arange(scores.shape[1]) if items is None else items
    own = queries[:, None] == items[None]  # [Q, N]
    best = np.where(own, scores, -np.inf).max(1, initial=-np.inf)[:, None]
    return 1 + (~own & ~(scores < best)).sum(1)


def recall(ranks: np.ndarray, k: int) -> float:
    """Part of the queries whose item is among the k best: 0..1 (nan for none)."""
    return float((ranks <= k).mean()) if len(ranks) else float("nan")


def summary(ranks: np.ndarray, items: int) -> dict[str, float]:
    """Recall at 1, 5 and 10 of more than so many `items`, and the median rank (1 is best): `r1`, `r5`, `r10`, `medr`.

    Among ten items or less the right one is always one of ten: that is not reported.
    """
    median = float(np.median(ranks)) if len(ranks) else float("nan")
    return {**{f"r{k}": recall(ranks, k) for k in (1, 5, 10) if k == 1 or k < items}, "medr": median}
