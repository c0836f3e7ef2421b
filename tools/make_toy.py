"""Writes the toy data set: short videos of moving shapes in 8 motion classes, in PySlowFast's layout.

python tools/make_toy.py --out datasets/toy
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from videorl.data import toy
from videorl.registry import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new, empty or an unfinished toy set")
    parser.add_argument("--seed", type=int, default=0)
    for split, count in {"train": 640, "val": 96, "test": 96}.items():
        parser.add_argument(f"--{split}", type=int, default=count, metavar="N", help=f"clips (default {count})")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    args = parser.parse_args()
    counts = {split: getattr(args, split) for split in toy.SPLITS}
    try:
        print(toy.make_set(args.out, seed=args.seed, counts=counts, workers=args.workers, progress=_bar))
    except UserError as error:
        print(f"make_toy: {error}", file=sys.stderr)
        sys.exit(2)


def _bar(steps, total):
    return tqdm(steps, total=total, unit="clip")


if __name__ == "__main__":
    main()
