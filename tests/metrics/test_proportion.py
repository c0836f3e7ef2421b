"""Intervals of proportions, against scipy."""

import pytest
from scipy.stats import binomtest

from videorl.metrics.proportion import hits_of, wilson


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 10), (3, 4), (87, 93), (500, 1000), (999, 1000)])
def test_the_interval_is_wilson_s(hits, n):
    assert wilson(hits, n) == pytest.approx(binomtest(hits, n).proportion_ci(method="wilson"), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "n", "hits"),
    [
        ("top1", 0.75, 4, 3),
        ("t2v_r10", 1 / 3, 9, 3),
        ("top5", 1, 7, 7),
        ("top1", 0.7, 4, None),  # a mean of several splits
        ("mean_class", 0.75, 4, None),
        ("medr", 1.0, 4, None),
        ("top1", float("nan"), 4, None),
        ("top1", 0.5, None, None),
        ("top1", 0.5, 0, None),
        ("top1", "0.5", 4, None),
    ],
)
def test_only_metrics_that_count_samples_have_hits(name, value, n, hits):
    assert hits_of(name, value, n) == hits
