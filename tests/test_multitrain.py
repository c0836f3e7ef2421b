"""The published commands of MultiTrain, on toy copies of the three data sets, with one process and with two."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.faults.conftest import free_port, write_video
from tests.faults.warm import Warm

ROOT = Path(__file__).parents[1]
CLASSES = {"kinetics": 400, "mit": 305, "ssv2": 174}
YAML = "configs/Multi_dataset/MVITV2_FULL_B_32x3_CONV_k400+mit+ssv2_{}.yaml"
# What is not the published command: a small model, few epochs, no GPU.
SMALL = shlex.split("""
    NUM_GPUS 0 DATA_LOADER.NUM_WORKERS 0 DATA.DECODING_BACKEND pyav LOG_PERIOD 1 USE_TQDM False DATA.NUM_FRAMES 4
    DATA.SAMPLING_RATE 2 DATA.TRAIN_CROP_SIZE 32 DATA.TEST_CROP_SIZE 32 DATA.VAL_SKIP 1 DATA.TRAIN_JITTER_SCALES
    [32,40] MVIT.DEPTH 3 MVIT.EMBED_DIM 8 MVIT.DIM_MUL [[1,2.0]] MVIT.HEAD_MUL [[1,2.0]] MVIT.POOL_Q_STRIDE
    [[1,1,2,2]] MVIT.POOL_KV_STRIDE_ADAPTIVE [1,4,4] MVIT.DROPPATH_RATE 0.0 MODEL.DROPOUT_RATE 0.0
""")
TRAIN = shlex.split("""
    TRAIN.ENABLE True TRAIN.MIXED_PRECISION False MODEL.ACT_CHECKPOINT False LOG_MODEL_INFO False TRAIN.AUTO_RESUME
    True TRAIN.CHECKPOINT_EPOCH_RESET True TENSORBOARD.ENABLE True TENSORBOARD.LOG_DIR tb_log SOLVER.MAX_EPOCH 1
    SOLVER.WARMUP_EPOCHS 0.0 TRAIN.GRAD_ACCU_NUM_BATCH 2 TRAIN.BATCH_SIZE 4
""")
TEST = shlex.split("""
    DATA.MULTI_LABEL False TRAIN.ENABLE False TRAIN.BATCH_SIZE 1 TEST.BATCH_SIZE 32 TEST.ENABLE True LOG_MODEL_INFO
    False TEST.NUM_SPATIAL_CROPS 1 TEST.NUM_ENSEMBLE_VIEWS 5 TEST.ENABLE_SAVE False DATA.MODEL_DIFF_DATA False
    MODEL.MULTI_ADD_CROSS_PROJ False MODEL.USE_INF_LOSS False
""")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder for each data set with 8 training, 3 validation and 3 test videos; labels from the whole range."""
    root = tmp_path_factory.mktemp("sets")
    for d, (name, classes) in enumerate(CLASSES.items()):
        for split, count in {"train": 8, "val": 3, "test": 3}.items():
            lines = []
            for i in range(count):
                write_video(root / name / f"{split}_{i}.mp4", seed=10 * d + i)
                lines.append(f"{split}_{i}.mp4 {(classes - 1) * i // 7}\n")
            (root / name / f"{split}.csv").write_text("".join(lines))
    return root


def command(kind: str, out: Path, *words) -> Warm:
    tool = [sys.executable, str(ROOT / "tools/run_net.py"), "--cfg", str(ROOT / YAML.format(kind))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return Warm([*tool, *map(str, words), "OUTPUT_DIR", str(out)], environment, ROOT)


def finished(process: Warm) -> tuple[int, str, str]:
    out, err = process.communicate()
    return process.returncode, out, err


def trained(data: Path, out: Path, *words) -> Warm:
    folders = str([str(data / name) for name in CLASSES])
    paths = ["MODEL.MULTI_PATH_TO_DATA_DIR", folders, "MODEL.MULTI_PATH_PREFIX", folders]
    return command("cluster_example", out, *TRAIN, *SMALL, *paths, *words)


def losses(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> dict[str, Path]:
    """The training command as one process, and as two machines of one process; flags last, as published."""
    root = tmp_path_factory.mktemp("runs")
    one = trained(data, root / "one")
    flags = ("--init_method", f"tcp://127.0.0.1:{free_port()}", "--num_shards", 2, "--shard_id")
    two = [
        trained(data, root / "two", "TRAIN.GRAD_ACCU_NUM_BATCH", 2, "SOLVER.BASE_LR_SCALE_NUM_SHARDS", False, *flags, k)
        for k in range(2)
    ]
    for process in (one, *two):
        code, _, err = finished(process)
        assert code == 0, err
    return {"one": root / "one", "two": root / "two"}


def test_two_processes_train_as_one(runs):
    one, two = losses(runs["one"]), losses(runs["two"])
    assert len(one) == 3, "24 videos, 2 x 4 a step"
    assert one[0].keys() >= {"losses", "loss"}
    assert one[0]["losses"].keys() == {"heads", "informative"}
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)


def test_all_data_sets_are_validated_and_averaged(runs):
    rows = [json.loads(line) for line in (runs["one"] / "metrics.jsonl").read_text().splitlines()]
    evals = {row["name"]: row for row in rows if row["kind"] == "eval"}
    assert evals.keys() == {"val_kinetics", "val_mit", "val_ssv2", "val"}
    mean = np.mean([evals[f"val_{name}"]["top1"] for name in CLASSES])
    assert evals["val"]["top1"] == pytest.approx(mean)
    assert (evals["val"]["n"], evals["val"]["of"]) == (9, 9)


def command_of(data: Path, out: Path, checkpoint: Path, name: str, *words) -> Warm:
    paths = ["DATA.PATH_TO_DATA_DIR", f"{data / name}/", "DATA.PATH_PREFIX", data / name]
    sets = ["TEST.DATASET", name, "TRAIN.DATASET", name, "MODEL.NUM_CLASSES", CLASSES[name]]
    sets += ["DATA.NUM_CLASSES", CLASSES[name], "TEST.CHECKPOINT_FILE_PATH", checkpoint]
    return command("docker", out, *TEST, *SMALL, *paths, *sets, *words)


@pytest.fixture(scope="module")
def published(runs) -> Path:
    """The trained weights as MultiTrain would have saved them."""
    file = sorted((runs["one"] / "checkpoints").glob("checkpoint_epoch_*.pyth"))[-1]
    weights = torch.load(file, weights_only=True)["model_state"]
    target = runs["one"].parent / "multitrain.pyth"
    torch.save({"epoch": 0, "model_state": {_published(n): v for n, v in weights.items()}, "cfg": ""}, target)
    return target


def _published(name: str) -> str:
    if name.startswith("head.projections."):
        _, _, a, b, weight = name.split(".")
        return f"head.cross_dataset_heads.{a}_{b}.{weight}"
    if name.startswith("blocks.") and name.split(".")[2] == "proj":
        return name.replace(".proj.", ".proj_max_pool.")
    return name.replace("head.expander.", "expander.")


def test_the_published_command_tests_one_head(data, published, tmp_path):
    started = {name: command_of(data, tmp_path / name, published, name) for name in CLASSES}
    for name, process in started.items():
        code, _, err = finished(process)
        assert code == 0, err
        results = json.loads((tmp_path / name / "results.json").read_text())["evals"]
        assert results["test"]["n"] == results["test"]["of"] == 3
        with np.load(tmp_path / name / "predictions/test.npz") as saved:
            assert saved["scores"].shape == (3, CLASSES[name])
            views = 1 if name == "ssv2" else 5  # uniform clips: 5 along time would be the same
            assert saved["scores"].sum(1) == pytest.approx(views, rel=1e-5), "as many softmax scores"


def test_all_heads_in_one_command(data, runs, published, tmp_path):
    folders = str([str(data / name) for name in CLASSES])
    words = ["TEST.DATASET", "all", "TRAIN.ENABLE", False, "TEST.ENABLE", True, "TEST.CHECKPOINT_FILE_PATH", published]
    paths = ["MODEL.MULTI_PATH_TO_DATA_DIR", folders, "MODEL.MULTI_PATH_PREFIX", folders]
    views = ["DATASETS.mit.TEST_CLIPS", 2, "DATASETS.mit.TEST_CROPS", 3, "TEST.NUM_ENSEMBLE_VIEWS", 1]
    code, out, err = finished(command("docker", tmp_path / "all", *SMALL, *paths, *words, *views))
    assert code == 0, err
    results = json.loads((tmp_path / "all/results.json").read_text())
    assert list(results["evals"]) == ["test_kinetics", "test_mit", "test_ssv2", "test"]
    average = np.mean([results["evals"][f"test_{name}"]["top1"] for name in CLASSES])
    assert results["evals"]["test"]["top1"] == pytest.approx(average)
    assert "mit test: 6 views" in results["protocol"]["test_mit"]
    assert "kinetics test: 1 view " in results["protocol"]["test_kinetics"]


def test_a_head_on_the_videos_of_another_data_set_saves_scores(data, published, tmp_path):
    words = ["TEST.DATASET", "ssv2", "DATA.MODEL_DIFF_DATA", True, "DATA.NUM_CLASSES", 174]
    words += ["DATA.PATH_TO_DATA_DIR", data / "ssv2", "DATA.PATH_PREFIX", data / "ssv2"]
    code, _, err = finished(command_of(data, tmp_path / "other", published, "kinetics", *words))
    assert code == 0, err
    with np.load(tmp_path / "other/predictions/test.npz") as saved:
        assert saved["scores"].shape == (3, 400)
    assert "top1" not in json.loads((tmp_path / "other/results.json").read_text())["evals"]["test"]


def test_mistakes_are_one_line(data, published, tmp_path):
    wrong_head = command_of(data, tmp_path / "a", published, "kinetics", "EVALS.test.HEAD", "k400")
    wrong_space = command_of(data, tmp_path / "b", published, "mit", "MODEL.MULTI_NUM_CLASSES", "[400,300,174]",
                         "MODEL.NUM_CLASSES", 300, "DATA.NUM_CLASSES", 300)  # fmt: skip
    code, _, err = finished(wrong_head)
    assert code == 2
    assert "there is no head 'k400' to test (heads: kinetics, mit, ssv2)" in _last(err)
    code, _, err = finished(wrong_space)
    assert code == 2
    assert "mit" in _last(err)
    assert "305" in _last(err)
    assert "300" in _last(err)


def _last(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, err
    return lines[0]


def test_a_data_set_name_with_an_underscore_works(data, published, tmp_path):
    shutil.copytree(data / "mit", tmp_path / "moments")
    words = ["DATASETS.mit_mini.NAME", "mit", "DATASETS.mit_mini.NUM_CLASSES", 305]
    words += [
        "LOSSES.heads.WEIGHTS",
        [1, 1, 1, 1],
        "DATASETS.mit_mini.ANNOTATIONS",
        tmp_path / "moments",
        "DATASETS.mit_mini.ROOT",
        tmp_path / "moments",
    ]
    code, _, err = finished(trained(data, tmp_path / "run", *words, "TEST.ENABLE", False))
    assert code == 0, err
    file = sorted((tmp_path / "run/checkpoints").glob("checkpoint_epoch_*.pyth"))[-1]
    weights = torch.load(file, weights_only=True)["model_state"]
    assert weights["head.projections.mit_mini.mit.weight"].shape == (305, 305)
