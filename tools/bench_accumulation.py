"""Times one optimizer step over several micro-batches: the exact two-pass step against the usual loss / A. Prints JSON.

python tools/bench_accumulation.py --cfg configs/toy/multitrain.yaml --micro-batches 8 --batch 4

Both run in one process, in turn. The usual step takes each micro-batch for a batch of its own, which is another
gradient: the relative error of it is printed too.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from tools.bench_step import Peak, now
from videorl import config, dist
from videorl.engine import build
from videorl.engine.step import backward, call, to_device


def micro_batches(cfg, count: int, size: int) -> list[dict]:
    """Random clips with labels, of every label space in turn."""
    spec = config.spec(cfg)
    clip, sizes = spec.clip, list(spec.labels.values())
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        shape = (size, clip.frames, clip.channels, clip.train_size, clip.train_size)
        batch = {"video": torch.randint(256, shape, generator=draw, dtype=torch.uint8), "index": torch.arange(size)}
        if len(sizes) == 1:
            batch["labels"] = torch.randint(sizes[0], (size,), generator=draw)
        else:
            own = torch.arange(size) % len(sizes)
            batch["spaces"] = torch.eye(len(sizes))[own]
            batch["labels"] = torch.zeros(size, sum(sizes))
            for i, d in enumerate(own.tolist()):
                batch["labels"][i, sum(sizes[:d]) + int(torch.randint(sizes[d], (1,), generator=draw))] = 1.0
        found.append(batch)
    return found


def exact(cfg, model, objective, batches) -> None:
    clip, precision = config.spec(cfg).clip, build.precision(cfg)
    backward(model, objective, batches, clip=clip, precision=precision, seed=0, step=0)


def usual(cfg, model, objective, batches) -> None:
    clip, precision = config.spec(cfg).clip, build.precision(cfg)
    for batch in batches:
        batch = to_device(batch, precision.device, clip)
        with precision.autocast():
            outputs = call(model, batch)
        values = {**batch, **outputs}
        parts = objective.separable_part(values, objective.totals([batch])) | objective.coupled_part(values)
        (objective.weighted(parts) / len(batches)).backward()


def run(cfg, args) -> None:
    model, objective = build.model(cfg).train(), build.objective(cfg)
    batches = micro_batches(cfg, args.micro_batches, args.batch)
    seconds, peaks, gradients = {}, {}, {}
    for number in range(args.steps + 1):
        for step in (exact, usual):
            model.zero_grad(set_to_none=True)
            with Peak(dist.device()) as peak:
                begun = now(dist.device())
                step(cfg, model, objective, batches)
                seconds.setdefault(step.__name__, []).append(now(dist.device()) - begun)
            peaks[step.__name__] = max(peaks.get(step.__name__, 0.0), peak.mebibytes if number else 0.0)
            gradients[step.__name__] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    error = (gradients["usual"] - gradients["exact"]).norm() / gradients["exact"].norm()
    found = {
        "device": str(dist.device()),
        "threads": torch.get_num_threads(),
        "micro_batches": [args.micro_batches, *batches[0]["video"].shape],
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "peak_mebibytes": {name: round(value) for name, value in peaks.items()},
        "exact / usual": {
            "time": round(medians["exact"] / medians["usual"], 3),
            "memory": round(peaks["exact"] / max(peaks["usual"], 1.0), 3),
        },
        "relative_gradient_error_of_usual": round(float(error), 4),
    }
    print(json.dumps(found, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True)
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4, help="clips of a micro-batch")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each, after one that is not")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    args = parser.parse_intermixed_args()
    with dist.exit_codes():
        cfg = config.load([args.cfg], args.overrides)
        dist.launch(lambda: run(cfg, args), gpus=min(1, dist.count_gpus(-1)))


if __name__ == "__main__":
    main()
