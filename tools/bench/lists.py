"""Reads a long list as a data set does, at its first start and at the second.

python tools/bench/lists.py --lines 10000000
Prints JSON for csvs of PySlowFast (`csv`) and lists of VideoMAE to pre-train (`video_list`): microseconds of processor
time and bytes of memory a line, at the peak, of one process (`first`: it parses the list; `second`: it maps what the
first has kept), and `workers`, bytes that are sent to a worker that is not forked. Paths have 43 letters.
"""

import argparse
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from videorl.data.dataset import Records
from videorl.data.labelled import Csv
from videorl.data.listed import Lists, Parts
from videorl.data.listing import read
from videorl.data.paths import Paths

CLASSES, AT_ONCE = 400, 100_000


def write(file: Path, lines: int) -> None:
    """A list of videos that are not there."""
    rng = np.random.default_rng(0)
    with open(file, "w", encoding="utf-8") as stream:
        for first in range(0, lines, AT_ONCE):
            count = min(AT_ONCE, lines - first)
            labels, names = rng.integers(0, CLASSES, count).tolist(), rng.integers(0, 2**60, count).tolist()
            for k, (label, name) in enumerate(zip(labels, names), first):
                end = "0 -1" if file.stem == "video_list" else label
                stream.write(f"class{label:03d}/{name:015x}_{k:07d}_000010.mp4 {end}\n")


def measured(file: Path) -> dict[str, float]:
    """Of this process, which reads the list."""
    paths = Paths(str(file.parent), False)
    kind, reader = (Parts, Lists(paths, None)) if file.stem == "video_list" else (Records, _csv(paths))
    peak, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    records = kind.of(read(file, reader), str(file.parent))
    seconds = time.process_time() - begun
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
    found = {"us_a_line": 1e6 * seconds / len(records), "bytes_a_line": grown / len(records)}
    return {name: round(value, 3) for name, value in found.items()} | {"workers": len(pickle.dumps(records))}


def _csv(paths: Paths) -> Csv:
    return Csv(paths, " ", CLASSES, lists=False, several=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        print(json.dumps(measured(args.read)))
        return
    found: dict[str, object] = {"lines": args.lines}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("csv", "video_list"):
            file = Path(folder, f"{name}.csv")
            write(file, args.lines)
            for start in ("first", "second"):
                words = [sys.executable, __file__, "--read", str(file)]
                done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
                found[f"{name}_{start}"] = json.loads(done.stdout)
            file.unlink()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
