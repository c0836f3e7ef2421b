"""Classification metrics against slow references and scikit-learn."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle

from videorl.metrics.classification import (
    charades_average_precision,
    class_accuracy,
    confusion,
    marginalise,
    mean_average_precision,
    mean_class_accuracy,
    topk_accuracy,
)

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import check, load_case  # noqa: E402


@pytest.fixture(params=range(5))
def drawn(request):
    """Scores [N, C] without ties, labels and predictions [N]; the last class has no samples."""
    random = np.random.default_rng(request.param)
    n, classes = int(random.integers(20, 60)), int(random.integers(3, 12))
    scores = random.permutation(n * classes).reshape(n, classes).astype(np.float32)
    return scores, random.integers(0, classes - 1, n), classes


def topk_slowly(scores, labels, k) -> float:
    """Counts a sample when fewer than k other classes score at least as high as its own."""
    right = 0
    for row, label in zip(scores.tolist(), labels.tolist()):
        rivals = sum(score >= row[label] for j, score in enumerate(row) if j != label)
        right += rivals < k
    return right / len(labels)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_topk_accuracy(drawn, k):
    scores, labels, classes = drawn
    got = topk_accuracy(scores, labels, k)
    assert got == pytest.approx(topk_slowly(scores, labels, k), abs=1e-12)
    if k < classes:
        expected = oracle.top_k_accuracy_score(labels, scores, k=k, labels=range(classes))
        assert got == pytest.approx(expected, abs=1e-12)
    else:
        assert got == 1.0


@pytest.mark.parametrize("k", [1, 2, 3])
def test_topk_with_ties_counts_against_the_label(k):
    random = np.random.default_rng(0)
    scores, labels = random.integers(0, 3, (200, 4)).astype(float), random.integers(0, 4, 200)
    assert topk_accuracy(scores, labels, k) == pytest.approx(topk_slowly(scores, labels, k), abs=1e-12)
    assert topk_accuracy(np.zeros((10, 4)), np.zeros(10, int), 3) == 0.0, "a model that says nothing is right never"
    assert topk_accuracy(np.zeros((10, 4)), np.zeros(10, int), 4) == 1.0


def test_scores_that_are_no_numbers_are_not_right():
    """A model that diverged must not look perfect."""
    assert topk_accuracy(np.full((3, 4), np.nan), np.zeros(3, int), 3) == 0.0
    assert topk_accuracy(np.array([[1.0, np.nan], [np.nan, 1.0]]), np.zeros(2, int), 1) == 0.0


def test_confusion(drawn):
    scores, labels, classes = drawn
    predicted = scores.argmax(1)
    expected = oracle.confusion_matrix(labels, predicted, labels=range(classes))
    assert np.array_equal(confusion(predicted, labels, classes), expected)


def test_class_accuracy(drawn):
    scores, labels, classes = drawn
    predicted = scores.argmax(1)
    got = class_accuracy(predicted, labels, classes)
    assert np.isnan(got[-1])
    expected = oracle.recall_score(labels, predicted, labels=range(classes), average=None, zero_division=np.nan)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def average_precision_slowly(scores, targets) -> float:
    """Mean over the positives of the precision among all that score at least as high."""
    precisions = []
    for score, target in zip(scores, targets):
        if target:
            above = scores >= score
            precisions.append(targets[above].sum() / above.sum())
    return float(np.mean(precisions))


@pytest.mark.parametrize("ties", [False, True])
def test_mean_average_precision(ties):
    random = np.random.default_rng(3)
    scores = random.integers(0, 6 if ties else 10**6, (40, 7)).astype(float)
    targets = random.random((40, 7)) < 0.2
    targets[:, 4] = False
    wanted = [average_precision_slowly(scores[:, c], targets[:, c]) for c in range(7) if targets[:, c].any()]
    assert len(wanted) == 6
    assert mean_average_precision(scores, targets.astype(np.float32)) == pytest.approx(np.mean(wanted), abs=1e-12)


def test_figures_of_lavila():
    case = load_case(GOLDEN / "metrics/classification.pt")
    given = case["inputs"]
    table = given["confusion"].numpy()
    predicted, labels = (np.repeat(np.indices((3, 3))[k].ravel(), table.ravel()) for k in (1, 0))
    per_class = class_accuracy(predicted, labels, 3)
    scores, logits = given["action_scores"].numpy(), given["logits"].numpy()
    got = {
        "mean_class_accuracy": 100 * mean_class_accuracy(per_class, absent=0.0),
        "accuracy": 100 * np.mean(predicted == labels),
        "noun_scores": marginalise(scores, np.array(given["actions"]["noun"]), 3),
        "topk": [100 * topk_accuracy(logits, given["targets"].numpy(), k) for k in (1, 5)],
    }
    check(case, got)
    assert mean_class_accuracy(per_class) == pytest.approx((5 / 6 + 1 / 2) / 2)
    verbs, published = (
        marginalise(scores, np.array(given["actions"]["verb"]), 4),
        case["expected"]["verb_scores"].numpy(),
    )
    np.testing.assert_allclose(verbs[:, [0, 1, 3]], published[:, [0, 1, 3]])
    assert not verbs[:, 2].any(), "no action has it"
    np.testing.assert_array_equal(published[:, 2], scores[:, 0])


def test_charades_as_published():
    case = load_case(GOLDEN / "metrics/charades_map.pt")
    given = {name: value.numpy() for name, value in case["inputs"].items()}
    assert (given["labels"].sum(1) == 0).any()
    found = charades_average_precision(given["scores"], given["labels"])
    check(case, {"AP": torch.from_numpy(found), "mAP": found.mean()})
    unlabelled_too = [average_precision_slowly(given["scores"][:, c], given["labels"][:, c] > 0) for c in range(12)]
    assert np.abs(found - unlabelled_too).max() > 0.01
    empty = charades_average_precision(given["scores"], given["labels_with_empty_class"])
    assert np.isnan(empty.mean())
    assert np.isnan(case["expected"]["mAP_with_empty_class"])
    assert np.isnan(empty).sum() == (given["labels_with_empty_class"].sum(0) == 0).sum() == 1


def test_of_no_samples_there_is_no_accuracy():
    none = np.zeros((0, 3))
    assert np.isnan(topk_accuracy(none, np.zeros(0, int), 1))
    assert np.isnan(class_accuracy(np.zeros(0, int), np.zeros(0, int), 3)).all()
    assert np.isnan(mean_average_precision(np.ones((4, 2)), np.zeros((4, 2))))
