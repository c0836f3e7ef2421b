"""mAP and nDCG of EPIC-KITCHENS-100 against the golden case of LaViLa, scikit-learn, and slow references."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from videorl.metrics.multi_instance import average_precision, ndcg, published_average_precision, summary

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import load_case  # noqa: E402


def test_published_figures():
    case = load_case(GOLDEN / "metrics/ek100_mir.pt")
    found = summary(case["inputs"]["similarity"].numpy(), case["inputs"]["relevancy"].numpy())
    for name, published in (("map", "mAP"), ("ndcg", "nDCG"), ("binary_map", "mAP_binarised")):
        got = {"v2t": found[f"v2t_{name}"], "t2v": found[f"t2v_{name}"], "avg": found[name]}
        assert got == pytest.approx(case["expected"][published], abs=1e-9)


def slowly(scores, relevancy) -> tuple[float, float, float]:
    """Of one query: published and textbook average precision, nDCG. Of equal scores the less relevant comes first."""
    ranked = [r for _, r in sorted(zip(scores, relevancy), key=lambda pair: (-pair[0], pair[1]))]
    hits = [k for k, r in enumerate(ranked) if r == 1]
    published = [sum(ranked[: k + 1]) / (k + 1) for k in hits]
    textbook = [sum(r == 1 for r in ranked[: k + 1]) / (k + 1) for k in hits]
    places = sum(r > 0 for r in relevancy)
    gain = sum(r / math.log2(k + 2) for k, r in enumerate(ranked[:places]))
    best = sum(r / math.log2(k + 2) for k, r in enumerate(sorted(relevancy, reverse=True)[:places]))
    mean = lambda values: sum(values) / len(values) if values else math.nan  # noqa: E731
    return mean(published), mean(textbook), gain / best if best else math.nan


@pytest.mark.parametrize("ties", [False, True])
def test_each_query_against_a_slow_reference(ties):
    random = np.random.default_rng(4)
    scores = random.integers(0, 4, (30, 17)) * 1.0 if ties else random.normal(size=(30, 17))
    relevancy = random.choice([0.0, 0.0, 0.25, 0.5, 1.0], (30, 17))
    relevancy[:, 0], relevancy[3] = 1.0, 0.0
    relevancy[4] = np.minimum(relevancy[4], 0.5)
    found = [of_queries(scores, relevancy) for of_queries in (published_average_precision, average_precision, ndcg)]
    for row, wanted in enumerate(slowly(s, r) for s, r in zip(scores, relevancy)):
        assert [values[row] for values in found] == pytest.approx(wanted, nan_ok=True)
    assert np.isnan(found[0]).tolist() == [k in (3, 4) for k in range(30)]
    assert np.isnan(found[2]).tolist() == [k == 3 for k in range(30)]


def test_with_zeros_and_ones_it_is_average_precision_as_everywhere():
    random = np.random.default_rng(5)
    scores, hits = random.normal(size=(20, 12)), (random.random((20, 12)) < 0.4).astype(float)
    wanted = [average_precision_score(h, s) for h, s in zip(hits, scores)]
    assert published_average_precision(scores, hits) == pytest.approx(wanted)
    assert average_precision(scores, hits) == pytest.approx(wanted)


def test_the_best_ranking_scores_1_and_what_says_nothing_is_not_rewarded():
    relevancy = np.array([[1.0, 0.5, 0.0, 0.0], [0.0, 1.0, 1.0, 0.25], [0, 0, 0.5, 1.0]])
    assert set(summary(relevancy, relevancy).values()) == {1.0}
    same = summary(np.zeros((3, 4)), relevancy)
    assert same["binary_map"] < 0.6
    assert same["ndcg"] < 0.6
    relevancy[0, 0], one_nan = 1.0, relevancy.copy()
    one_nan[1, 2] = np.nan
    assert np.isnan(list(summary(one_nan, relevancy).values())).all()
