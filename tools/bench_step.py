"""Times the training step of a config's model: forward, backward, optimizer, and peak memory. Prints JSON.

python tools/bench_step.py --cfg configs/Kinetics/MVITv2_S_16x4.yaml --batch 1 --against torchvision
python tools/bench_step.py --cfg configs/HowTo100M/S3D_MILNCE.yaml --batch 4 --against torchvision
time torchvision's mvit_v2_s or s3d in the same process, step by step in turn, so that a slow moment of the machine hits
both. Of a model of video and text the video tower is timed: its embedding stands for the scores of classes.

python tools/bench_step.py --cfg configs/toy/multitrain.yaml --micro-batches 8 --batch 4
times the exact two-pass step over several micro-batches against the usual loss / A, and prints how far the latter's
gradient is off.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from videorl import config, dist
from videorl.engine import build, optim
from videorl.engine.step import backward, call, to_device
from videorl.registry import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PARTS = ("forward", "backward", "optimizer", "step")


class Contestant:
    """A model with its optimizer, and what its steps took."""

    def __init__(self, name: str, model: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype):
        self.name, self.model, self.optimizer, self.dtype = name, model.train(), optimizer, dtype
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        self.peak = 0.0

    def step(self, video: torch.Tensor, labels: torch.Tensor) -> None:
        """One optimizer step; its parts are added to `seconds`, its memory to `peak` (MiB above what stood before)."""
        device = video.device
        with Peak(device) as peak:
            times = [now(device)]
            with torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                scores = _scores(self.model, video)
            loss = nn.functional.cross_entropy(scores.float(), labels)
            times.append(now(device))
            loss.backward()
            times.append(now(device))
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            times.append(now(device))
        self.peak = max(self.peak, peak.mebibytes)
        spans = [b - a for a, b in zip(times, times[1:], strict=False)]
        for part, span in zip(PARTS, [*spans, times[-1] - times[0]], strict=True):
            self.seconds[part].append(span)

    def result(self, video: torch.Tensor) -> dict:
        medians = {part: round(statistics.median(values), 4) for part, values in self.seconds.items()}
        return {
            "seconds": medians,
            "fastest_step": round(min(self.seconds["step"]), 4),
            "clips_per_second": round(len(video) / medians["step"], 3),
            "peak_mebibytes": round(self.peak),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "giga_multiply_adds": round(_multiply_adds(self.model, video[:1]) / 1e9, 2),
        }


def _scores(model: nn.Module, video: torch.Tensor) -> torch.Tensor:
    """`[B, C]`: logits, or the embedding of a model without classes."""
    outputs = model(video)
    if not isinstance(outputs, dict):
        return outputs
    return outputs["logits"] if "logits" in outputs else outputs["video_embed"]


def _multiply_adds(model: nn.Module, clip: torch.Tensor) -> float:
    """Of the forward pass, by torch's counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(clip)
    return counter.get_total_flops() / 2


class Peak:
    """Most memory in use at any moment inside, above that at the start."""

    def __init__(self, device: torch.device):
        self.device = device

    def __enter__(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.before = self.most = _resident()
            self.done = threading.Event()
            self.thread = threading.Thread(target=self._sample, daemon=True)
            self.thread.start()
        return self

    def _sample(self) -> None:
        while not self.done.wait(0.01):
            self.most = max(self.most, _resident())

    def __exit__(self, *_):
        if self.device.type == "cuda":
            self.mebibytes = (torch.cuda.max_memory_allocated() - self.before) / 2**20
        else:
            self.done.set()
            self.thread.join()
            self.mebibytes = (self.most - self.before) / 2**20


def _resident() -> int:
    """Bytes of main memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def contestants(cfg, against: str, dtypes: list[torch.dtype]) -> list[Contestant]:
    found = []
    for dtype in dtypes:
        model = build.model(cfg)
        optimizer = optim.build_optimizer(cfg, model, nn.Module())
        found.append(Contestant(f"videorl {_short(dtype)}", model, optimizer, dtype))
        if against == "torchvision":
            other = _torchvision(cfg).to(dist.device())
            groups = torch.optim.AdamW(other.parameters(), lr=1e-4, fused=dist.device().type == "cuda")
            found.append(Contestant(f"torchvision {_short(dtype)}", other, groups, dtype))
    return found


def _torchvision(cfg) -> nn.Module:
    """Torchvision's network of the same kind, with as many outputs."""
    from torchvision.models.video import mvit_v2_s, s3d

    kind, frames, size = cfg.MODEL.MODEL_NAME, cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE
    if kind == "S3D" and frames >= 16 and size >= 224:
        return s3d(num_classes=cfg.S3D.EMBED_DIM)
    if (kind, frames, size) == ("MViT", 16, 224):
        return mvit_v2_s(num_classes=cfg.MODEL.NUM_CLASSES)
    raise UserError(
        f"--against torchvision: it has mvit_v2_s for 16 frames of 224 pixels (config MVITv2_S_16x4) and s3d for"
        f" at least that (config S3D_MILNCE), not {kind} for {frames} frames of {size} pixels"
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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


def accumulation(cfg, args) -> None:
    """The exact step over several micro-batches against the usual loss / A, which is another gradient."""
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
    parser.add_argument("--batch", type=int, default=1, help="clips")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each, after one that is not")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, or both: float32,bfloat16")
    parser.add_argument("--against", default="none", choices=["none", "torchvision"])
    parser.add_argument("--micro-batches", type=int, default=0, help="time a step over so many micro-batches instead")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    args = parser.parse_intermixed_args()
    with dist.exit_codes():
        cfg = config.load([args.cfg], args.overrides)
        dist.launch(lambda: (accumulation if args.micro_batches else run)(cfg, args), gpus=min(1, dist.count_gpus(-1)))


def run(cfg, args) -> None:
    device, size = dist.device(), cfg.DATA.TRAIN_CROP_SIZE
    video = torch.randn(args.batch, 3, cfg.DATA.NUM_FRAMES, size, size, device=device)
    labels = torch.zeros(args.batch, dtype=torch.int64, device=device)
    names = args.dtype.split(",")
    if strange := set(names) - set(DTYPES):
        raise UserError(f"--dtype {', '.join(sorted(strange))}: expected float32, bfloat16, or both")
    dtypes = [DTYPES[name] for name in names]
    field = contestants(cfg, args.against, dtypes)
    for number in range(args.steps + 1):
        for one in field:
            one.step(video, labels)
            if number == 0:
                one.seconds = {part: [] for part in PARTS}
                one.peak = 0.0
    results = {one.name: one.result(video) for one in field}
    first = field[0].name
    ratios = {
        f"{first} / {name}": round(results[first]["seconds"]["step"] / found["seconds"]["step"], 3)
        for name, found in results.items()
        if name != first
    }
    shape = [args.batch, 3, cfg.DATA.NUM_FRAMES, size, size]
    threads = torch.get_num_threads()
    about = {"device": str(device), "threads": threads, "clip": shape}
    print(json.dumps({**about, "models": results, "step_ratio": ratios}, indent=1))


if __name__ == "__main__":
    main()
