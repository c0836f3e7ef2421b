"""Clips per second and CPU seconds of a config's training samples: decoding, transforms, collating, the whole loader.

    python tools/bench/data.py --cfg configs/Kinetics/MVITv2_B_32x3.yaml --baseline published DATA.PATH_TO_DATA_DIR …

For each decoding backend, on one thread. `--baseline published` adds, in the same run, the order of operations of
MultiTrain and PySlowFast: decord decodes every frame of the span; PIL RandAugment on whole frames; float, normalised;
random resized crop, flip, erasing. Both get the same clips, crops and operations. `--baseline decoder` adds how fast
torchcodec (for the backend decord: decord) decodes the frames of the samples and does nothing else, in turns with the
data set and its collating. Prints JSON.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from videorl import config, exits
from videorl.clip import sampling
from videorl.clip.randaug import RandAugment
from videorl.clip.transforms import TrainTransform, random_resized_crop
from videorl.data.dataset import ClipDataset
from videorl.engine import build
from videorl.loading.worker import Job, collate
from videorl.registry import UserError
from videorl.spec import Spec
from videorl.video.backends import check_backend
from videorl.video.errors import VideoError
from videorl.video.reader import Video, open_video


class Stopwatch:
    """CPU seconds of this process since the last call."""

    def __init__(self):
        self.last = time.process_time()

    def __call__(self) -> float:
        before, self.last = self.last, time.process_time()
        return self.last - before


def published_sample(path: str, rng, spec: Spec, backend: str) -> dict[str, float]:
    """Seconds of a sample in the published order of operations, with the libraries that it used."""
    from decord import VideoReader
    from timm.data.random_erasing import RandomErasing

    clip_spec, augment, size = spec.clip, spec.augment, spec.clip.train_size
    erasing = RandomErasing(augment.erase_prob, mode="pixel", max_count=1, device="cpu")
    policy = RandAugment(augment.rand_augment, augment.interpolation)
    seconds = Stopwatch()
    reader = VideoReader(path, num_threads=1)
    picked = sampling.dense_train(
        len(reader), reader.get_avg_fps(), frames=clip_spec.frames, rate=clip_spec.rate, rng=rng
    )
    span = reader.get_batch(range(picked[0], picked[-1] + 1)).asnumpy()
    decoded = torch.from_numpy(span)[picked - picked[0]]  # [T, H, W, 3]
    decode = seconds()
    for draws in rng.spawn(augment.copies):
        window = random_resized_crop(*decoded.shape[1:3], size, augment.area, augment.aspect, draws)
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


def our_sample(path: str, rng, spec: Spec, backend: str) -> dict[str, float]:
    """Seconds of the same sample here, resized by the worker. It ends as uint8; the device normalises it."""
    clip_spec = spec.clip
    transform = TrainTransform(spec.augment, clip_spec.train_size, clip_spec.mean, clip_spec.std)
    seconds = Stopwatch()
    with open_video(path, backend) as video:
        picked = sampling.dense_train(
            video.num_frames, video.fps, frames=clip_spec.frames, rate=clip_spec.rate, rng=rng
        )
        decoded = video.frames(picked)
    decode = seconds()
    copies = [{"video": transform(decoded, draws)} for draws in rng.spawn(spec.augment.copies)]
    transformed = seconds()
    collate(copies)
    return {"decode": decode, "transform": transformed, "collate": seconds()}


def bare_decode(path: str, numbers: list[int], decoder: str) -> None:
    if decoder == "decord":
        from decord import VideoReader

        VideoReader(path, num_threads=1).get_batch(numbers).asnumpy()
    else:
        from torchcodec.decoders import VideoDecoder

        VideoDecoder(path, num_ffmpeg_threads=1).get_frames_at(numbers)


def beside_decoder(data, samples: int, backend: str) -> dict[str, float]:
    """Samples per CPU second of the data set with collating, of decoding alone, and the median ratio of the two."""
    if not isinstance(data, ClipDataset):
        raise UserError("--baseline decoder: expected one data set of video files; name it with TRAIN.DATASET")
    data.spec = replace(data.spec, reading=replace(data.spec.reading, backend=backend))
    decoder = "decord" if backend == "decord" else "torchcodec"
    check_backend(decoder)
    rows = [_in_turns(data, k, decoder) for k in range(-1, samples)][1:]  # the first warms caches and imports
    rates = {name: round(samples / sum(row[name] for row in rows), 2) for name in ("ours", "decoder")}
    return {**rates, "ratio": round(statistics.median(row["decoder"] / row["ours"] for row in rows), 3)}


def _in_turns(data, k: int, decoder: str) -> dict[str, float]:
    """CPU seconds of sample k, and of decoding the frames that it is made from; every other time in the other order."""
    data.epoch, i = divmod(max(k, 0), len(data))
    with mock.patch.object(Video, "parts", autospec=True, side_effect=Video.parts) as parts:
        data[i]
    if not parts.called:
        raise UserError("--baseline decoder: expected samples of video files, found others (pictures, or a cache)")
    video, numbers = parts.call_args.args
    decode = partial(bare_decode, video.path, np.unique(numbers).tolist(), decoder)
    tasks, seconds = {"ours": lambda: collate(data[i]), "decoder": decode}, {}
    for name in sorted(tasks, reverse=k % 2 == 1):
        watch = Stopwatch()
        try:
            tasks[name]()
        except RuntimeError as error:
            first = str(error).strip().partition("\n")[0]
            raise UserError(f"--baseline decoder: {video.path}: {first}; leave it out of the list") from error
        seconds[name] = watch()
    return seconds


def mean_seconds(sample, paths: list[str], samples: int, spec: Spec, backend: str = "") -> dict[str, float]:
    """Mean over samples drawn from seeds 0, 1, …; one more before them warms caches and imports."""
    seeds = [max(k, 0) for k in range(-1, samples)]
    rows = [sample(paths[k % len(paths)], np.random.default_rng(k), spec, backend) for k in seeds]
    parts = {part: sum(row[part] for row in rows[1:]) / samples for part in rows[0]}
    total = sum(parts.values())
    rounded = {part: round(value, 4) for part, value in {**parts, "total": total}.items()}
    return {**rounded, "clips_per_second": round(spec.augment.copies / total, 2)}


def loader_rate(cfg, data, samples: int) -> dict[str, float]:
    """Clips per second of wall time that the loader delivers with NUM_WORKERS workers, from the second batch on."""
    loader = build.loader(cfg, data, "bench")
    size = min(cfg.TRAIN.BATCH_SIZE, len(data), max(1, samples // 4))
    batches = [[(k * size + i) % len(data) for i in range(size)] for k in range(max(2, samples // size) + 1)]
    count, began = 0, time.perf_counter()
    for number, batch in enumerate(loader.run([Job(0, k, ids) for k, ids in enumerate(batches)])):
        if number == 0:
            began = time.perf_counter()
        else:
            count += len(batch["index"])
    rate = count / (time.perf_counter() - began)
    loader.close()
    return {"workers": cfg.DATA_LOADER.NUM_WORKERS, "clips_per_second": round(rate, 2)}


def measure(cfg, backends: list[str], baseline: str, samples: int) -> dict:
    """Everything that is printed; `ratio` is ours / published, in CPU seconds."""
    spec, data = config.spec(cfg), build.dataset(cfg, cfg.TRAIN.DATASET, "train")
    paths = [data.path(i) for i in range(len(data))]
    clip, copies = spec.clip, spec.augment.copies
    # The parts are those of one clip of a video.
    spec = replace(spec, augment=replace(spec.augment, clips=1, copies=copies // spec.augment.clips))
    result = {
        "clip": {"frames": clip.frames, "rate": clip.rate, "size": clip.train_size, "copies": copies},
        "resized_by": "device" if build.resizes_on_device(cfg.DATA.RESIZE_ON_DEVICE, spec.augment) else "workers",
        "samples": samples,
        "cpu_seconds_per_sample": {b: mean_seconds(our_sample, paths, samples, spec, b) for b in backends},
        "loader": loader_rate(cfg, data, samples),
    }
    if baseline == "decoder":
        result["samples_per_second"] = {b: beside_decoder(data, samples, b) for b in backends}
    if baseline == "published":
        if importlib.util.find_spec("decord") is None:
            raise UserError("--baseline published: expected decord, not installed; pip install decord")
        if not (spec.augment.area and spec.augment.rand_augment):
            raise UserError("--baseline published needs a config with random resized crop and RandAugment (AUG.ENABLE)")
        published = mean_seconds(published_sample, paths, samples, spec)
        result["published"] = published
        ours = result["cpu_seconds_per_sample"]
        result["ratio"] = {b: round(ours[b]["total"] / published["total"], 3) for b in backends}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True)
    parser.add_argument("--backends", default="pyav", help="some of pyav,torchcodec,decord (%(default)s)")
    parser.add_argument("--baseline", choices=["published", "decoder", "none"], default="none")
    parser.add_argument("--samples", type=int, default=20, help="default 20")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    args = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    with exits.exit_codes():
        if args.samples < 1:
            raise UserError(f"--samples {args.samples}: expected 1 or more")
        cfg = config.load([args.cfg], args.overrides)
        try:
            found = measure(cfg, args.backends.split(","), args.baseline, args.samples)
        except VideoError as error:
            raise UserError(f"{error}; expected a list of whole video files") from error
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
