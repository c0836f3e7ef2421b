"""Simple classifiers on frozen features: scores of the rows of `test` for each class, [N, C], and class numbers [C]."""

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


def logistic_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, c: float) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the probabilities by scikit-learn's LogisticRegression with penalty `c`.

    Features are scaled to mean 0 and variance 1 on `train`, without which it hardly converges.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(train, labels)
    return model.predict_log_proba(test), model.classes_


def knn_scores(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, k: int, temperature: float = 0.07
) -> tuple[np.ndarray, np.ndarray]:
    """Votes of the `k` nearest rows of `train` by cosine s, each of weight exp(s / temperature).

    As in DINO (facebookresearch/dino, eval_knn.py), whose usual k are 10 and 20.
    """
    classes, numbers = np.unique(labels, return_inverse=True)
    unit = [rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (train, test)]
    votes = np.eye(len(classes))[numbers]  # [M, C]
    scores = np.zeros((len(test), len(classes)))
    for first in range(0, len(test), 1024):  # a block: of all rows at once the cosines may not fit in memory
        cosines = unit[1][first : first + 1024] @ unit[0].T  # [B, M]
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        weights = np.exp(np.take_along_axis(cosines, nearest, 1) / temperature)
        scores[first : first + 1024] = (votes[nearest] * weights[..., None]).sum(1)
    return scores, classes
