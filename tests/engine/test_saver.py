"""When checkpoints are due, and what happens to a run whose checkpoints cannot be written."""

import logging
import threading
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from videorl import checkpoint
from videorl.engine import saver as saver_module
from videorl.engine.saver import MISSES_IN_A_ROW, Saver, _on_cpu
from videorl.registry import UserError

NODE = {
    "KEEP_CHECKPOINTS": 3,
    "CHECKPOINT_STEPS": 0,
    "CHECKPOINT_MINUTES": 0.0,
    "ASYNC_CHECKPOINT": False,
}


class FakeState:
    """A run of 10 steps an epoch with one weight."""

    def __init__(self):
        self.data = SimpleNamespace(steps=10)
        self.epoch, self.step_in_epoch = 0, 0
        self.weight = torch.zeros(3)

    @property
    def steps_done(self) -> int:
        return 10 * self.epoch + self.step_in_epoch

    def content(self) -> dict:
        return {"weight": self.weight, "nested": [({"again": self.weight},)]}

    weights = content


@pytest.fixture
def make(tmp_path):
    """`make(KEY=value)`: the Saver of a run in tmp_path."""

    def build(**changes) -> Saver:
        node = SimpleNamespace(**{**NODE, **changes})
        return Saver(SimpleNamespace(TRAIN=node, OUTPUT_DIR=str(tmp_path)), FakeState())

    return build


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "videorl")
    return caplog


@pytest.fixture
def disk(monkeypatch):
    """`disk.full = True` makes every save fail."""
    disk = SimpleNamespace(full=False)
    save = checkpoint.save

    def checked(*args):
        if disk.full:
            raise OSError(28, "No space left on device")
        save(*args)

    monkeypatch.setattr(checkpoint, "save", checked)
    return disk


def advance(saver: Saver) -> None:
    state = saver.state
    state.step_in_epoch += 1
    state.weight += 1
    if state.step_in_epoch == state.data.steps:
        state.epoch, state.step_in_epoch = state.epoch + 1, 0


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "checkpoints").glob("*.pyth"))


def test_due_after_so_many_steps_but_not_at_the_end_of_an_epoch(make):
    saver = make(CHECKPOINT_STEPS=4)
    due = []
    for saver.state.epoch in range(2):
        for saver.state.step_in_epoch in range(1, 11):
            if saver.due():
                due.append(saver.state.steps_done)
    assert due == [4, 8, 12, 16], "20 ends an epoch, which has its own checkpoint"
    assert not any(make().due() for _ in range(3))


def test_due_after_so_many_minutes_since_the_last(make, monkeypatch):
    saver = make(CHECKPOINT_MINUTES=2.0)
    advance(saver)
    now = saver.last
    monkeypatch.setattr(saver_module.time, "monotonic", lambda: now)
    now += 119
    assert not saver.due()
    now += 2
    assert saver.due()
    saver.save()
    assert not saver.due()


def test_a_single_checkpoint_is_refused(make):
    for keep in (1, -1):
        with pytest.raises(UserError, match=f"TRAIN.KEEP_CHECKPOINTS {keep}: .*keep 2 or more, or 0 for all"):
            make(KEEP_CHECKPOINTS=keep)


@pytest.mark.parametrize("background", [False, True])
def test_what_is_saved_is_the_state_at_that_step(make, tmp_path, background):
    saver = make(ASYNC_CHECKPOINT=background, KEEP_CHECKPOINTS=0)
    for _ in range(12):
        advance(saver)
        saver.save()
    saver.finish()
    files = [checkpoint.name_of(0, k) for k in range(1, 10)] + [checkpoint.name_of(1, k) for k in range(3)]
    assert names(tmp_path) == sorted(files)
    for step, name in enumerate(files, 1):
        content = checkpoint.read(tmp_path / "checkpoints" / name)
        assert content["weight"].tolist() == [step] * 3
        assert content["nested"][0][0]["again"].tolist() == [step] * 3


@pytest.mark.parametrize("background", [False, True])
def test_pruning_keeps_the_newest_and_the_best(make, tmp_path, background):
    saver = make(ASYNC_CHECKPOINT=background, KEEP_CHECKPOINTS=2)
    for step in range(5):
        advance(saver)
        if step == 1:
            saver.save_best("val/top1", 0.5)
        saver.save()
    saver.finish()
    assert names(tmp_path) == [checkpoint.BEST, checkpoint.name_of(0, 4), checkpoint.name_of(0, 5)]
    assert checkpoint.read(tmp_path / "checkpoints" / checkpoint.BEST)["weight"].tolist() == [2] * 3


def test_a_damaged_file_of_a_later_step_does_not_crowd_out_the_good_ones(make, tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder / checkpoint.name_of(5), {})
    (folder / checkpoint.name_of(5)).write_bytes(b"damaged")
    saver = make(KEEP_CHECKPOINTS=2)
    for _ in range(3):
        advance(saver)
        saver.save()
    assert names(tmp_path) == [checkpoint.name_of(0, 2), checkpoint.name_of(0, 3), checkpoint.name_of(5)]


@pytest.mark.parametrize("background", [False, True])
def test_misses_are_said_and_counted_and_three_in_a_row_end_the_run(make, tmp_path, said, disk, background):
    saver = make(ASYNC_CHECKPOINT=background)
    advance(saver)
    for full in (False, True, True, False, True, True):
        disk.full = full
        saver.save()
        saver.wait()
    assert said.text.count("was NOT written ([Errno 28] No space left on device), 1 in a row") == 2
    assert said.text.count("2 in a row; older checkpoints stand, the run goes on") == 2
    assert names(tmp_path) == [checkpoint.name_of(0, 1)]
    saver.save()
    with pytest.raises(UserError, match=f"{MISSES_IN_A_ROW} checkpoints in a row could not be written to .*make room"):
        saver.save()


def test_a_run_does_not_end_well_without_its_last_checkpoint(make, disk):
    saver = make()
    saver.save()
    saver.finish()
    saver = make()
    disk.full = True
    saver.save()
    saver.wait()
    with pytest.raises(UserError, match="the last checkpoint could not be written"):
        saver.finish()


def test_old_files_that_cannot_be_deleted_are_no_miss(make, monkeypatch, said):
    def refuse(folder, keep, written):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "prune", refuse)
    saver = make()
    saver.save()
    saver.finish()
    assert "old checkpoints could not be deleted" in said.text
    assert "NOT written" not in said.text


def test_in_the_background_the_run_goes_on_and_the_end_waits(make, tmp_path, monkeypatch):
    may_write, save = threading.Event(), checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *args: may_write.wait(60) and save(*args))
    saver = make(ASYNC_CHECKPOINT=True)
    advance(saver)
    saver.save()
    assert not (tmp_path / "checkpoints").exists(), "save returned before anything was written"
    threading.Timer(0.05, may_write.set).start()
    saver.finish()
    assert names(tmp_path) == [checkpoint.name_of(0, 1)]


def test_a_mistake_in_the_background_is_not_lost(make, monkeypatch):
    monkeypatch.setattr(checkpoint, "save", lambda *args: {}["no such key"])
    saver = make(ASYNC_CHECKPOINT=True)
    saver.save()
    with pytest.raises(KeyError):
        saver.finish()


def test_the_copy_shares_nothing_and_keeps_its_kinds():
    weight = torch.zeros(2)
    value = OrderedDict(a=weight, b=[1, (weight, "x")], c={"d": None})
    copy = _on_cpu(value)
    weight += 1
    assert isinstance(copy, OrderedDict)
    assert isinstance(copy["b"][1], tuple)
    assert copy["a"].tolist() == copy["b"][1][0].tolist() == [0.0, 0.0]
    assert (copy["b"][0], copy["b"][1][1], copy["c"]) == (1, "x", {"d": None})
