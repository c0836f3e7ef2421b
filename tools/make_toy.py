"""Writes toy data sets: short videos of moving shapes, in PySlowFast's layout.

python tools/make_toy.py --out datasets/toy                 8 motions
python tools/make_toy.py --out datasets/toy_multi --multi   three sets with label spaces of their own, in subfolders
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
    parser.add_argument("--multi", action="store_true", help=f"one set in each of {', '.join(toy.LABEL_SPACES)}")
    parser.add_argument("--seed", type=int, default=0)
    for split, count in {"train": 640, "val": 96, "test": 96}.items():
        parser.add_argument(f"--{split}", type=int, default=count, metavar="N", help=f"clips a set (default {count})")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    args = parser.parse_args()
    counts = {split: getattr(args, split) for split in toy.SPLITS}
    try:
        for kind in toy.LABEL_SPACES if args.multi else ["motion"]:
            out = args.out / kind if args.multi else args.out
            print(toy.make_set(out, seed=args.seed, kind=kind, counts=counts, workers=args.workers, progress=_bar))
    except UserError as error:
        print(f"make_toy: {error}", file=sys.stderr)
        sys.exit(2)


def _bar(steps, total):
    return tqdm(steps, total=total, unit="clip")


if __name__ == "__main__":
    main()
