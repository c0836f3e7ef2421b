"""The linear classifier against scikit-learn's own scores, also for two classes."""

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from videorl.metrics.probe import svm_scores


@pytest.mark.parametrize("classes", [2, 4])
def test_decision_values_pick_the_class_that_the_svm_predicts(classes):
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 80) * 3
    features = random.normal(size=(80, 8)) + np.eye(8)[labels // 3]
    scores, names = svm_scores(features[:60], labels[:60], features[60:], 0.5)
    svm = LinearSVC(C=0.5, dual="auto", random_state=0).fit(features[:60], labels[:60])
    assert names.tolist() == sorted(set(labels))
    assert scores.shape == (20, classes)
    assert names[scores.argmax(1)].tolist() == svm.predict(features[60:]).tolist()
