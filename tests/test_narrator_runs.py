"""A narrator through run_net: the same on one process or two, frozen parts are not optimized, its texts are saved."""

import json
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.faults.conftest import free_port
from tests.faults.warm import Warm
from videorl.toy import egocentric

ROOT = Path(__file__).parents[1]
SMALL = shlex.split("""
    NUM_GPUS 0 DATA_LOADER.NUM_WORKERS 0 LOG_PERIOD 1 USE_TQDM False SOLVER.MAX_EPOCH 1 SOLVER.WARMUP_EPOCHS 0
    TRAIN.BATCH_SIZE 12 TRAIN.BATCH_SIZE_SCOPE global TEST.BATCH_SIZE 9 TIMESFORMER.FREEZE all
    NARRATOR.FREEZE_LANGUAGE True EVALS.captions.RETURNS 3 EVALS.captions.TEMPERATURE 1.0 LOSSES.caption.MEAN positions
""")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Output folders of the same training: as one process, and as two machines of half the batch."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(egocentric, "VIDEOS", {"ego4d": 2, "ego4d_val": 6, "epic": 9})
        egocentric.make_set(root / "toy", videos=2)
    toy = shlex.split("""EGO4D.ROOT {0}/videos/ego4d EGO4D.METADATA {0}/ego4d_train.pkl TEXT.TOKENIZER {0}/tokenizer
        EVALS.captions.FACTS {0}/facts.json""".format(root / "toy"))  # fmt: skip
    flags = ("--init_method", f"tcp://127.0.0.1:{free_port()}", "--num_shards", 2, "--shard_id")
    processes = [start(root / "one", *toy), *(start(root / "two", *toy, *flags, k) for k in range(2))]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return {name: root / name for name in ("one", "two")}


def start(out: Path, *words) -> Warm:
    tool = [sys.executable, str(ROOT / "tools/run_net.py"), "--cfg", str(ROOT / "configs/toy/narrator.yaml")]
    return Warm([*tool, *SMALL, "OUTPUT_DIR", str(out), *map(str, words)], {**os.environ, "OMP_NUM_THREADS": "1"}, ROOT)


def test_two_machines_train_and_write_like_one(runs):
    losses, predictions = {}, {}
    for name, out in runs.items():
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [(row["loss"], row["perplexity"]) for row in rows if row["kind"] == "train"]
        predictions[name] = np.load(out / "predictions/captions.npz")
    assert len(losses["one"]) == 2
    assert np.array(losses["two"]) == pytest.approx(np.array(losses["one"]), rel=1e-5)
    one, two = predictions["one"], predictions["two"]
    assert one["texts"].shape == (72, 3)
    assert (one["texts"] == two["texts"]).all()
    assert two["log_likelihood"] == pytest.approx(one["log_likelihood"], rel=1e-4)
    assert {"judged", "references", "perplexity", "rouge_l", "cider", "match_all", "paths"} <= set(one.files)


def test_what_is_said(runs):
    found = json.loads((runs["one"] / "results.json").read_text())
    metrics = found["evals"]["captions"]
    assert (metrics["n"], metrics["of"]) == (72, 72)
    assert {"perplexity", "bleu4", "rouge_l", "cider", "match_colour", "match_all"} <= metrics.keys()
    said = (runs["one"] / "stdout.log").read_text()
    assert "M trained" in said
    assert "ego4d val: captions: the likeliest of 3 texts of up to 12 tokens, temperature 1, top-p 0.95, seed 0" in said


def test_the_report_shows_clips_with_what_was_written_and_said(runs):
    page = (runs["one"] / "report.html").read_text()
    judged = np.load(runs["one"] / "predictions/captions.npz")["judged"]
    assert "nearest to what people said" in page
    assert "said: #C C " in page
    assert "no preview" not in page
    assert sum(text in page for text in judged.tolist()) > 4


def test_frozen_parts_have_no_state_of_the_optimizer(runs):
    file = runs["one"] / "checkpoints/checkpoint_epoch_00001.pyth"
    state = torch.load(file, weights_only=True)
    moments = sum(len(s["exp_avg"].flatten()) for s in state["optimizer_state"]["state"].values())
    trained = {name: value for name, value in state["model_state"].items() if "img_" in name or "cross" in name
               or "alpha" in name}  # fmt: skip
    assert moments == sum(value.numel() for value in trained.values())
