"""`videorl probe` on stored features: classifiers against plain ones, windows summed, what is missing named."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from videorl.cli import probe as tool
from videorl.metrics.probe import knn_scores, logistic_scores

RANDOM = np.random.default_rng(0)
TRAIN, TEST = RANDOM.normal(size=(60, 5)), RANDOM.normal(size=(20, 5))
LABELS = np.repeat([1, 4, 7], 20)
TRAIN[LABELS == 4] += 1.5


def test_neighbours_against_sklearn():
    oracle = KNeighborsClassifier(7, metric="cosine", weights=lambda far: np.exp((1 - far) / 0.07)).fit(TRAIN, LABELS)
    scores, classes = knn_scores(TRAIN, LABELS, TEST, 7)
    assert classes.tolist() == [1, 4, 7]
    np.testing.assert_allclose(scores / scores.sum(1, keepdims=True), oracle.predict_proba(TEST), atol=1e-9)


def test_logistic_regression_against_scaling_by_hand():
    mean, std = TRAIN.mean(0), TRAIN.std(0)
    oracle = LogisticRegression(C=0.5, max_iter=1000).fit((TRAIN - mean) / std, LABELS)
    scores, _ = logistic_scores(TRAIN, LABELS, TEST, 0.5)
    np.testing.assert_allclose(scores, oracle.predict_log_proba((TEST - mean) / std), atol=1e-6)


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    """12 videos of two classes, as `videorl extract` leaves them; the fourth of each class has three windows."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "features"
    out.mkdir()
    videos, rows = [], []
    for k in range(12):
        count = 3 if k % 6 == 3 else 1
        videos.append({"path": f"{k}.mp4", "windows": count})
        rows += [[k // 6 - 0.5, 0.1 * k]] * count
    np.save(out / "shard_00000.features.npy", np.array(rows, np.float16))
    np.save(out / "shard_00000.times.npy", np.zeros((len(rows), 2)))
    (out / "shard_00000.json").write_text(json.dumps({"videos": videos, "arrays": {"features": {}, "times": {}}}))
    (out / "index.json").write_text(json.dumps({"layout": "npy", "shards": 1}))
    (tmp_path / "train.csv").write_text("".join(f"{k}.mp4 {k // 6}\n" for k in (0, 1, 2, 3, 6, 7, 8, 9)))
    (tmp_path / "test.csv").write_text("4.mp4 0\n5.mp4 1\n10.mp4 1\n11.mp4 1\nnix.mp4 0\n")
    return tmp_path


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_refused_by_the_first_video(store, capsys, value):
    rows = np.load(store / "features/shard_00000.features.npy")
    rows[[4, 13]] = value  # the second window of 3.mp4, and the first of 9.mp4
    np.save(store / "features/shard_00000.features.npy", rows)
    with pytest.raises(SystemExit) as end:
        tool.main(["features", "--train", "train.csv", "--test", "test.csv", "--method", "knn"])
    assert end.value.code == 2
    assert "features of 3.mp4 holds NaN or infinity" in capsys.readouterr().err


@pytest.mark.parametrize("how", [[], ["--method", "logistic"], ["--method", "knn", "--k", "3"]])
def test_a_probe_counts_right_videos_and_names_missing_ones(store, capsys, how):
    tool.main(["features", "--train", "train.csv", "--test", "test.csv", "--json", "found.json", *how])
    found = json.loads((store / "found.json").read_text())
    assert (found["top1"], found["n"], found["of"]) == (0.75, 4, 5)
    assert found["mean_class"] == pytest.approx((1 + 2 / 3) / 2)
    assert "test.csv: 1 videos have no features: nix.mp4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nix"], "index.json does not exist"),
        (["features", "--test", "none.csv"], "none of 1 listed videos has features"),
        (["features", "--train", "one.csv"], "videos of one class only"),
        (["features", "--train", "broken.csv"], "broken.csv:1: "),
        (["features", "--feature", "feature"], "no feature feature; did you mean features?"),
        (["features", "--method", "knn", "--k", "0"], "--k 0: expected more than 0"),
        (["features", "--k", "3"], "--k: of no effect with --method svm, which takes --c"),
        (["features", "--method", "knn", "--c", "3"], "--c: of no effect with --method knn, which takes --k"),
    ],
)
def test_mistakes_are_told_in_one_line(store, capsys, words, line):
    (store / "none.csv").write_text("a.mp4 0\n")
    (store / "one.csv").write_text("0.mp4 0\n1.mp4 0\n")
    (store / "broken.csv").write_text("0.mp4\n")
    usual = ["--train", "train.csv", "--test", "test.csv"]
    with pytest.raises(SystemExit) as end:
        tool.main([words[0], *usual, *words[1:]])
    assert end.value.code == 2
    assert line in capsys.readouterr().err.splitlines()[-1]
