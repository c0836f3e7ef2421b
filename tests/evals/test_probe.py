"""The linear probe against the golden figures of MIL-NCE's eval_hmdb.py."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from videorl.evals.probe import Probe
from videorl.registry import UserError
from videorl.spec import Clip, Masking, Spec, Views

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import limits, load_case  # noqa: E402


def probe(clips: int, crops: int = 1, **keys) -> Probe:
    return Probe(Spec(Clip(16, 1, 48, 48), views=Views(clips, crops)), **keys)


def as_rows(features: np.ndarray, labels: np.ndarray, splits: np.ndarray) -> dict[str, np.ndarray]:
    """Rows sorted by (index, view) from features [N, V, D], labels [N] and splits [N, S]."""
    n, views = features.shape[:2]
    return {
        "index": np.repeat(np.arange(n), views),
        "view": np.tile(np.arange(views), n),
        "labels": np.repeat(labels, views),
        "splits": np.repeat(splits, views, 0),
        "features": features.reshape(n * views, -1),
    }


def test_published_accuracies():
    case = load_case(GOLDEN / "metrics/hmdb_linear_svm.pt")
    given = case["inputs"]
    features = (given["noise"] + given["centres"][given["labels"]][:, None]).numpy()
    rows = as_rows(features, given["labels"].numpy(), given["splits"].numpy().T)
    found, per_sample = probe(given["windows"]).finish(rows)
    expected = case["expected"]["top1"]
    atol, _ = limits(case, "top1")
    for k, value in enumerate(expected, 1):
        assert found[f"split{k}_top1"] == pytest.approx(value, abs=atol)
    assert found["top1"] == pytest.approx(np.mean([found[f"split{k}_top1"] for k in (1, 2, 3)]))
    assert ((per_sample["predicted"] >= 0) == (rows["splits"][:: given["windows"]] == 2)).all()


def test_masked_clips_are_refused():
    with pytest.raises(UserError, match=r"^EVALS: probe reads whole clips, found MASK\.RATIO 0\.9; name recon"):
        Probe(Spec(Clip(16, 1, 48, 48), masking=Masking(0.9)))


def test_a_clip_s_windows_vote_together():
    """One window is misleading, but its decision value is small; and what no split uses changes nothing."""
    features = np.array([[[-1.0], [-1.0]], [[1.0], [1.0]], [[-0.2], [3.0]], [[-3.0], [0.2]], [[99.0], [99.0]]])
    labels, splits = np.array([4, 7, 7, 4, 4]), np.array([[1], [1], [2], [2], [0]])
    found, per_sample = probe(2).finish(as_rows(features, labels, splits))
    assert found == {"split1_top1": 1.0, "top1": 1.0}
    assert per_sample["predicted"][:, 0].tolist() == [-1, -1, 7, 4, -1]
    assert per_sample["index"].tolist() == [0, 1, 2, 3, 4]


def test_a_row_for_each_clip():
    batch = {
        "video": torch.zeros(2, 3, 2, 8, 8),
        "labels": torch.tensor([3, 3]),
        "splits": torch.tensor([[1, 2, 0]] * 2),
        "index": torch.tensor([5, 5]),
        "view": torch.tensor([0, 1]),
    }
    features = torch.randn(2, 6).to(torch.bfloat16)
    rows = probe(2).step(lambda video: {"features": features}, batch)
    assert torch.equal(rows["features"], features.float())
    assert all(torch.equal(rows[name], batch[name]) for name in ("index", "view", "labels", "splits"))


def test_a_split_that_tests_nothing_is_an_error():
    rows = as_rows(np.zeros((3, 1, 2)), np.array([0, 1, 0]), np.array([[1], [1], [0]]))
    with pytest.raises(UserError, match="no test clips"):
        probe(1).finish(rows)


def test_the_protocol_in_words():
    assert probe(10).protocol == "linear SVM, C=100, 10 views per video, decision values summed"
