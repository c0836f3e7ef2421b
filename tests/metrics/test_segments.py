"""Classes of seconds, recall of steps, and alignment of narrations: published figures and scikit-learn."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from videorl.metrics import alignment, segments

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import check, load_case  # noqa: E402


def test_accuracy_and_recall_as_published():
    case = load_case(GOLDEN / "metrics/qa_coin_crosstask.pt")
    given = case["inputs"]
    found = segments.frame_metrics(segments.frame_counts(given["outputs"].numpy(), given["targets"].numpy()))
    recall = segments.crosstask_recall(given["crosstask_predictions"], given["crosstask_targets"])
    expected = {k: case["expected"][k] for k in ("coin", "crosstask")}
    check(case | {"expected": expected}, {"coin": {"frame_acc": found["frame_acc"]}, "crosstask": recall})
    assert found["all_background_acc"] == (given["targets"] == 0).float().mean()
    assert found["step_acc"] == pytest.approx(
        float((given["outputs"] == given["targets"])[given["targets"] != 0].float().mean())
    )


def test_recall_leaves_out_videos_and_tasks_without_steps():
    steps = np.array([[1, 0], [0, 0]])
    right = {"a": {"x": steps, "y": steps}, "b": {"z": np.zeros((2, 2))}}
    assert segments.crosstask_recall({"a": {"x": steps}}, right)["recall"] == 1.0


def test_zero_shot_classes_as_published():
    case = load_case(GOLDEN / "norton/coin_zero_shot_rule.pt")
    labels = case["inputs"]["labels"]
    threshold = segments.zero_shot_threshold(labels.numpy())
    found = []
    for video in case["inputs"]["videos"]:
        scores = (video["states"][:, 1:-1] @ labels.T).numpy()
        frames = segments.mean_of_windows(scores, video["windows"], video["frames"])
        found.append(torch.from_numpy(segments.zero_shot_classes(frames, threshold)))
    check(case, {"labels": found, "threshold": threshold})


def test_windows_are_averaged_where_they_overlap():
    windows = np.arange(12.0).reshape(2, 3, 2)
    found = segments.mean_of_windows(windows, [0, 2], 6)
    by_hand = [windows[0, 0], windows[0, 1], (windows[0, 2] + windows[1, 0]) / 2, windows[1, 1], windows[1, 2], [0, 0]]
    np.testing.assert_allclose(found, by_hand)
    np.testing.assert_allclose(segments.mean_of_windows(windows, [0, 2], 3), by_hand[:3])


def test_auc_is_that_of_scikit_learn():
    draw = np.random.default_rng(0)
    scores, right = draw.integers(5, size=50).astype(float), draw.random(50) < 0.3
    assert alignment.auc(scores, right) == pytest.approx(roc_auc_score(right, scores))
    assert np.isnan(alignment.auc(scores, np.ones(50, bool)))


def test_hits_are_counted_in_whole_seconds():
    table = np.eye(4)[[2, 2, 2, 0]]
    found = alignment.hits(table, np.array([2.9, 1.0, 3.1, 0.0]), np.array([3.0, 1.2, 3.9, 0.0]))
    assert found.tolist() == [True, True, False, True]


def test_texts_are_looked_for_between_those_whose_times_may_be_known():
    middles, alignable = [2.0, 30.0, 60.0, 90.0, 200.0], [False, True, True, False, True]
    starts = list(range(0, 224, 8))
    found = alignment.texts_of_windows(middles, alignable, starts, 32)
    assert found[0] == range(0, 1)
    assert found[4] == range(0, 4)
    assert found[starts.index(48)] == range(3, 4)
    assert found[starts.index(144)] == range(3, 5)  # nothing near: from the last before to the end
    assert found[-1] == range(3, 5)
    assert alignment.texts_of_windows([5.0], [True], [0], 32) == [range(0, 1)]
    windows = np.ones((2, 3, 4)) * np.array([1.0, 3.0])[:, None, None]
    table = alignment.similarity(windows, [range(0, 2), range(1, 3)], [0, 2], 5)
    np.testing.assert_allclose(table, [[1, 1, 1, 1, 0], [1, 1, 2, 2, 3], [0, 0, 3, 3, 3]])
