"""Times the training step of a config's model: forward, backward, optimizer, and peak memory. Prints JSON.

python tools/bench/step.py --cfg configs/Kinetics/MVITv2_S_16x4.yaml --batch 1 --against torchvision
python tools/bench/step.py --cfg configs/HowTo100M/S3D_MILNCE.yaml --batch 4 --against torchvision
python tools/bench/step.py --cfg configs/SSv2/VIDEOMAE_VITB_16x2_PT.yaml --batch 4 --against transformers
python tools/bench/step.py --cfg configs/Ego4D/TSF_B_CLIP.yaml --batch 4 --against transformers
python tools/bench/step.py --cfg configs/Ego4D/AVION_VITB.yaml --batch 4 --against configs/Ego4D/TSF_B_CLIP.yaml
time torchvision's mvit_v2_s or s3d, transformers' VideoMAEForPreTraining or TimesformerForVideoClassification, or the
model of another config, in the same process, step by step in turn, so that a slow moment of the machine hits both. Of
a model of video and text the video tower is timed: its embedding stands for the scores of classes. `transformers` has
fused attention where it knows it, its default; `transformers-eager` has not.
On a GPU `mfu` is the part of the peak (--peak, in 10^12 operations a second) that three times the multiply-adds of the
forward pass use.

python tools/bench/step.py --cfg configs/toy/multitrain.yaml --micro-batches 8 --batch 4
times the exact two-pass step over several micro-batches against the usual loss / A, and prints how far the latter's
gradient is off. The peaks are memory on the device beside the clips, which stay in main memory.
"""

import argparse
import ctypes
import inspect
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import Tensor, nn

from videorl import config, dist, exits
from videorl.clip import masks
from videorl.engine import build, info, optim
from videorl.engine.step import backward, call, normalise, to_device
from videorl.registry import MODELS, UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OTHERS = ["none", "torchvision", "transformers", "transformers-eager"]  # or a config of this toolkit
PARTS = ("forward", "backward", "optimizer", "step")
Batch = dict[str, Tensor]


class Contestant:
    """A model with its loss and optimizer, and what its steps took."""

    def __init__(self, name: str, model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], dtype: torch.dtype,
                 optimizer: torch.optim.Optimizer):  # fmt: skip
        self.name, self.model, self.loss, self.dtype = name, model.train(), loss, dtype
        self.optimizer = optimizer
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        self.peak = 0.0

    def step(self, batch: Batch) -> None:
        """One optimizer step; its parts are added to `seconds`, its memory to `peak` (MiB above what stood before)."""
        device = dist.device()
        with Peak(device) as peak:
            times = [now(device)]
            with torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                loss = self.loss(self.model, batch)
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

    def result(self, clips: int) -> dict:
        medians = {part: round(statistics.median(values), 4) for part, values in self.seconds.items()}
        return {
            "seconds": medians,
            "fastest_step": round(min(self.seconds["step"]), 4),
            "clips_per_second": round(clips / medians["step"], 3),
            "peak_mebibytes": round(self.peak),
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }


class Peak:
    """Most memory in use at any moment inside, above that at the start."""

    def __init__(self, device: torch.device):
        self.device = device

    def __enter__(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            # Else memory that one contestant gave back to the heap would be there for the next, and not be counted.
            ctypes.CDLL(None).malloc_trim(0)
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


# --------------------------------------------------------------------------------------------------------- contestants


def contestants(cfg, against: str, dtypes: list[torch.dtype]) -> list[Contestant]:
    found = []
    for dtype in dtypes:
        found.append(_own(cfg, "videorl", dtype))
        if against.endswith(".yaml"):
            found.append(_own(config.load([against]), Path(against).stem, dtype))
        elif against != "none":
            other, loss = _torchvision(cfg) if against == "torchvision" else _transformers(cfg, against)
            other = other.to(dist.device())
            steps = torch.optim.AdamW(other.parameters(), lr=1e-4, fused=True)
            found.append(Contestant(f"{against} {_short(dtype)}", other, loss, dtype, steps))
    return found


def _own(cfg, name: str, dtype: torch.dtype) -> Contestant:
    model = build.model(cfg)
    optimizer = optim.build_optimizer(cfg, model, nn.Module())
    loss = _objective(cfg) if cfg.MASK.RATIO else _cross_entropy
    trained = torch.compile(model) if cfg.TRAIN.COMPILE else model
    return Contestant(f"{name} {_short(dtype)}", trained, loss, dtype, optimizer)


def _objective(cfg) -> Callable[[nn.Module, Batch], Tensor]:
    objective = build.objective(cfg)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        values = {**batch, **call(model, batch)}
        return objective.weighted(objective.separable_part(values, objective.totals([batch])))

    return loss


def _cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Of logits, or of the embedding of a model without classes."""
    outputs = model(batch["video"])
    if isinstance(outputs, dict):
        outputs = outputs["logits"] if "logits" in outputs else outputs["video_embed"]
    return nn.functional.cross_entropy(outputs.float(), torch.zeros(len(outputs), dtype=torch.int64).to(outputs.device))


def _torchvision(cfg) -> tuple[nn.Module, Callable]:
    """Torchvision's network of the same kind, with as many outputs."""
    from torchvision.models.video import mvit_v2_s, s3d

    kind, frames, size = cfg.MODEL.MODEL_NAME, cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE
    if kind == "S3D" and frames >= 16 and size >= 224:
        return s3d(num_classes=cfg.S3D.EMBED_DIM), _cross_entropy
    if (kind, frames, size) == ("MViT", 16, 224):
        return mvit_v2_s(num_classes=cfg.MODEL.NUM_CLASSES), _cross_entropy
    raise UserError(
        f"--against torchvision: it has mvit_v2_s for 16 frames of 224 pixels (config MVITv2_S_16x4) and s3d for"
        f" at least that (config S3D_MILNCE), not {kind} for {frames} frames of {size} pixels"
    )


def _transformers(cfg, against: str) -> tuple[nn.Module, Callable]:
    """Transformers' network of the same sizes; it gets its clips as normalised floats, which is not counted."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise UserError("--against transformers: it is not installed; pip install transformers") from None
    attention = {"attn_implementation": "eager" if against.endswith("eager") else "sdpa"}
    if cfg.MODEL.MODEL_NAME == "VideoMAE" and cfg.MASK.DECODER == "all":
        return _their_videomae(cfg, attention)
    if cfg.MODEL.MODEL_NAME in ("TimeSformer", "DualEncoder"):
        return _their_timesformer(cfg)
    raise UserError(
        "--against transformers: it has VideoMAE's pre-training, with MASK.DECODER all, and TimeSformer, not"
        f" {cfg.MODEL.MODEL_NAME}"
    )


def _their_timesformer(cfg) -> tuple[nn.Module, Callable]:
    """With divided attention, which is not LaViLa's to the letter but as much work, and a class for each output."""
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    node = cfg.TIMESFORMER
    settings = TimesformerConfig(
        image_size=cfg.DATA.TRAIN_CROP_SIZE,
        patch_size=node.PATCH_SIZE,
        num_frames=cfg.DATA.NUM_FRAMES,
        hidden_size=node.EMBED_DIM,
        num_hidden_layers=node.DEPTH,
        num_attention_heads=node.NUM_HEADS,
        intermediate_size=int(node.EMBED_DIM * node.MLP_RATIO),
        num_labels=cfg.DUAL.EMBED_DIM if cfg.MODEL.MODEL_NAME == "DualEncoder" else cfg.MODEL.NUM_CLASSES,
        drop_path_rate=0,
    )
    model = TimesformerForVideoClassification(settings)
    return model, lambda model, batch: _cross_entropy(lambda clips: model(clips).logits, {"video": batch["normalised"]})


def _their_videomae(cfg, attention: dict) -> tuple[nn.Module, Callable]:
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    node, (tubelet, patch, _) = cfg.VIDEOMAE, cfg.MODEL.PATCH_SIZE
    settings = VideoMAEConfig(
        image_size=cfg.DATA.TRAIN_CROP_SIZE,
        patch_size=patch,
        num_frames=cfg.DATA.NUM_FRAMES,
        tubelet_size=tubelet,
        hidden_size=node.EMBED_DIM,
        num_hidden_layers=node.DEPTH,
        num_attention_heads=node.NUM_HEADS,
        intermediate_size=round(node.EMBED_DIM * node.MLP_RATIO),
        decoder_hidden_size=node.DECODER_DIM,
        decoder_num_hidden_layers=node.DECODER_DEPTH,
        decoder_num_attention_heads=node.DECODER_HEADS,
        decoder_intermediate_size=round(node.DECODER_DIM * node.MLP_RATIO),
        **attention,
    )
    return VideoMAEForPreTraining(settings), lambda model, batch: model(batch["normalised"], batch["hidden"]).loss


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# -------------------------------------------------------------------------------------------------------------- clips


def micro_batches(cfg, count: int, size: int) -> list[Batch]:
    """Random clips with what the model's `forward` names and labels, of every label space in turn."""
    spec = config.spec(cfg)
    clip, sizes = spec.clip, list(spec.labels.values())
    draw, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    names = inspect.signature(config.component(cfg, MODELS, cfg.MODEL.MODEL_NAME)[0].build.forward).parameters
    found = []
    for _ in range(count):
        shape = (size, clip.frames, clip.channels, clip.train_size, clip.train_size)
        video = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
        batch = {"pixels" if "pixels" in names else "video": video, "index": torch.arange(size)}
        if "visible" in names:
            grid = masks.checked_grid(spec, clip.train_size)
            drawn = [masks.draw(rng, grid, spec.masking) for _ in range(size)]
            batch["visible"], batch["masked"] = (torch.from_numpy(np.stack(part)) for part in zip(*drawn))
        if "text" in names:
            texts = cfg.HOWTO100M.NUM_CANDIDATES if cfg.TRAIN.DATASET == "howto100m" else 1
            batch["text"] = torch.randint(50, (size, texts, cfg.TEXT.MAX_WORDS), generator=draw)  # of any dictionary
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


def on_device(cfg, size: int, against: str) -> Batch:
    """One batch as it lies on the device before a step, with what transformers reads."""
    clip = config.spec(cfg).clip
    batch = to_device(micro_batches(cfg, 1, size)[0], dist.device(), clip)
    if against.startswith("transformers"):
        normalised = batch["video"] if "video" in batch else normalise(batch["pixels"], clip)
        batch["normalised"] = normalised.transpose(1, 2).contiguous()
    if against.startswith("transformers") and "visible" in batch:
        batch["hidden"] = torch.ones(size, batch["visible"].shape[1] + batch["masked"].shape[1], dtype=torch.bool)
        batch["hidden"] = batch["hidden"].to(dist.device()).scatter_(1, batch["visible"], False)
    return batch


# ------------------------------------------------------------------------------------------------------- micro-batches


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
        "micro_batches": [args.micro_batches, *batches[0]["pixels" if "pixels" in batches[0] else "video"].shape],
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
    parser.add_argument("--against", default="none", help=f"{', '.join(OTHERS)}, or another config")
    parser.add_argument("--peak", type=float, default=0.0, help=f"of the GPU; known: {info.KNOWN_PEAKS}")
    parser.add_argument("--micro-batches", type=int, default=0, help="time a step over so many micro-batches instead")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    args = parser.parse_intermixed_args()
    with exits.exit_codes():
        cfg = config.load([args.cfg], args.overrides)
        dist.launch(lambda: (accumulation if args.micro_batches else run)(cfg, args), gpus=min(1, dist.count_gpus(-1)))


def passes(found: dict) -> float:
    """Seconds without the optimizer."""
    return found["seconds"]["forward"] + found["seconds"]["backward"]


def run(cfg, args) -> None:
    names = args.dtype.split(",")
    if strange := set(names) - set(DTYPES):
        raise UserError(f"--dtype {', '.join(sorted(strange))}: expected float32, bfloat16, or both")
    if args.against not in OTHERS and not args.against.endswith(".yaml"):
        raise UserError(f"--against {args.against}: expected one of {', '.join(OTHERS)}, or a config (.yaml)")
    batch = on_device(cfg, args.batch, args.against)
    field = contestants(cfg, args.against, [DTYPES[name] for name in names])
    for number in range(args.steps + 1):
        for one in field:
            one.step(batch)
            if number == 0:
                one.seconds = {part: [] for part in PARTS}
                one.peak = 0.0
    results = {one.name: one.result(args.batch) for one in field}
    first = field[0].name
    ratios = {
        f"{first} / {name}": {
            "time": round(results[first]["seconds"]["step"] / found["seconds"]["step"], 3),
            "forward and backward": round(passes(results[first]) / passes(found), 3),
            "memory": round(results[first]["peak_mebibytes"] / max(found["peak_mebibytes"], 1), 3),
        }
        for name, found in results.items()
        if name != first
    }
    macs = info.model_info(cfg).parts[0].macs
    about = {
        "device": torch.cuda.get_device_name() if dist.device().type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "clip": [args.batch, 3, cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.TRAIN_CROP_SIZE],
        "giga_multiply_adds": round(macs / 1e9, 3),
    }
    if peak := args.peak or info.peak(about["device"]):
        for found in results.values():
            found["mfu"] = round(info.mfu(macs, found["clips_per_second"], peak), 4)
    print(json.dumps({**about, "models": results, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
