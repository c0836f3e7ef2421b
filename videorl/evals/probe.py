"""How well a linear classifier does on frozen features."""

import numpy as np
import torch

from videorl.evals.views import check_unmasked
from videorl.metrics import HIGHER
from videorl.metrics.probe import svm_scores
from videorl.registry import EVALS, Positive, UserError

TRAIN, TEST = 1, 2  # codes of a data set's `splits`


@EVALS.register("probe")
class Probe:
    """A linear SVM for each split of the data set, as in antoine77340/MIL-NCE_HowTo100M (eval_hmdb.py).

    Every window (and mirror image) of a training clip is a training sample; the decision values of a test clip's
    windows are summed. Features are not scaled. Metrics, fractions in 0..1: `split1_top1` … and their mean, `top1`.

    Keys:
        c: penalty of the SVM
    """

    metrics = {"top1": HIGHER, "split*_top1": HIGHER}

    def __init__(self, spec, *, c: Positive = 100.0):
        check_unmasked(spec, "probe")
        self.views, self.c = spec.views.clips * spec.views.crops, c

    @property
    def protocol(self) -> str:
        views = f"{self.views} view{'s' if self.views > 1 else ''}"
        return f"linear SVM, C={self.c:g}, {views} per video, decision values summed"

    def step(self, model, batch) -> dict[str, torch.Tensor]:
        """Rows of one batch: sample index, view, label, splits [B, S] and features [B, D]."""
        features = model(video=batch["video"])["features"].float()
        return {**{k: batch[k] for k in ("index", "view", "labels", "splits")}, "features": features}

    def finish(self, rows: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics, and one row per sample: index, label, and the class that each split predicts, -1 where it does not
        test it. Rows come sorted by (index, view)."""
        views = self.views
        features = rows["features"].reshape(-1, views, rows["features"].shape[-1])  # [N, V, D]
        labels, splits = rows["labels"][::views], rows["splits"][::views]
        predicted = np.stack([self._predict(features, labels, codes) for codes in splits.T], 1)  # [N, S]
        tested = splits == TEST
        right = (predicted == labels[:, None]) & tested
        top1 = right.sum(0) / tested.sum(0)
        metrics = {f"split{k}_top1": float(value) for k, value in enumerate(top1, 1)}
        found = {"index": rows["index"][::views], "labels": labels, "predicted": predicted}
        return {**metrics, "top1": float(top1.mean())}, found

    def _predict(self, features: np.ndarray, labels: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """[N] classes of the clips that one split tests, -1 for the others."""
        train, test = codes == TRAIN, codes == TEST
        if not test.any() or len(np.unique(labels[train])) < 2:
            raise UserError("linear probe: a split has no test clips, or training clips of less than two classes")
        windows = np.repeat(labels[train], self.views)
        scores, classes = svm_scores(_flat(features[train]), windows, _flat(features[test]), self.c)
        summed = scores.reshape(-1, self.views, len(classes)).sum(1)
        predicted = np.full(len(labels), -1, np.int64)
        predicted[test] = classes[summed.argmax(1)]
        return predicted


def _flat(features: np.ndarray) -> np.ndarray:
    """[N, V, D] -> [N * V, D]."""
    return features.reshape(-1, features.shape[-1])
