"""Multi-view testing against the golden figures of PySlowFast's TestMeter, and by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from videorl.evals.views import Views
from videorl.metrics.classification import topk_accuracy
from videorl.registry import UserError
from videorl.spec import Clip, Masking, Spec
from videorl.spec import Views as Protocol

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import check, load_case  # noqa: E402


def views(clips: int, crops: int = 1, ensemble: str = "sum", activation: str = "softmax") -> Views:
    spec = Spec(Clip(4, 2, 32, 32), {"toy": 3}, space="toy", views=Protocol(clips, crops))
    return Views(spec, ensemble=ensemble, activation=activation)


@pytest.mark.parametrize("ensemble", ["sum", "max"])
def test_scores_of_a_video_s_views_are_joined_as_published(ensemble):
    case = load_case(GOLDEN / "metrics/multi_view_test_meter.pt")
    given = case["inputs"]
    clips = given["num_clips"]
    videos = len(given["labels"]) // clips
    rows = {
        "index": np.repeat(np.arange(videos), clips),
        "view": np.tile(np.arange(clips), videos),
        "labels": given["labels"].numpy(),
        "scores": given["predictions"].numpy(),
    }
    evaluation = views(clips // 3, 3, ensemble)
    found, per_video = evaluation.finish(evaluation.merge(rows))
    got = {"video_predictions": per_video["scores"], "top1": round(100 * found["top1"], 2)}
    got["top2"] = round(100 * topk_accuracy(per_video["scores"], per_video["labels"], 2), 2)
    check({**case, "expected": case["expected"][ensemble]}, got)
    assert per_video["index"].tolist() == list(range(videos))


def test_masked_clips_are_refused():
    spec = Spec(Clip(4, 2, 32, 32), {"toy": 3}, space="toy", masking=Masking(0.9))
    with pytest.raises(UserError, match=r"^EVALS: views reads whole clips, .*; name recon.*TEST\.ENABLE False"):
        Views(spec, ensemble="sum", activation="softmax")


def test_all_metrics_of_one_label():
    scores = np.eye(3)[[0, 0, 1, 2, 1, 1]]
    labels = np.array([0, 0, 1, 1, 1, 1])
    rows = {"index": np.arange(6), "view": np.zeros(6, int), "labels": labels, "scores": scores}
    found, _ = views(1).finish(rows)
    assert found == {"top1": pytest.approx(5 / 6), "mean_class": pytest.approx((1 + 3 / 4) / 2)}


def result_rows(files: list[str]) -> dict[str, np.ndarray]:
    """Rows of result files: a head line, then `id [logits] label segment crop`; what is there twice counts once."""
    seen = {}
    for line in (line for file in files for line in file.strip().split("\n")[1:]):
        video, rest = line.split(" ", 1)
        logits, rest = rest.lstrip("[").split("]")
        label, segment, crop = map(int, rest.split())
        seen[int(video), segment, crop] = [float(value) for value in logits.split(",")], label
    keys = sorted(seen)
    columns = {"index": [key[0] for key in keys], "labels": [seen[key][1] for key in keys]}
    return {k: np.array(v) for k, v in columns.items()} | {"logits": np.array([seen[key][0] for key in keys])}


@pytest.mark.parametrize("merge", ["prob", "score"])
def test_views_are_merged_as_v_swift_and_videomae_do(merge):
    case = load_case(GOLDEN / "metrics/view_merge.pt")
    rows = result_rows(case["inputs"]["files"])
    count = len(rows["index"]) // len(set(rows["index"]))
    logits = torch.from_numpy(rows.pop("logits"))
    scores = (logits.softmax(1) if merge == "prob" else logits).numpy()
    spec = Spec(Clip(4, 2, 32, 32), {"toy": logits.shape[1]}, space="toy", views=Protocol(count, 1))
    evaluation = Views(spec, ensemble="sum", activation="softmax")
    found, _ = evaluation.finish(evaluation.merge({**rows, "scores": scores}))
    check(case, {merge: [100 * found["top1"], 100 * found["top5"]]})


def test_what_is_declared_is_what_is_found():
    for classes, names in ((5, {"top1", "mean_class"}), (6, {"top1", "top5", "mean_class"})):
        spec = Spec(Clip(4, 2, 32, 32), {"toy": classes}, space="toy")
        evaluation = Views(spec, ensemble="sum", activation="softmax")
        rows = {"index": np.arange(2), "labels": np.array([0, 1]), "scores": np.eye(classes)[:2]}
        assert evaluation.finish(rows)[0].keys() == evaluation.metrics.keys() == names


def test_all_metrics_of_several_labels():
    rows = {
        "index": np.array([0, 0, 4, 4]),
        "view": np.array([0, 1, 0, 1]),
        "labels": np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32),
        "scores": np.array([[0.9, 0.1], [0.1, 0.3], [0.4, 0.6], [0.8, 0.1]]),
    }
    found, per_video = views(2).finish(views(2).merge(rows))
    assert per_video["index"].tolist() == [0, 4]
    assert per_video["labels"].tolist() == [[1, 0], [0, 1]]
    np.testing.assert_allclose(per_video["scores"], [[1.0, 0.4], [1.2, 0.7]])
    assert found == {"map": pytest.approx((1 / 2 + 1) / 2)}, "the first class's positive comes second"


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_row_for_each_clip_with_scores_in_float32(activation):
    logits = torch.randn(4, 3).to(torch.bfloat16)
    batch = {
        "video": torch.zeros(4, 3, 2, 8, 8),
        "labels": torch.tensor([0, 0, 2, 2]),
        "index": torch.tensor([5, 5, 6, 6]),
        "view": torch.tensor([0, 1, 0, 1]),
    }
    rows = views(2, activation=activation).step(lambda video: {"logits": logits}, batch)
    assert rows["scores"].dtype == torch.float32
    expected = logits.float().softmax(1) if activation == "softmax" else logits.float().sigmoid()
    assert torch.equal(rows["scores"], expected)
    assert all(torch.equal(rows[name], batch[name]) for name in ("labels", "index", "view"))


def test_the_protocol_in_words():
    assert views(10, 3).protocol == "30 views per video, sum of softmax scores"
    assert views(1, 1, "max", "sigmoid").protocol == "1 view per video, max of sigmoid scores"
