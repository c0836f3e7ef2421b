"""VideoMAE through run_net: pre-training is the same interrupted or not, on one process or two; then fine-tuning."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.faults.conftest import free_port, same_bits
from tests.faults.warm import Warm
from videorl.toy import scenes

ROOT = Path(__file__).parents[1]
SMALL = shlex.split("NUM_GPUS 0 DATA_LOADER.NUM_WORKERS 0 LOG_PERIOD 1 USE_TQDM False")
PRETRAIN = shlex.split("""
    SOLVER.MAX_EPOCH 2 SOLVER.WARMUP_EPOCHS 1 SOLVER.WARMUP_INCLUSIVE True SOLVER.COSINE_AFTER_WARMUP True
    SOLVER.WEIGHT_DECAY_END 0.2 SOLVER.BASE_LR_BATCH 16 TRAIN.CHECKPOINT_PERIOD 1 TRAIN.BATCH_SIZE 4
    TRAIN.BATCH_SIZE_SCOPE global MASK.DECODER running_cell EVALS.val.EVERY 1 TENSORBOARD.ENABLE True
""")


def start(cfg: str, data: Path, out: Path, *words) -> Warm:
    tool = [sys.executable, str(ROOT / "tools/run_net.py"), "--cfg", str(ROOT / f"configs/toy/videomae_{cfg}.yaml")]
    words = ["DATA.PATH_TO_DATA_DIR", data, *SMALL, "OUTPUT_DIR", out, *words]
    return Warm([*tool, *map(str, words)], {**os.environ, "OMP_NUM_THREADS": "1"}, ROOT)


def end(process: Warm, code: int = 0) -> str:
    _, said = process.communicate()
    assert process.returncode == code, said
    return said


def lines(out: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "checkpoints/checkpoint_epoch_00002.pyth", weights_only=True)["model_state"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "set"
    scenes.make_set(folder, kind=scenes.SMALL, counts={"train": 24, "val": 6, "test": 6})
    return folder


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory) -> dict[str, Path]:
    """Output folders of the same pre-training: as one process, as two machines, and stopped after its first epoch."""
    root = tmp_path_factory.mktemp("runs")
    flags = ("--init_method", f"tcp://127.0.0.1:{free_port()}", "--num_shards", 2, "--shard_id")
    one = start("pt", data, root / "one", *PRETRAIN)
    two = [start("pt", data, root / "two", *PRETRAIN, *flags, k) for k in range(2)]
    for process in (one, *two):
        end(process)
    (root / "resumed/checkpoints").mkdir(parents=True)
    for file in (root / "one/checkpoints").glob("checkpoint_epoch_00001.*"):
        shutil.copy(file, root / "resumed/checkpoints")
    end(start("pt", data, root / "resumed", *PRETRAIN))
    return {name: root / name for name in ("one", "two", "resumed")}


def test_a_resumed_run_ends_with_the_same_bits(pretrained):
    assert same_bits(weights(pretrained["resumed"]), weights(pretrained["one"]))
    assert len(lines(pretrained["resumed"], "train")) == 6


def test_two_machines_train_like_one(pretrained):
    one, two = ([row["loss"] for row in lines(pretrained[name], "train")] for name in ("one", "two"))
    assert len(one) == 12, "2 epochs of 24 videos, 4 a step"
    assert two == pytest.approx(one, rel=1e-5)
    one, two = (lines(pretrained[name], "eval") for name in ("one", "two"))
    assert [(row["n"], row["of"]) for row in one + two] == [(6, 6)] * len(one + two)
    assert [row["mse"] for row in two] == pytest.approx([row["mse"] for row in one], rel=1e-5)


def test_the_learning_rate_is_that_of_256_clips_times_those_of_a_step(pretrained):
    said = (pretrained["one"] / "stdout.log").read_text()
    assert "learning rate: base 0.002 x 8 clips a step / 16 = 0.001" in said
    rates = [row["lr"] for row in lines(pretrained["one"], "train")]
    assert rates[0] == 0 and rates[5] == rates[6] == pytest.approx(1e-3)  # noqa: PT018


def test_the_report_shows_reconstructed_clips(pretrained):
    assert "Reconstructions" in (pretrained["one"] / "report.html").read_text()


def test_fine_tuning_takes_the_encoder_and_tests_every_video(data, pretrained, tmp_path):
    file = pretrained["one"] / "checkpoints/checkpoint_epoch_00002.pyth"
    words = ("DATA.PATH_PREFIX", data, "TRAIN.CHECKPOINT_FILE_PATH", file, "SOLVER.MAX_EPOCH", 1, "TRAIN.BATCH_SIZE", 6)
    end(start("ft", data / "few", tmp_path / "ft", *words, "SOLVER.WARMUP_EPOCHS", 0, "SOLVER.LAYER_DECAY", 0.75))
    said = (tmp_path / "ft/stdout.log").read_text()
    assert "100.0 % of the model's numbers loaded" in said
    found = json.loads((tmp_path / "ft/results.json").read_text())["evals"]["test"]
    assert (found["n"], found["of"]) == (6, 6)
    rest = start(
        "ft", data / "few", tmp_path / "test", *words[:2], "TRAIN.ENABLE", False, "TEST.CHECKPOINT_FILE_PATH", file
    )
    assert "the file has no head, as one of pre-training" in end(rest, 2)
