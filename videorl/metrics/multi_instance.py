"""Multi-instance retrieval: every item fits a query to a degree, its relevancy, from 0 (not at all) to 1 (fully).

The figures of EPIC-KITCHENS-100 (Damen et al., IJCV 2022), as LaViLa and EgoVLP compute them.
"""

import numpy as np


def published_average_precision(scores: np.ndarray, relevancy: np.ndarray) -> np.ndarray:
    """Of each query the mean, over its items of relevancy 1, of the summed relevancies down to its place / that place.

    Items of part relevancy are no hits, but count in the sums: so this is above `average_precision`, and equal to it
    where relevancies are 0 and 1. Of equal scores the less relevant comes first; published figures then depend on how
    numpy sorts. scores, relevancy [Q, N] -> [Q] in 0..1; nan for a query without an item of relevancy 1, or with a
    score that is nan.
    """
    ranked = _ranked(scores, relevancy)
    summed = ranked.cumsum(1) / (1 + np.arange(ranked.shape[1]))
    return _mean_where(summed, ranked == 1, scores)


def average_precision(scores: np.ndarray, relevancy: np.ndarray) -> np.ndarray:
    """The textbook's: precision at each item of relevancy 1, averaged; the others are wrong. As above."""
    return published_average_precision(scores, (relevancy == 1).astype(float))


def ndcg(scores: np.ndarray, relevancy: np.ndarray) -> np.ndarray:
    """Normalised discounted cumulative gain of each query, among as many places as it has items above relevancy 0.

    Gain is relevancy / log2(1 + place). scores, relevancy [Q, N] -> [Q] in 0..1; nan for a query that has no such item,
    or a score that is nan.
    """
    places = np.arange(1, relevancy.shape[1] + 1)
    counted = places <= (relevancy > 0).sum(1, keepdims=True)
    discount = counted / np.log2(1 + places)
    gain = (_ranked(scores, relevancy) * discount).sum(1)
    best = (-np.sort(-relevancy, 1) * discount).sum(1)
    found = np.divide(gain, best, out=np.full(len(gain), np.nan), where=best > 0)
    return np.where(np.isnan(scores).any(1), np.nan, found)


def summary(similarity: np.ndarray, relevancy: np.ndarray) -> dict[str, float]:
    """`map`, as published, `ndcg` and the textbook's `binary_map`: `v2t_`, `t2v_`, and the average of these two.

    similarity, relevancy [videos, texts]. Queries that nothing fits are left out of the means; with a nan among the
    similarities there is none.
    """
    if np.isnan(similarity).any():
        similarity = np.full(similarity.shape, np.nan)
    kinds = {"map": published_average_precision, "ndcg": ndcg, "binary_map": average_precision}
    found = {}
    for name, of_queries in kinds.items():
        ways = {"v2t": of_queries(similarity, relevancy), "t2v": of_queries(similarity.T, relevancy.T)}
        means = {f"{way}_{name}": _mean(values) for way, values in ways.items()}
        found |= means | {name: sum(means.values()) / 2}
    return found


def _ranked(scores: np.ndarray, relevancy: np.ndarray) -> np.ndarray:
    """Relevancies by falling score; of equal scores the less relevant first: a tie counts against the query."""
    order = np.lexsort((relevancy, -scores), axis=1)
    return np.take_along_axis(relevancy.astype(float), order, 1)


def _mean_where(values: np.ndarray, hits: np.ndarray, scores: np.ndarray) -> np.ndarray:
    number = hits.sum(1)
    found = np.divide((values * hits).sum(1), number, out=np.full(len(number), np.nan), where=number > 0)
    return np.where(np.isnan(scores).any(1), np.nan, found)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
