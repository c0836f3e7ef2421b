"""Reads clips of stored features from the shards of many videos, and again with shards that are opened for each video.

python tools/bench/shards.py --videos 100000 --samples 400
The set is sparse: its files are as large as real ones and take next to no place on the disk; what is read has been
read once before. Prints JSON, by processor time of one core: clips a second (`items`: as the loader gets them, 16 of
a video; `rows`: only finding and reading the rows of a video), and PSS in MiB of workers after their first video and
their last. `reopened` is what the published code does: it opens the six files of a shard anew for each video.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from videorl.data.features import Features
from videorl.data.shards import meta_bytes
from videorl.spec import Clip, Spec, Text

SHARD, SECONDS, CAPTIONS, TOKENS, WIDTH = 4096, 200, 60, 32, 512  # of published features; a video has 390 s on average
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make(folder: Path, videos: int) -> dict:
    """A set whose features are zeros that no disk holds; keys of its data set."""
    meta = {
        k: [f"v{i:07d}" for i in range(k * SHARD, min((k + 1) * SHARD, videos))] for k in range(-(-videos // SHARD))
    }
    spoken = (np.arange(CAPTIONS) * (SECONDS / CAPTIONS))[:, None] + [0.0, 3.0]
    for k, names in meta.items():
        text = f"{folder}/text.train_{k}"
        for prefix, rows, shape, dtype in (
            (f"{folder}/train_{k}", SECONDS, (WIDTH,), np.float16),
            (f"{text}.caps_ids", CAPTIONS, (TOKENS,), np.int32),
            (f"{text}.startends", CAPTIONS, (2,), np.float32),
        ):
            np.save(f"{prefix}_starts.npy", np.arange(len(names) + 1) * rows)
            data = np.lib.format.open_memmap(f"{prefix}_data.npy", "w+", dtype, (len(names) * rows, *shape))
            if prefix.endswith("startends"):
                data[:] = np.tile(spoken, (len(names), 1))
    (folder / "train_meta.pkl").write_bytes(meta_bytes(meta))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return {"root": str(folder), "captions": f"{folder}/text."}


def clips_a_second(dataset: Features, samples: int, what: str, reopen: bool) -> float:
    numbers = np.random.default_rng(0).integers(len(dataset), size=samples)
    begun = time.process_time()
    for i in numbers.tolist():
        if reopen:
            dataset.shards._open.clear()
        if what == "items":
            dataset[i]
        else:
            rows, tokens, times = dataset.shards.of(i)
            [np.array(part) for part in (rows[: dataset.seconds], tokens, times)]
    return samples * dataset.clips / (time.process_time() - begun)


def memory(dataset: Features, workers: int, samples: int) -> dict[str, float]:
    """PSS in MiB of so many forked workers, on average, after their first sample and after the last."""
    found = [_worker(dataset, samples) for _ in range(workers)]
    rows = [json.loads(os.read(pipe, 1 << 12)) for pipe, _ in found]
    for _, process in found:
        os.waitpid(process, 0)
    return {key: round(sum(row[key] for row in rows) / workers, 1) for key in rows[0]}


def _worker(dataset: Features, samples: int) -> tuple[int, int]:
    out, into = os.pipe()
    process = os.fork()
    if process:
        os.close(into)
        return out, process
    clips_a_second(dataset, 1, "items", reopen=False)
    first = pss()
    clips_a_second(dataset, samples, "items", reopen=False)
    os.write(into, json.dumps({"first": first, "last": pss()}).encode())
    os._exit(0)


def pss() -> float:
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=400, help="videos that are read, of 16 clips each (%(default)s)")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    found = {"videos": args.videos}
    with tempfile.TemporaryDirectory() as folder:
        keys = make(Path(folder), args.videos)
        spec = Spec(Clip(1, 1, 1, 1), text=Text(f"{folder}/vocab.txt", "", 31))
        begun = time.process_time()
        dataset = Features(spec, "train", **keys)
        found["seconds_to_open"] = round(time.process_time() - begun, 2)
        clips_a_second(dataset, args.samples, "items", reopen=False)
        for what in ("items", "rows"):
            ours, reopened = (clips_a_second(dataset, args.samples, what, reopen) for reopen in (False, True))
            rates = {"ours": round(ours), "reopened": round(reopened), "ratio": round(ours / reopened, 2)}
            found |= {f"{what}_clips_a_second": rates}
        found["pss_mib_a_worker"] = memory(dataset, args.workers, args.samples)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
