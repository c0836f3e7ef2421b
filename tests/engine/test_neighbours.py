"""A run with batches of neighbours: stopped inside an epoch and resumed, and on two ranks."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as td

from videorl import config, dist
from videorl.engine import embed, train
from videorl.engine.job import run_phases
from videorl.engine.state import State

pytest.importorskip("faiss")
pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "data"))
import norton  # noqa: E402


def settings(folder: Path, out: str, *more):
    """24 videos, 3 steps of 8 an epoch, the second and third of neighbours."""
    if not (folder / "x").exists():
        videos = [norton.video(6, seed=k) for k in range(24)]
        norton.write(folder / "x", videos)
        norton.spec(folder / "vocab.txt")
    keys = {
        "TRAIN": {"DATASET": "features", "BATCH_SIZE": 8, "BATCH_SIZE_SCOPE": "global", "EVAL_PERIOD": 0},
        "TEST": {"ENABLE": False, "DATASET": "features"},
        "FEATURES": {"ROOT": folder / "x", "CAPTIONS": f"{folder}/x/cap.", "CLIPS": 2, "SECONDS": 4, "TOKENS": "2,4"},
        "TEXT": {"TOKENIZER": folder / "vocab.txt", "MAX_WORDS": 8},
        "MODEL": {"MODEL_NAME": "VideoCLIP"},
        "VIDEOCLIP": {"FEATURES": 8, "VIDEO_LAYERS": 1, "TEXT_LAYERS": 1, "WIDTH": 8, "HEADS": 2, "HIDDEN": 8},
        "BATCHES": {"NAME": "retrieval", "GROUP": 4, "NEIGHBOURS": 6, "INDEX": "exact"},
        "LOSSES": {"norton": {"NAME": "norton", "SEQUENCE_LENGTH": 2}},
        "SOLVER": {"OPTIMIZING_METHOD": "adam", "BASE_LR": 0.01, "MAX_EPOCH": 3, "WARMUP_START_LR": 0.01},
        "DATA_LOADER": {"NUM_WORKERS": 0},
    }
    keys["VIDEOCLIP"] |= {"VOCABULARY": 13, "POSITIONS": 16, "CLS_TOKEN": 2, "SEP_TOKEN": 3}
    words = [str(word) for word in _flat(keys)]
    top = ["NUM_GPUS", "0", "OUTPUT_DIR", str(folder / out), "TRAIN.BEST_METRIC", "", "USE_TQDM", "False"]
    return config.load(overrides=[*words, *top, *map(str, more)])


def _flat(keys: dict, front: str = ""):
    for name, value in keys.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{front}{name}.")
        else:
            yield from (f"{front}{name}", value)


def weights(folder: Path) -> dict:
    newest = max((folder / "checkpoints").glob("checkpoint_epoch_*.pyth"))
    return torch.load(newest, weights_only=True)["model_state"]


def test_a_run_that_goes_on_within_an_epoch_embeds_nothing_anew(tmp_path, monkeypatch):
    embedded, steps = [], []
    whole, step = embed.Embedder.__call__, train.Trainer.step
    monkeypatch.setattr(embed.Embedder, "__call__", lambda self, f: embedded.append(self.state.epoch) or whole(self, f))
    run_phases(settings(tmp_path, "whole"))
    assert embedded == [1, 2]

    def until_five(self, micro_batches, watch):
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(micro_batches[0]["index"])
        step(self, micro_batches, watch)

    monkeypatch.setattr(train.Trainer, "step", until_five)
    with pytest.raises(KeyboardInterrupt):
        run_phases(settings(tmp_path, "parts", "TRAIN.CHECKPOINT_STEPS", 1))
    monkeypatch.setattr(train.Trainer, "step", step)
    run_phases(settings(tmp_path, "parts", "TRAIN.CHECKPOINT_STEPS", 1))
    assert embedded == [1, 2, 1, 2]
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], other[name]) for name in one)


def orders(rank: int, world: int, folder: Path) -> None:
    """What `begin_epoch` chooses in the second epoch on each of `world` ranks."""
    if world > 1:
        td.init_process_group("gloo", store=td.FileStore(f"{folder}/store", world), rank=rank, world_size=world)
        dist._cpu_group = td.group.WORLD
    state = State.build(settings(folder, f"ranks{world}"))
    state.epoch = 1
    state.data.batches.begin_epoch(1, embed.Embedder(state.cfg, state, lambda doing: None))
    torch.save(torch.from_numpy(state.data.batches.order), folder / f"order{world}_{rank}.pt")
    if world > 1:
        td.barrier()
        td.destroy_process_group()
        dist._cpu_group = None


def test_ranks_choose_what_one_process_chooses(tmp_path):
    orders(0, 1, tmp_path)
    torch.multiprocessing.spawn(orders, (2, tmp_path), nprocs=2)
    one, *both = (torch.load(tmp_path / f"order{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1"))
    assert all(torch.equal(one, order) for order in both)
    assert all(len(set(group)) == 4 for group in one.view(-1, 4).tolist())
