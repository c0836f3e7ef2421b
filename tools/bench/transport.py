"""Times Norton's loss, forward and backward, and its peak memory, against its formulas written with whole tensors.

python tools/bench/transport.py --clips 256
python tools/bench/transport.py --clips 1024 --alone
in the published shapes: 31 tokens of a text, 18 of a clip, 768 numbers each; texts have 10 to 31 tokens, clips 4 to 17
as its clips have (--full: all of them). Prints JSON: median seconds of a step (of the clock, and of all
processors), and MiB above what the inputs take. Each
runs in a process of its own, whose peak the system tells.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F

from videorl.losses.transport import Norton

WORDS, FRAMES, WIDTH = 31, 18, 768


class Plain(Norton):
    """The fine similarities from one tensor [N, N, words, frames], as the formulas say."""

    def similarity(self, video, text, video_tokens, video_token_mask, text_tokens, text_token_mask):
        words, frames = F.normalize(text_tokens, dim=2), F.normalize(video_tokens, dim=2)
        there = torch.einsum("at,bv->abtv", text_token_mask, video_token_mask)
        cosines = torch.einsum("atd,bvd->abtv", words, frames) * there / self.alpha
        no_frame, no_word = (1 - video_token_mask).sum(1), (1 - text_token_mask).sum(1)
        over_frames = (cosines.exp().sum(3) - no_frame[None, :, None]).log()
        over_words = (cosines.exp().sum(2) - no_word[:, None, None]).log()
        by_words = self.alpha * over_frames.sum(2) / text_token_mask.sum(1)[:, None]
        by_frames = self.alpha * over_words.sum(2) / video_token_mask.sum(1)[None]
        scaled = lambda x: (x - x.min()) / (x.max() - x.min())  # noqa: E731
        coarse = F.normalize(text, dim=1) @ F.normalize(video, dim=1).T
        fine = (scaled(by_words) + scaled(by_frames)) / 2
        return (self.coarse_weight * scaled(coarse) + fine) / (self.coarse_weight + 1)


def inputs(clips: int, full: bool) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    found = {}
    for kind, length, least in (("video", FRAMES, 4), ("text", WORDS, 10)):
        tokens = torch.randn(clips, length, WIDTH, generator=draw)
        counts = torch.full((clips, 1), length) if full else torch.randint(least, length, (clips, 1), generator=draw)
        mask = (torch.arange(length) < counts).float()
        found[f"{kind}_embed"] = (tokens * mask[..., None]).sum(1) / counts
        found |= {f"{kind}_tokens": tokens.requires_grad_(), f"{kind}_token_mask": mask}
    return {name: value.detach().requires_grad_(name.endswith(("embed", "tokens"))) for name, value in found.items()}


def measure(kind: str, clips: int, full: bool, steps: int) -> dict:
    loss, given = {"ours": Norton, "plain": Plain}[kind](None), inputs(clips, full)
    leaves = [value for value in given.values() if value.requires_grad]
    loss(**inputs(8, full)).backward()  # libraries take memory of their own at the first use
    before, seconds, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, [], []
    for _ in range(steps):
        begun, used = time.perf_counter(), time.process_time()
        value = loss(**given)
        gradients = torch.autograd.grad(value, leaves)
        norm = sum(float(g.norm()) ** 2 for g in gradients) ** 0.5
        del gradients
        seconds.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - used)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    times = {"seconds": statistics.median(seconds), "cpu_seconds": statistics.median(cpu)}
    return {**times, "peak_mib": peak / 1024, "loss": float(value), "gradient": norm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="no padding")
    parser.add_argument("--alone", action="store_true", help="without the formulas, which may not fit in memory")
    parser.add_argument("--only", choices=["ours", "plain"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.clips, args.full, args.steps)))
        return
    found = {}
    for kind in ["ours"] if args.alone else ["ours", "plain"]:
        command = [sys.executable, *sys.argv, "--only", kind]
        found[kind] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if not args.alone:
        found |= {
            f"{key}_ratio": found["ours"][key] / found["plain"][key] for key in ("seconds", "cpu_seconds", "peak_mib")
        }
    print(json.dumps({"clips": args.clips, "threads": torch.get_num_threads(), **found}, indent=1))


if __name__ == "__main__":
    main()
