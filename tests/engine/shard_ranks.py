"""What the ranks of test_local_shards.py run: importable, so that one start of four processes serves all cases."""

from pathlib import Path

import torch
import torch.distributed as td

from tests.engine.eval_ranks import settings
from videorl import dist
from videorl.engine import build
from videorl.registry import UserError

MACHINES = 2
LAYOUTS = (1, 2)  # processes of each machine


def read(data: Path, folder: Path, *overrides) -> dict:
    """What this rank finds in two epochs of the training set in `data`, or the error."""
    cfg = settings(data, folder, "DATA.LOCAL_SHARDS", True, "SOLVER.MAX_EPOCH", 2, *overrides)
    try:
        made = build.train_data(cfg)
    except UserError as error:
        return {"error": str(error)}
    epochs = [[batch for step in made.epoch(epoch) for batch in step] for epoch in range(2)]
    return {
        "facts": made.facts,
        "steps": made.steps,
        "step_size": made.plan.step_size,
        "readers": (made.readers.start, made.readers.stop),
        "index": [torch.cat([batch["index"] for batch in batches]).tolist() for batches in epochs],
        "videos": [torch.cat([batch["video"] for batch in batches]) for batches in epochs],
    }


def run_rank(rank: int, folder: Path, cases: dict[str, tuple]) -> None:
    """All cases (name -> a folder for each of four ranks, and overrides) for each number of processes a machine."""
    torch.set_num_threads(1)
    for local in LAYOUTS:
        world = MACHINES * local
        if rank >= world:
            continue
        td.init_process_group("gloo", store=td.FileStore(f"{folder}/store{world}", world), rank=rank, world_size=world)
        dist._cpu_group, dist._local_size = td.group.WORLD, local
        found = {}
        for name, (folders, *overrides) in cases.items():
            found[name] = read(folders[rank * 2 // local], folder, *overrides)
        torch.save(found, folder / f"local{local}_rank{rank}.pt")
        td.barrier()
        td.destroy_process_group()
        dist._cpu_group, dist._local_size = None, 1
