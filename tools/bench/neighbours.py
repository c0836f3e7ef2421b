"""Times the index and the search of an epoch of batches of neighbours, for growing numbers of videos.

python tools/bench/neighbours.py --videos 1000000
with vectors of 768 random numbers in clusters, the published 512 cells of which one is looked into, 192 neighbours, and
batches of 64. Prints JSON: processor seconds of index and search, MiB that the process grew by beside its vectors, and
the exponent of growth of the seconds from each number of videos to the next, four times as large. Needs
videorl[retrieval].
"""

import argparse
import json
import math
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from videorl.loading.retrieval import index_of, nearest

CELLS, PROBES, NEIGHBOURS, GROUP, WIDTH = 512, 1, 192, 64, 768
CENTRES = 2000
STEP = 4  # from one number of videos to the next


def vectors_of(videos: int) -> np.ndarray:
    """float32 [videos, WIDTH] around CENTRES random points."""
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((CENTRES, WIDTH), np.float32)
    found = draw.standard_normal((videos, WIDTH), np.float32)
    for first in range(0, videos, 1 << 16):
        part = found[first : first + (1 << 16)]
        part += 2 * centres[draw.integers(CENTRES, size=len(part))]
    return found


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(vectors: np.ndarray) -> dict:
    before, begun = peak(), time.process_time()
    index = index_of(vectors, CELLS, PROBES)
    indexed = time.process_time()
    queries = np.random.default_rng(1).permutation(len(vectors))[: max(1, len(vectors) // GROUP)]
    found = nearest(index, vectors, queries, NEIGHBOURS + 1, GROUP)
    searched = time.process_time()
    return {
        "videos": len(vectors),
        "batches": len(found),
        "index_seconds": round(indexed - begun, 2),
        "search_seconds": round(searched - indexed, 2),
        "vectors_mib": round(vectors.nbytes / 2**20),
        "grown_mib": round(peak() - before),
    }


def exponents(rows: list[dict]) -> list[dict]:
    """log(seconds ratio) / log(videos ratio) of rows that follow each other."""
    found = []
    for small, large in zip(rows, rows[1:]):
        times = math.log(large["videos"] / small["videos"])
        before, after = (max(row["index_seconds"] + row["search_seconds"], 0.01) for row in (small, large))
        found.append({"to": large["videos"], "exponent": round(math.log(after / before) / times, 2)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1_000_000, help="at most (%(default)s)")
    parser.add_argument("--sizes", type=int, default=3, help="numbers of videos, each four times the one before")
    args = parser.parse_args()
    counts = sorted(args.videos // STEP**k for k in range(args.sizes))
    vectors = vectors_of(counts[-1])
    rows = [measure(vectors[:count]) for count in counts]
    print(json.dumps({"width": WIDTH, "rows": rows, "growth": exponents(rows)}, indent=1))


if __name__ == "__main__":
    main()
