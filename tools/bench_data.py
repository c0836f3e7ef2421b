"""CPU time of one training sample on one thread: the published order of operations beside this project's.

    python tools/bench_data.py --video clip.mp4 --baseline published

A sample is a clip of `--frames` frames `--rate` apart, decoded once and augmented `--copies` times. Published
(MultiTrain, PySlowFast): decord decodes every frame of the span; PIL RandAugment on whole frames; float, normalised;
random resized crop, flip, erasing. Both get the same clips, crops and operations. Prints JSON: CPU seconds per sample.
"""

import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from videorl.data import clips
from videorl.data.randaug import RandAugment
from videorl.data.transforms import TrainTransform, random_resized_crop
from videorl.data.video import VideoError, open_video
from videorl.registry import UserError
from videorl.spec import Augment

AUGMENT = Augment(
    area=(0.08, 1.0), aspect=(0.75, 1.3333), rand_augment="rand-m7-n4-mstd0.5-inc1", erase_prob=0.25, copies=2
)  # configs/Multi_dataset and the MViTv2 recipes of PySlowFast


class Stopwatch:
    """CPU seconds of this process since the last call."""

    def __init__(self):
        self.last = time.process_time()

    def __call__(self) -> float:
        before, self.last = self.last, time.process_time()
        return self.last - before


def published_sample(path: Path, rng, *, frames: int, rate: int, size: int, copies: int) -> dict[str, float]:
    """Seconds of a sample in the published order of operations, with the libraries that it used."""
    from decord import VideoReader
    from timm.data.random_erasing import RandomErasing

    erasing = RandomErasing(AUGMENT.erase_prob, mode="pixel", max_count=1, device="cpu")
    policy = RandAugment(AUGMENT.rand_augment, AUGMENT.interpolation)
    seconds = Stopwatch()
    reader = VideoReader(str(path), num_threads=1)
    picked = clips.dense_train(len(reader), reader.get_avg_fps(), frames=frames, rate=rate, rng=rng)
    span = reader.get_batch(range(picked[0], picked[-1] + 1)).asnumpy()
    decoded = torch.from_numpy(span)[picked - picked[0]]  # [T, H, W, 3]
    decode = seconds()
    for draws in rng.spawn(copies):
        window = random_resized_crop(*decoded.shape[1:3], size, AUGMENT.area, AUGMENT.aspect, draws)
        images = [Image.fromarray(frame) for frame in decoded.numpy()]
        for operation in policy.draw(draws):
            images = [operation(image) for image in images]
        clip = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255) for image in images])
        clip = (clip.permute(0, 2, 3, 1) - torch.full((3,), 0.45)) / torch.full((3,), 0.225)
        clip = clip.permute(3, 0, 1, 2)  # [3, T, H, W]
        top, left, height, width = window.region
        clip = clip[:, :, top : top + height, left : left + width]
        clip = F.interpolate(clip, (size, size), mode="bilinear", align_corners=False)
        clip = clip.flip(-1) if draws.random() < 0.5 else clip
        erasing(clip.permute(1, 0, 2, 3).flatten(0, 1).contiguous())
    return {"decode": decode, "transform": seconds()}


def our_sample(path: Path, rng, *, frames: int, rate: int, size: int, copies: int) -> dict[str, float]:
    """Seconds of the same sample here. It ends as uint8 [3, T, S, S]; the device makes it float and normalises it."""
    transform = TrainTransform(AUGMENT, size)
    seconds = Stopwatch()
    with open_video(path) as video:
        picked = clips.dense_train(video.num_frames, video.fps, frames=frames, rate=rate, rng=rng)
        decoded = video.frames(picked)
    decode = seconds()
    for draws in rng.spawn(copies):
        transform(decoded, draws).permute(1, 0, 2, 3).contiguous()
    return {"decode": decode, "transform": seconds()}


def mean_seconds(sample, path: Path, samples: int, **settings) -> dict[str, float]:
    """Mean over samples drawn from seeds 0, 1, ...; one more before them warms caches and imports."""
    rows = [sample(path, np.random.default_rng(max(seed, 0)), **settings) for seed in range(-1, samples)][1:]
    parts = {part: sum(row[part] for row in rows) / samples for part in rows[0]}
    return {part: round(value, 4) for part, value in {**parts, "total": sum(parts.values())}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, required=True, nargs="+", help="video files")
    parser.add_argument("--baseline", choices=["published", "none"], default="published")
    for name, value in {"frames": 32, "rate": 3, "size": 224, "copies": AUGMENT.copies, "samples": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: getattr(args, name) for name in ("frames", "rate", "size", "copies")}
    try:
        for path in args.video:
            print(json.dumps(compare(path, args.baseline, args.samples, settings)), flush=True)
    except (UserError, VideoError) as error:
        sys.exit(f"bench_data: {error}")


def compare(path: Path, baseline: str, samples: int, settings: dict) -> dict:
    """One line of output: the settings, CPU seconds per sample for both, and ours / published."""
    result = {
        "video": path.name,
        "samples": samples,
        **settings,
        "ours": mean_seconds(our_sample, path, samples, **settings),
    }
    if baseline == "published":
        if importlib.util.find_spec("decord") is None:
            raise UserError(
                "--baseline published: expected decord, not installed; pip install decord, or --baseline none"
            )
        result["published"] = mean_seconds(published_sample, path, samples, **settings)
        result["ratio"] = round(result["ours"]["total"] / result["published"]["total"], 3)
    return result


if __name__ == "__main__":
    main()
