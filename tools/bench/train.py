"""Clips a second of a config's training on one device, three ways: the step alone, the loader alone, both. Prints JSON.

python tools/bench/train.py --cfg configs/SSv2/VIDEOMAE_VITB_16x2_PT.yaml TRAIN.BATCH_SIZE 256 DATA.PATH_TO_DATA_DIR …

`synthetic` repeats the step on one batch, `loader` makes batches and drops them, `training` does both. `decoded` counts
videos that were read, `trained` clips in steps: one video gives AUG.NUM_SAMPLE clips. `mfu` is the part of the peak
(--peak, in 10^12 operations a second) that three times the multiply-adds of the forward pass use. What the loader
prepared before the clock runs is not counted. A step is forward, backward and the optimizer with learning rate 0,
without clipping, moving average and log.
Exit codes: 0 done, 2 a mistake in the command or its files.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from videorl import config, dist, exits
from videorl.engine import info, optim
from videorl.engine.state import State
from videorl.engine.step import backward


class Bench:
    """A training run without its surroundings."""

    def __init__(self, cfg):
        self.cfg, self.state, self.clip = cfg, State.build(cfg), config.spec(cfg).clip
        optim.set_rates(self.state.optimizer, 0.0, 0.0)
        self.state.model.train()
        self.batches = self._batches()

    def _batches(self) -> Iterator[list[dict]]:
        for epoch in itertools.count():
            yield from self.state.data.epoch(epoch)

    def step(self, micro_batches: list[dict]) -> None:
        state = self.state
        state.optimizer.zero_grad(set_to_none=True)
        backward(
            state.model,
            state.objective,
            micro_batches,
            clip=self.clip,
            precision=state.precision,
            seed=self.cfg.RNG_SEED,
            step=0,
        )
        state.optimizer.step()

    def forget_prepared(self) -> None:
        node = self.cfg.DATA_LOADER
        for _ in range(-(-node.NUM_WORKERS * node.PREFETCH // self.state.data.plan.micro_batches)):
            next(self.batches)

    def rate(self, steps: int, *, load: bool, train: bool) -> float:
        """Steps a second."""
        batch = next(self.batches)
        if train:
            self.step(batch)
        if load:
            self.forget_prepared()
        begun = _now()
        for _ in range(steps):
            batch = next(self.batches) if load else batch
            if train:
                self.step(batch)
        return steps / (_now() - begun)


def _now() -> float:
    if dist.device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(cfg, steps: int, peak: float) -> dict:
    bench = Bench(cfg)
    plan, copies = bench.state.data.plan, config.spec(cfg).augment.copies
    device = torch.cuda.get_device_name() if dist.device().type == "cuda" else "cpu"
    macs = info.model_info(cfg).parts[0].macs
    found = {}
    for name, what in {
        "synthetic": {"load": False, "train": True},
        "loader": {"load": True, "train": False},
        "training": {"load": True, "train": True},
    }.items():
        decoded = bench.rate(steps, **what) * plan.step_size
        rates = {"decoded": decoded} if what["load"] else {}
        rates |= {"trained": decoded * copies} if what["train"] else {"made": decoded * copies}
        found[name] = {f"{kind}_per_second": round(rate, 2) for kind, rate in rates.items()}
        if what["train"] and (peak := peak or info.peak(device)):
            found[name]["mfu"] = round(info.mfu(macs, decoded * copies, peak), 4)
    bench.state.data.loader.close()
    about = {
        "device": device,
        "precision": str(bench.state.precision.dtype or torch.float32).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "workers": cfg.DATA_LOADER.NUM_WORKERS,
        "videos_a_step": plan.step_size,
        "copies": copies,
        "giga_multiply_adds": round(macs / 1e9, 3),
    }
    ceiling = min(found["synthetic"]["trained_per_second"], found["loader"]["made_per_second"])
    share = found["training"]["trained_per_second"] / ceiling
    return {**about, **found, "training / min(synthetic, loader)": round(share, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True)
    parser.add_argument("--steps", type=int, default=20, help="counted steps of each way (%(default)s)")
    parser.add_argument("--peak", type=float, default=0.0, help=f"of the device; known: {info.KNOWN_PEAKS}")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    args = parser.parse_intermixed_args()
    with exits.exit_codes():
        cfg = config.load([args.cfg], args.overrides)
        gpus = min(1, dist.count_gpus(-1))
        dist.launch(lambda: print(json.dumps(measure(cfg, args.steps, args.peak), indent=1)), gpus=gpus)


if __name__ == "__main__":
    main()
