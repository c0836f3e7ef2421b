"""A linear classifier on frozen features."""

import numpy as np


def svm_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, c: float) -> tuple[np.ndarray, np.ndarray]:
    """Decision values of the rows of `test` for each class, [N, C], and the class numbers [C].

    scikit-learn's LinearSVC, trained on `train` [M, D] with `labels` [M], as in MIL-NCE: features as they are, one
    class against the rest, penalty `c`. It solves the primal problem where there are more rows than dimensions;
    versions before 1.5 solved the dual by default, whose result differs in the last digits.
    """
    from sklearn.svm import LinearSVC

    svm = LinearSVC(C=c, dual="auto", random_state=0).fit(train, labels)
    scores = svm.decision_function(test)
    return (scores if scores.ndim == 2 else np.stack([-scores, scores], 1)), svm.classes_
