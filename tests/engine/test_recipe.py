"""What is said, and what is refused, before the first step."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch

from videorl import checkpoint, config, dist
from videorl.engine import build, evaluate
from videorl.engine import test as phase
from videorl.engine.state import State
from videorl.engine.test import test as run_test
from videorl.engine.train import Trainer
from videorl.metrics import is_fraction
from videorl.registry import UserError

ROOT = Path(__file__).parents[2]
SMALL = {
    "DATA.NUM_FRAMES": 4, "DATA.TRAIN_CROP_SIZE": 32, "DATA.TEST_CROP_SIZE": 32, "DATA.TRAIN_JITTER_SCALES": [32, 36],
    "MODEL.PATCH_SIZE": [2, 16, 16], "VIT.EMBED_DIM": 16, "VIT.NUM_HEADS": 2, "VIT.DEPTH": 2,
    "MODEL.MODEL_NAME": "ViT", "MODEL.NUM_CLASSES": 4, "TRAIN.BATCH_SIZE": 2, "NUM_GPUS": 0, "TRAIN.EVAL_PERIOD": 1,
    "TRAIN.DATASET": "kinetics", "TEST.DATASET": "kinetics", "DATA_LOADER.NUM_WORKERS": 0, "USE_TQDM": False,
}  # fmt: skip
OTHER = {"DATA.TEST_CROP_SIZE": 48}
NO_TEST = {"TRAIN.EVAL_PERIOD": 0, "TEST.ENABLE": False}


@pytest.fixture
def settings(tmp_path):
    """`settings({KEY: value}, …)`: a run on annotations alone, no video is opened."""
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.csv").write_text("".join(f"{i}.mp4 {i}\n" for i in range(4)))

    def load(*changes: dict):
        found = {**SMALL, "DATA.PATH_TO_DATA_DIR": tmp_path, "OUTPUT_DIR": tmp_path / "out"}
        for change in changes:
            found |= change
        return config.load([], [str(word) for pair in found.items() for word in pair])

    return load


def trainer(cfg) -> Trainer:
    tested = evaluate.evaluations(cfg, at_test=True) if cfg.TEST.ENABLE else {}
    return Trainer(cfg, State.build(cfg), {e.title: e.dataset for e in tested.values()})


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "videorl")
    return caplog


WORDS = r"^DATA\.TEST_CROP_SIZE 48: expected DATA\.TRAIN_CROP_SIZE 32, for ViT takes clips of one size; .*$"


@pytest.mark.parametrize("evaluated", [{}, {"TRAIN.EVAL_PERIOD": 0}, {"TEST.ENABLE": False}])
def test_other_test_clips_are_refused_before_training(settings, evaluated):
    with pytest.raises(UserError, match=WORDS):
        trainer(settings(OTHER, evaluated))


def test_other_test_clips_are_refused_before_testing(settings):
    cfg = settings(OTHER)
    with pytest.raises(UserError, match=WORDS):
        run_test(cfg, evaluate.evaluations(cfg, at_test=True), alive=None)


def test_other_test_clips_are_taken_where_none_is_evaluated_and_by_models_of_any_shape(settings):
    assert not trainer(settings(OTHER, NO_TEST)).evaluations
    evaluate.check_clip_size(settings(OTHER), torch.nn.Linear(1, 1), ["kinetics/val"])
    evaluate.check_clip_size(settings(OTHER), build.model(settings()), ["kinetics/train"])


def test_what_is_switched_on_is_said_in_one_line(settings, said):
    changes = {"SOLVER.LAYER_DECAY": 0.5, "SOLVER.BASE_LR": 0.1, "MIXUP.ENABLE": True, "AUG.ENABLE": True}
    changes |= {
        "AUG.NUM_SAMPLE": 2,
        "DATA.TRAIN_CROP_NUM_TEMPORAL": 3,
        "EMA.ENABLED": True,
        "SOLVER.LR_POLICY": "steps_with_relative_lrs",
    }
    changes |= {"SOLVER.STEPS": [0], "SOLVER.LRS": [1.0], "MODEL.LOSS_FUNC": "soft_cross_entropy"}
    started = trainer(settings(NO_TEST, changes))
    Path(started.cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    started.announce()
    assert [line for line in said.messages if line.startswith("in use")] == [
        "in use: layer decay 0.5 (learning rates 0.0125 to 0.1); MixUp 0.8; CutMix 1; RandAugment"
        " rand-m9-mstd0.5-inc1; random erasing 0.25; 3 clips of a video; 2 copies of each clip;"
        " moving average of the weights 0.9999"
    ]


@pytest.mark.parametrize(
    ("workers", "processes", "asked", "left"),
    [(3, 1, False, 5), (12, 1, False, 1), (1, 4, False, 1), (0, 1, False, 8), (3, 1, True, 8)],
)
def test_workers_get_cores_of_their_own(monkeypatch, said, workers, processes, asked, left):
    """Of eight, on which torch has eight threads; but not where OMP_NUM_THREADS says how many it has."""
    set_to = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: set_to[-1])
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(dist, "local_size", lambda: processes)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", "8")
    build.leave_cores(workers)
    assert set_to[-1] == left
    assert (f"{left} thread(s) of torch beside {workers} loader workers" in said.text) == (left < 8)


def test_nothing_is_said_where_nothing_is_on(settings, said):
    started = trainer(settings(NO_TEST))
    Path(started.cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    started.announce()
    assert "in use" not in said.text


@pytest.mark.parametrize("averaged", [True, False])
def test_results_say_whose_weights_they_are_of(settings, tmp_path, monkeypatch, averaged):
    state = State.build(settings({"EMA.ENABLED": averaged}))
    checkpoint.save(tmp_path / "x.pyth", state.content())
    cfg = settings({"TEST.CHECKPOINT_FILE_PATH": tmp_path / "x.pyth"})
    Path(cfg.OUTPUT_DIR).mkdir()
    monkeypatch.setattr(phase.evaluate.Evaluation, "run", lambda *_: {"top1": 0.5, "n": 4, "of": 4})
    run_test(cfg, evaluate.evaluations(cfg, at_test=True), alive=None)
    (protocol,) = json.loads((tmp_path / "out/results.json").read_text())["protocol"].values()
    assert protocol.endswith(", moving average of the weights") == averaged


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("explained", -0.0036, True), ("top1", 1, True), ("explained", -1.5, False), ("mse", 0.5, False)],
)
def test_fractions_may_be_below_0(name, value, expected):
    assert is_fraction(name, value) == expected
    assert ("%" in evaluate.readable({name: value, "n": 1, "of": 1})) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        (
            {"SOLVER.WARMUP_EPOCHS": 5, "SOLVER.BASE_LR": 1e-5},
            "begins above the learning rate that it leads to: 0.01",
        ),
        ({"SOLVER.WARMUP_EPOCHS": 5, "SOLVER.BASE_LR": 0.5}, ""),
        ({"SOLVER.WARMUP_EPOCHS": 20}, "warm-up of 20 epochs is as long as the run or longer: SOLVER.MAX_EPOCH is 20"),
        ({"SOLVER.WARMUP_EPOCHS": 10}, ""),
        ({"SOLVER.WARMUP_STEPS": 50}, "the warm-up of 25 epochs is as long as the run"),
        ({"SOLVER.WARMUP_STEPS": 4, "SOLVER.WARMUP_EPOCHS": 1}, "WARMUP_STEPS 4 takes the place of WARMUP_EPOCHS 1"),
        ({"SOLVER.COSINE_END_LR": 1.0}, "the learning rate rises: SOLVER.COSINE_END_LR 1, BASE_LR 0.1"),
        ({"SOLVER.OPTIMIZING_METHOD": "adamw"}, "learning rate 0.1: with adamw expected at most 0.02"),
        ({"SOLVER.OPTIMIZING_METHOD": "adamw", "SOLVER.BASE_LR": 1e-3}, ""),
        ({"EMA.ENABLED": True}, "EMA.DECAY 0.9999: after all 40 steps 100% of the moving average are still the first"),
        ({"EMA.ENABLED": True, "EMA.DECAY": 0.9}, ""),
    ],
)
def test_numbers_that_can_hardly_be_meant_are_told_in_the_first_lines(settings, said, changes, words):
    """Two steps an epoch, twenty epochs: 0.9 ** 40 is 1.5 %, 0.9999 ** 40 99.6 %."""
    run = trainer(settings(NO_TEST, {"SOLVER.MAX_EPOCH": 20}, changes))
    run.announce()
    run.journal.close()
    lines = [r.getMessage() for r in said.records if r.levelno == logging.WARNING and r.module == "journal"]
    assert any(words in line for line in lines) if words else not lines


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/*/*.yaml")), ids=lambda file: file.stem)
def test_the_losses_of_each_config_are_built(file):
    cfg = config.load([file])
    assert list(build.objective(cfg).losses) == list(cfg.LOSSES)
