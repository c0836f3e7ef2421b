"""What the ranks of test_evaluate.py run: importable, so that one start of three processes serves all cases."""

from pathlib import Path

import torch
import torch.distributed as td

from tests.faults.conftest import CONFIG
from videorl import config, dist
from videorl.engine import build
from videorl.engine.evaluate import Evaluation
from videorl.registry import UserError

WORLDS = (1, 2, 3)


def settings(data: Path, out: Path, *overrides):
    words = ["DATA.PATH_TO_DATA_DIR", data, "OUTPUT_DIR", out, "DATA.MAX_BAD_FRACTION", 0.3, *overrides]
    return config.load([CONFIG], map(str, words))


def measure(cfg, predictions: Path) -> dict:
    """Metrics and this rank's unreadable files, or the error."""
    evaluation = Evaluation(cfg, "test")
    try:
        metrics = evaluation.run(build.model(cfg), build.precision(cfg), predictions)
    except UserError as error:
        return {"error": str(error)}
    return {"metrics": metrics, "bad": [row["path"] for row in evaluation.bad_rows]}


def run_rank(rank: int, folder: Path, cases: dict[str, tuple]) -> None:
    """All cases (name -> data and overrides) for each number of ranks that this one belongs to."""
    torch.set_num_threads(1)
    for world in WORLDS:
        if rank >= world:
            continue
        td.init_process_group("gloo", store=td.FileStore(f"{folder}/store{world}", world), rank=rank, world_size=world)
        dist._cpu_group = td.group.WORLD
        found = {
            name: measure(settings(data, folder, *overrides), folder / f"{name}_{world}.npz")
            for name, (data, *overrides) in cases.items()
        }
        torch.save(found, folder / f"world{world}_rank{rank}.pt")
        td.barrier()
        td.destroy_process_group()
        dist._cpu_group = None
