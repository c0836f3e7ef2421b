"""Losses and gradients that are not finite, labels that do not exist, kernels that are not deterministic."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch

from tests.faults.conftest import CONFIG, same_bits
from videorl import checkpoint, config
from videorl.engine import determinism
from videorl.engine.state import State
from videorl.engine.step import Precision, unwrap
from videorl.engine.train import Trainer
from videorl.engine.update import SKIPS_IN_A_ROW
from videorl.registry import UserError

WATCH = SimpleNamespace(beat=lambda doing: None)


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "videorl")
    return caplog


@pytest.fixture
def trainer(world, tmp_path):
    """`trainer(*overrides)`: a real one in this process, before its first step."""
    levels = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic

    def build(*overrides) -> Trainer:
        words = [
            "DATA.PATH_TO_DATA_DIR",
            world,
            "OUTPUT_DIR",
            tmp_path,
            "EMA.ENABLED",
            "True",
            "EMA.DECAY",
            0.5,
            *overrides,
        ]
        cfg = config.load([CONFIG], map(str, words))
        determinism.set_level(cfg.DETERMINISM)
        trainer = Trainer(cfg, State.build(cfg), {})
        trainer.state.resume()
        trainer.announce()
        return trainer

    yield build
    determinism.set_level("data")
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = levels


def steps(trainer: Trainer):
    """Trains on, step by step."""
    while True:
        for micro_batches in trainer.state.data.epoch(trainer.state.epoch, trainer.state.step_in_epoch):
            trainer.step(micro_batches, WATCH)
            yield
        trainer.state.epoch, trainer.state.step_in_epoch = trainer.state.epoch + 1, 0


def content(trainer: Trainer) -> dict:
    """A copy of what a step may move."""
    state = trainer.state
    moving = {
        "model": state.model.state_dict(),
        "ema": state.ema.module.state_dict(),
        "optimizer": state.optimizer.state_dict()["state"],
    }
    return copied(moving)


def copied(value):
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value


class Spoiler:
    """While `on`, what goes into the model becomes NaN, and so do its running statistics."""

    def __init__(self, trainer: Trainer):
        self.on = False
        unwrap(trainer.state.model).register_forward_pre_hook(self._spoil, with_kwargs=True)

    def _spoil(self, module, args, kwargs):
        return args, {k: v * float("nan") if self.on else v for k, v in kwargs.items()}


# ---------------------------------------------------------------------------------------------------------- two ranks


def shards(run, tmp_path, *overrides, fault):
    meet = ("--init_method", f"file://{tmp_path}/store", "--num_shards", "2")
    words = ("TEST.ENABLE", "False", *overrides)
    started = [run("out", *words, fault=fault, flags=(*meet, "--shard_id", str(k))) for k in range(2)]
    return [one.wait() for one in started]


def finite(state: dict) -> bool:
    tensors = [v for v in state["model_state"].values() if v.is_floating_point()]
    tensors += [v for entry in state["optimizer_state"]["state"].values() for v in entry.values()]
    return all(bool(v.isfinite().all()) for v in tensors)


def test_nan_on_one_rank_stops_all_before_the_update(run, tmp_path):
    both = shards(run, tmp_path, fault="nan@rank=1,step=7")
    assert both[0].fired == 1
    for one in both:
        assert one.code == 2
        assert one.stderr.count("\n") == 1
        assert "error: stopped before the update of step 6: loss nan, gradient norm nan; samples [" in one.stderr
    (row,) = map(json.loads, (tmp_path / "out/nonfinite.jsonl").read_text().splitlines())
    read = [int(line.split()[1]) for line in both[0].read_log.read_text().splitlines()]
    assert row == {"step": 6, "loss": "nan", "grad_norm": "nan", "samples": sorted(read[-6:])}
    assert str(row["samples"]) in both[0].stderr
    assert finite(both[0].final())
    assert not (tmp_path / "out/checkpoints" / checkpoint.name_of(2)).exists()


@pytest.mark.slow
def test_policy_skip_leaves_the_step_out_on_all_ranks(run, tmp_path):
    both = shards(run, tmp_path, "TRAIN.NONFINITE", "skip", fault="inf@rank=1,step=7")
    assert [one.code for one in both] == [0, 0]
    assert both[0].fired == 1
    lines = [line for line in both[0].stdout.splitlines() if "left out" in line]
    assert len(lines) == 1
    assert "left out, not finite: step 6: loss " in lines[0]
    final = both[0].final()
    assert finite(final)
    assert {float(entry["step"]) for entry in final["optimizer_state"]["state"].values()} == {11.0}, "12 steps but one"
    assert final["steps_done"] == 12
    assert sorted(both[0].losses()) == list(range(1, 13))


# -------------------------------------------------------------------------------------------------------- one process


def test_skip_moves_nothing_not_even_running_statistics(trainer, said):
    one = trainer("TRAIN.NONFINITE", "skip")
    spoiler, going = Spoiler(one), steps(one)
    next(going)
    before = content(one)
    spoiler.on = True
    next(going)
    assert same_bits(content(one), before)
    assert (one.update.skipped, one.update.skipped_in_a_row, one.state.steps_done) == (1, 1, 2)
    spoiler.on = False
    next(going)
    after = content(one)
    assert not same_bits(after, before)
    assert all(bool(v.isfinite().all()) for v in after["model"].values())
    assert (one.update.skipped, one.update.skipped_in_a_row) == (1, 0)
    assert said.text.count("left out, not finite: step 1: loss nan") == 1


def test_more_than_ten_in_a_row_stop_the_run(trainer, tmp_path):
    one = trainer("TRAIN.NONFINITE", "skip")
    spoiler, going = Spoiler(one), steps(one)
    spoiler.on = True
    for _ in range(SKIPS_IN_A_ROW):
        next(going)
    with pytest.raises(UserError, match="stopped before the update of step 10"):
        next(going)
    assert SKIPS_IN_A_ROW == 10
    assert len((tmp_path / "nonfinite.jsonl").read_text().splitlines()) == 11


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_under_a_finite_loss_stops(trainer, bad):
    one = trainer()
    going = steps(one)
    next(going)
    before = content(one)
    unwrap(one.state.model).head.weight.register_hook(lambda g: g * bad)
    with pytest.raises(UserError, match=r"step 1: loss \d\.\d+, gradient norm (nan|inf); samples \["):
        next(going)
    after = content(one)
    statistics = [k for k in before["model"] if "running" in k or "tracked" in k]
    for k in statistics:  # the run ends here: only weights matter
        del before["model"][k], after["model"][k]
    assert same_bits(after, before)


def test_an_overflow_under_a_gradient_scaler_is_left_out_and_counted(trainer, said):
    """float16 with a scale of 2^40: the scaler skips until the scale fits; neither weights nor their average move."""
    one = trainer()
    one.state.precision = Precision(torch.device("cpu"), torch.float16)
    one.state.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before, going = content(one), steps(one)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    while one.state.steps_done < 2 or one.update.skipped == one.state.steps_done:
        next(going)
        now = content(one)
        if one.update.skipped == one.state.steps_done:
            assert one.state.precision.scaler.get_scale() == 2.0 ** (40 - one.update.skipped)
            weights = {k: v for k, v in now["model"].items() if not k.endswith(statistics)}
            assert same_bits(weights, {k: before["model"][k] for k in weights})
            assert same_bits(now["ema"], before["ema"])
            assert not any(value.any() for entry in now["optimizer"].values() for value in entry.values())
        assert one.state.steps_done < 40
    assert one.update.skipped >= 20
    assert f"step {one.update.skipped - 1} left out, {one.update.skipped} so far: gradient beyond float16" in said.text
    assert not same_bits(now["ema"], before["ema"])
    assert {float(entry["step"]) for entry in now["optimizer"].values()} == {1.0}


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_gradient_that_no_scale_makes_finite_is_no_overflow(trainer, policy):
    one = trainer("TRAIN.NONFINITE", policy)
    one.state.precision = Precision(torch.device("cpu"), torch.float16)
    one.state.precision.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    unwrap(one.state.model).head.weight.register_hook(lambda g: g * float("nan"))
    going = steps(one)
    for _ in range(3 if policy == "raise" else 3 + SKIPS_IN_A_ROW):
        next(going)
    with pytest.raises(UserError, match="gradient norm nan"):
        next(going)
    assert all(bool(p.isfinite().all()) for p in one.state.model.parameters())


@pytest.mark.slow
def test_labels_that_do_not_exist_are_refused_before_any_work(own_world, run):
    csv = own_world / "train.csv"
    lines = csv.read_text().splitlines()
    lines[2], lines[5] = lines[2][:-1] + "4", lines[5][:-1] + "-100"
    csv.write_text("\n".join(lines) + "\n")
    done = run("out", data=own_world).wait()
    assert done.code == 2
    assert done.stderr.count("\n") == 1
    assert f"{csv}:3: label 4 is not in 0 … 3" in done.stderr
    assert "line 6: expected a class number" in done.stderr
    assert "model tiny" not in done.stdout


# -------------------------------------------------------------------------------------------------------- determinism


@pytest.fixture
def switches():
    yield
    determinism.set_level("data")


@pytest.mark.parametrize(
    ("level", "benchmark", "full"), [("off", True, False), ("data", False, False), ("full", False, True)]
)
def test_levels_set_what_they_say(switches, level, benchmark, full):
    determinism.set_level(level)
    assert torch.backends.cudnn.benchmark is benchmark
    assert torch.backends.cudnn.deterministic is full
    assert torch.are_deterministic_algorithms_enabled() is full
    assert (torch.get_float32_matmul_precision() == "highest") is full


def test_an_unknown_level_is_refused(switches):
    with pytest.raises(UserError, match="DETERMINISM 'most': expected off, data or full"):
        determinism.set_level("most")


def test_the_self_check_says_that_the_tiny_model_is_deterministic_and_changes_nothing(trainer, said):
    plain, checked = trainer(), trainer("DETERMINISM", "full")
    for one in (plain, checked):
        going = steps(one)
        [next(going) for _ in range(2)]
    assert said.messages.count("DETERMINISM full: two runs of the first step agree in every bit") == 1
    assert same_bits(content(plain), content(checked))


def test_the_self_check_names_what_is_not_deterministic(trainer, said):
    one = trainer("DETERMINISM", "full")
    draw = torch.Generator().manual_seed(0)
    noise = lambda g: g + 1e-7 * torch.rand(g.shape, generator=draw)  # noqa: E731
    unwrap(one.state.model).head.bias.register_hook(noise)
    next(steps(one))
    assert "DETERMINISM full: gradients of head.bias differ between two runs of one step" in said.text
    assert one.state.step_in_epoch == 1, "the run goes on"
