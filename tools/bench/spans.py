"""Clips per second and CPU seconds of clips by time (HowTo100M), against other ways to read the same clips.

    python tools/bench/spans.py video.mp4 --clips 30 --size 224 --fps 5 --frames 16

One thread each, clips at whole seconds drawn from seed 0. `ours`: video/spans.py. `graph`: seek, then every frame goes
through libavfilter's trim, fps, crop, scale. `torchcodec`: frames by number, cropped and scaled by torch. `ffmpeg`: a
process for each clip, the published way. Prints JSON; `same`: part of the clips with the bytes of the first way;
`grey_levels`: mean difference to it.
"""

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.filter import Graph

from videorl import exits
from videorl.registry import UserError
from videorl.spec import Reading
from videorl.video.container import open_stream
from videorl.video.errors import VideoError
from videorl.video.spans import SLACK, Crop, Spans, stacked

WAYS = ("ours", "graph", "torchcodec", "ffmpeg")


class Readers:
    """The ways to read a clip, each from second `start` to uint8 [T, 3, S, S]."""

    def __init__(self, file: str, frames: int, fps: int, crop: Crop):
        self.file, self.frames, self.fps, self.crop = file, frames, fps, crop
        self.length = frames / fps + SLACK

    def ours(self, start: int) -> torch.Tensor:
        with Spans(self.file) as video:
            return video.clip(start, frames=self.frames, fps=self.fps, crop=self.crop)

    def graph(self, start: int) -> torch.Tensor:
        container, stream = open_stream(self.file, Reading.max_pixels)
        found: list[np.ndarray] = []
        with container:
            graph = Graph()
            graph.threads = 1
            source = graph.add_buffer(template=stream, time_base=stream.time_base)
            trim = [("trim", f"start={start}:duration={self.length}"), ("setpts", f"PTS-{start}/TB")]
            filters = [*trim, ("fps", str(self.fps)), *self.crop.filters(), ("format", "rgb24"), ("buffersink", "")]
            graph.link_nodes(source, *(graph.add(*f) for f in filters)).configure()
            container.seek(int(start / stream.time_base), stream=stream)
            frames = container.decode(stream)
            while len(found) < self.frames and (frame := next(frames, None)):
                graph.push(frame)
                found += _ready(graph)
        return stacked(found[: self.frames], self.frames, self.crop.size)

    def torchcodec(self, start: int) -> torch.Tensor:
        from torchcodec.decoders import VideoDecoder

        video = VideoDecoder(self.file, num_ffmpeg_threads=1)
        rate, last = video.metadata.average_fps, len(video) - 1
        numbers = [min(math.ceil((start + (k + 0.5) / self.fps) * rate) - 1, last) for k in range(self.frames)]
        clip = video.get_frames_at(numbers).data
        side = min(clip.shape[2:]) if self.crop.scaled else self.crop.size
        top, left = (clip.shape[2] - side) // 2, (clip.shape[3] - side) // 2
        clip = clip[:, :, top : top + side, left : left + side]
        size = (self.crop.size, self.crop.size)
        return F.interpolate(clip, size, mode="bicubic", antialias=True) if self.crop.scaled else clip

    def ffmpeg(self, start: int) -> torch.Tensor:
        options = ",".join(f"{name}={arguments}" for name, arguments in self.crop.filters()).replace(
            "(iw,ih)", r"(iw\,ih)"
        )
        output = ["-vf", f"fps={self.fps},{options}", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:"]
        command = ["ffmpeg", "-v", "error", "-nostdin", "-ss", str(start), "-t", str(self.length), "-i", self.file]
        raw = subprocess.run([*command, *output], capture_output=True, check=True).stdout
        pictures = np.frombuffer(raw, np.uint8).reshape(-1, self.crop.size, self.crop.size, 3)
        return stacked(pictures[: self.frames], self.frames, self.crop.size)


def _ready(graph: Graph) -> list[np.ndarray]:
    try:
        return [graph.pull().to_ndarray()]
    except av.BlockingIOError:
        return []


def cpu_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def measure(read, starts: list[int], expected: list[torch.Tensor]) -> tuple[dict, list[torch.Tensor]]:
    read(starts[0])  # imports, caches
    wall, cpu = time.perf_counter(), cpu_seconds()
    clips = [read(start) for start in starts]
    wall, cpu = (time.perf_counter() - wall) / len(starts), (cpu_seconds() - cpu) / len(starts)
    pairs = list(zip(clips, expected or clips))
    result = {
        "cpu_ms_per_clip": round(1000 * cpu, 1),
        "clips_per_second_and_core": round(1 / cpu, 1),
        "wall_ms_per_clip": round(1000 * wall, 1),
        "same": round(sum(torch.equal(a, b) for a, b in pairs) / len(pairs), 3),
        "grey_levels": round(sum(float((a.int() - b.int()).abs().float().mean()) for a, b in pairs) / len(pairs), 3),
    }
    return result, clips


def checked(against: str) -> list[str]:
    names = against.split(",")
    for name in names:
        if name not in WAYS:
            raise UserError(f"--against {name!r}: expected some of {','.join(WAYS)}")
        if name == "ffmpeg" and not shutil.which("ffmpeg"):
            raise UserError("--against ffmpeg: the program ffmpeg is not installed")
    return names


def run(args: argparse.Namespace) -> dict:
    names = checked(args.against)
    torch.set_num_threads(1)
    try:
        with Spans(args.file) as video:
            seconds = video.seconds
    except VideoError as error:
        raise UserError(str(error)) from None
    starts = np.random.default_rng(0).integers(0, max(1, seconds - args.frames / args.fps), args.clips).tolist()
    readers = Readers(args.file, args.frames, args.fps, Crop(args.size, scaled=args.scaled))
    result: dict = {"file": args.file, "seconds": round(seconds, 1), "clips": args.clips, "scaled": args.scaled}
    expected: list[torch.Tensor] = []
    for name in names:
        result[name], clips = measure(getattr(readers, name), starts, expected)
        expected = expected or clips
    return result


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="video of H.264 or any other codec")
    parser.add_argument("--clips", type=int, default=30, help="default 30")
    parser.add_argument("--frames", type=int, default=16, help="default 16")
    parser.add_argument("--fps", type=int, default=5, help="default 5")
    parser.add_argument("--size", type=int, default=224, help="default 224")
    parser.add_argument("--scaled", action="store_true", help="scale the largest square; default: crop only")
    parser.add_argument("--against", default=",".join(WAYS), help="default: all four; ours first")
    args = parser.parse_args(words)
    with exits.exit_codes():
        print(json.dumps(run(args), indent=1))


if __name__ == "__main__":
    main()
