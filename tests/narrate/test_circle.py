"""LaViLa's circle: a dual encoder, a narrator with its tower, what that writes, a dual encoder on both."""

import json
import os
import pickle
import shlex
import sys

import pytest

from tests.faults.warm import Warm
from tests.narrate.world import ROOT, toy

SMALL = """NUM_GPUS 0 DATA_LOADER.NUM_WORKERS 0 USE_TQDM False SOLVER.MAX_EPOCH 1 SOLVER.WARMUP_EPOCHS 0
    TRAIN.CHECKPOINT_PERIOD 1"""
DUAL = f"""--cfg configs/toy/lavila.yaml {SMALL} TRAIN.BATCH_SIZE 4 EVALS.cls.AT_TEST False
    EVALS.mcq.AT_TEST False EVALS.mcq.EVERY 0"""
TOY = """EGO4D.ROOT {0}/videos/ego4d EGO4D.METADATA {0}/ego4d_train.part.pkl EGO4D.METADATA_VAL {0}/ego4d_val.pkl"""
EPIC = """EPIC_MIR.ROOT {0}/videos/epic EPIC_MIR.METADATA_VAL {0}/EPIC_100_retrieval_test.csv
    EPIC_MIR.RELEVANCY_VAL {0}/EPIC_100_retrieval_test.pkl"""
NARRATOR = "--cfg configs/toy/narrator.yaml TEXT.TOKENIZER {0}/tokenizer EVALS.captions.FACTS {0}/facts.json"
COMMANDS = (
    f"tools/run_net.py {DUAL} {TOY} {EPIC} OUTPUT_DIR {{1}}/part",
    f"tools/run_net.py {NARRATOR} {SMALL} TRAIN.BATCH_SIZE 4 {TOY} OUTPUT_DIR {{1}}/narrator"
    " TRAIN.CHECKPOINT_FILE_PATH {1}/part/checkpoints/checkpoint_epoch_00001.pyth",
    f"tools/narrate.py {NARRATOR} {TOY} NUM_GPUS 0 DATA_LOADER.NUM_WORKERS 0 EVALS.captions.TEMPERATURE 0.7 --pickle"
    " --metadata {0}/ego4d_train.narrator.pkl --out {1}/narrations"
    " --checkpoint {1}/narrator/checkpoints/checkpoint_epoch_00001.pyth",
    f"tools/run_net.py {DUAL} {TOY} {EPIC} EGO4D.METADATA_AUX {{1}}/narrations/total.pkl OUTPUT_DIR {{1}}/both"
    " LOSSES.main.PSEUDO_TEMPERATURE 0.07",
)


@pytest.mark.slow
def test_the_circle_closes(tmp_path):
    world = toy(tmp_path / "toy")
    for command in COMMANDS:
        words = shlex.split(command.format(world, tmp_path))
        process = Warm([sys.executable, *words], {**os.environ, "OMP_NUM_THREADS": "1"}, ROOT)
        _, said = process.communicate()
        assert process.returncode == 0, said
    people, machine = (
        pickle.loads(file.read_bytes()) for file in (world / "ego4d_train.part.pkl", tmp_path / "narrations/total.pkl")
    )
    listed = pickle.loads((world / "ego4d_train.narrator.pkl").read_bytes())
    assert [row[:3] for row in machine] == [row[:3] for row in listed]
    assert all(len(row[3]) == len(row[4]) == 10 for row in machine)
    run = json.loads((tmp_path / "both/run.json").read_text())
    assert run["data"]["ego4d/train"]["samples"] == len(people) + len(machine)
    assert json.loads((tmp_path / "both/results.json").read_text())["evals"]["mir"]["n"] > 0
