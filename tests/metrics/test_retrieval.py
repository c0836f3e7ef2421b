"""Ranks and recall against the golden cases of MIL-NCE and Norton, and a slow reference."""

import sys
from pathlib import Path

import numpy as np
import pytest

from videorl.metrics.retrieval import ranks, recall, summary

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import load_case  # noqa: E402

CASE = load_case(GOLDEN / "metrics/retrieval_recall.pt")


@pytest.mark.parametrize("k", range(len(CASE["inputs"]["cases"])))
@pytest.mark.parametrize("system", ["milnce", "norton"])
def test_published_figures(k, system):
    drawn = CASE["inputs"]["cases"][k]["scores"].numpy()
    found = summary(ranks(drawn + 2 * np.eye(len(drawn), dtype=np.float32)), len(drawn))
    expected = CASE["expected"]["cases"][k][system]
    published = {name.lower().replace("mr", "medr"): value for name, value in expected.items()}
    assert found == pytest.approx({name: published[name] for name in found})
    assert published.keys() - found.keys() == {f"r{n}" for n in (5, 10) if n >= len(drawn)}


def ranks_slowly(scores) -> list[int]:
    """1, and one more for each other item that is at least as good."""
    return [1 + sum(not s < row[i] for j, s in enumerate(row) if j != i) for i, row in enumerate(scores.tolist())]


@pytest.mark.parametrize("seed", range(5))
def test_ties_count_against_the_query(seed):
    scores = np.random.default_rng(seed).integers(0, 4, (12, 12)).astype(np.float32)
    assert ranks(scores).tolist() == ranks_slowly(scores)


def test_a_model_that_says_the_same_of_everything_is_never_right():
    for value in (0.0, np.nan):
        assert summary(ranks(np.full((20, 20), value)), 20) == {"r1": 0, "r5": 0, "r10": 0, "medr": 20}


def test_published_ties_differ_as_the_docstring_says():
    scores = CASE["inputs"]["ties"][0].numpy()
    found, published = summary(ranks(scores), len(scores)), CASE["expected"]["ties"][0]["milnce"]
    assert (found["r1"], published["R1"]) == (pytest.approx(1 / 3), 0.6)


def test_the_median_may_lie_between_two_ranks():
    assert summary(np.array([1, 2, 7, 30]), 40)["medr"] == 4.5
    assert recall(np.array([1, 2, 7, 30]), 5) == 0.5


def test_of_no_queries_there_is_no_recall():
    assert all(np.isnan(value) for value in summary(ranks(np.zeros((0, 0))), 0).values())
