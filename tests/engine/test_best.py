"""Which checkpoint is the best: metrics that fall, unknown ones, and what a resumed run compares."""

import json
from types import SimpleNamespace

import pytest
import torch

from videorl import checkpoint, config
from videorl.engine.best import Best, chosen_by
from videorl.engine.state import State
from videorl.engine.test import _choose
from videorl.evals.probe import Probe
from videorl.evals.reconstruction import Reconstruction
from videorl.evals.retrieval import Retrieval
from videorl.metrics import HIGHER, LOWER
from videorl.registry import UserError


def evaluations(**metrics) -> dict:
    """Name to evaluation; the part of the name before `_` is its entry."""
    return {
        name: SimpleNamespace(entry=name.partition("_")[0], eval=SimpleNamespace(metrics=declared))
        for name, declared in metrics.items()
    }


def kept(best: Best, values: list[float]) -> list[float]:
    """Those that became the best, in order."""
    found, before = [], None
    for value in values:
        value = best.value({best.evaluation: {best.metric: value}})
        if value is not None and best.is_better(value, before):
            before = value
            found.append(value)
    return found


@pytest.fixture
def said(caplog):
    return caplog


def test_the_best_is_the_lowest_where_less_is_better():
    values = [3.0, float("nan"), 2.0, 2.5, 2.0, float("-inf"), 1.0]
    given = evaluations(val={"mse": LOWER, "top1": HIGHER}, cook=Retrieval.metrics)
    assert kept(Best("val/mse", given), values) == [3.0, 2.0, 1.0]
    assert kept(Best("cook/t2v_medr", given), values) == [3.0, 2.0, 1.0]
    assert kept(Best("val/top1", given), [0.1, float("nan"), 0.3, 0.2]) == [0.1, 0.3]
    assert Best("val/top1", given).value({"cook": {"t2v_r1": 0.5}}) is None


def test_what_evals_declare():
    assert Reconstruction.metrics == {"explained": HIGHER, "mse": LOWER, "baseline_mse": LOWER}
    assert {name for name, sign in Retrieval.metrics.items() if sign == LOWER} == {"t2v_medr", "v2t_medr"}
    assert Best("hmdb/split2_top1", evaluations(hmdb=Probe.metrics)).sign == HIGHER


def test_an_unknown_metric_is_told_before_training(said):
    given = evaluations(val={"top1": HIGHER}, cook_a={"r1": HIGHER, "r5": HIGHER}, cook_b={"r1": HIGHER})
    for wanted in ("val/top2", "vla/top1", "cook/r5", "top1", "cook/medr"):
        with pytest.raises(UserError, match=f"BEST_METRIC {wanted}: expected EVAL/METRIC, one of val/top1, cook_a/r1"):
            Best(wanted, given)
    with pytest.raises(UserError, match="did you mean val/top1"):
        Best("val/top_1", given)
    assert Best("cook/r1", given).sign == Best("cook_a/r5", given).sign == HIGHER
    assert not said.text
    assert Best("val/explained", given).sign == 0
    assert "val/explained: not among what is measured (val/top1," in said.text


def test_nothing_is_said_where_nothing_was_asked(said):
    for wanted, given in (("", evaluations(val={"top1": HIGHER})), ("val/top1", {})):
        best = Best(wanted, given)
        assert (best.sign, best.value({"val": {"top1": 1.0}})) == (0, None)
    assert not said.text
    Best("val/mse", {})
    assert "val/mse: not among what is measured (none)" in said.text


@pytest.mark.parametrize(
    ("words", "default"),
    [
        ("", "val/top1"),
        ("DATA.MULTI_LABEL True MODEL.LOSS_FUNC bce_logit", "val/map"),
        ("MASK.RATIO 0.9", "val/explained"),
    ],
)
def test_the_default_is_a_metric_that_is_there(words, default):
    cfg = config.load(overrides=words.split())
    assert default == cfg.TRAIN.BEST_METRIC


def restored(saved, metric: str) -> float | None:
    state = State(SimpleNamespace(TRAIN=SimpleNamespace(BEST_METRIC=metric)), *[None] * 6)
    state._restore_best(saved, 40)
    assert state.best_epoch == (saved.get("epoch", 40) if isinstance(saved, dict) else 40)
    return state.best


def test_a_resumed_run_compares_with_its_own_metric_alone(said):
    assert restored({"metric": "val/mse", "value": 0.2}, "val/mse") == 0.2
    assert restored({"metric": "val/mse", "value": 0.2, "epoch": 3}, "val/mse") == 0.2
    assert restored({"metric": "val/mse", "value": None}, "val/top1") is None
    assert not said.text
    assert restored({"metric": "val/mse", "value": 0.2}, "val/top1") is None
    assert "best so far was val/mse 0.2: that of TRAIN.BEST_METRIC 'val/top1' begins anew" in said.text
    assert restored(0.7, "val/top1") is None, "of an older version, which did not say of what"


def test_the_test_takes_the_best_by_the_metric_that_is_asked_for(tmp_path, said):
    best, last = tmp_path / checkpoint.BEST, tmp_path / checkpoint.name_of(3)
    checkpoint.save(last, {"w": torch.zeros(1)}, {"step": 3})
    checkpoint.save(best, {"w": torch.zeros(1)}, {"metric": "val/mse", "value": 0.2, "step": 1})
    assert chosen_by(best) == "val/mse"

    def chosen(metric: str):
        test, train = SimpleNamespace(CHECKPOINT_FILE_PATH=""), {"CHECKPOINT_FILE_PATH": "", "BEST_METRIC": metric}
        return _choose(SimpleNamespace(TEST=test, TRAIN=SimpleNamespace(**train)), tmp_path)

    assert chosen("val/mse") == best
    assert not said.text
    assert chosen("val/top1") == chosen("") == last
    assert "is the best by val/mse, not by TRAIN.BEST_METRIC 'val/top1'; taking the newest" in said.text
    mark = best.with_suffix(".json")
    mark.write_text(json.dumps({k: v for k, v in json.loads(mark.read_text()).items() if k != "metric"}))
    assert chosen("val/top1") == best, "nobody says by what"
