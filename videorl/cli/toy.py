"""Writes toy data sets: short videos of moving shapes, in the layouts of published data sets.

videorl toy --out datasets/toy                       8 motions, as PySlowFast reads them
videorl toy --out datasets/toy_multi --multi         three such sets with label spaces of their own
videorl toy --out datasets/toy_small --small         6 motions in small frames, with few labels in few/
videorl toy --out datasets/toy_narrated --narrated   HowTo100M, YouCook2, MSR-VTT and HMDB-51 in small
videorl toy --out datasets/toy_ego --egocentric      Ego4D, EgoMCQ and EPIC-Kitchens in small
"""

from pathlib import Path

from videorl import dist, log
from videorl.cli import command
from videorl.toy import egocentric, narrated, scenes

MULTI = [kind for kind in scenes.LABEL_SPACES if kind != scenes.SMALL]


def main(words: list[str] | None = None) -> None:
    parser = command.parser("toy", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new, empty or an unfinished toy set")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--multi", action="store_true", help=f"one set in each of {', '.join(MULTI)}")
    kind.add_argument("--small", action="store_true", help="small frames; a quarter of the labels in the folder few")
    kind.add_argument("--narrated", action="store_true", help="narrated videos, and what to evaluate on")
    kind.add_argument("--egocentric", action="store_true", help="first-person videos in chunks, with narrations")
    parser.add_argument("--seed", type=int, default=0)
    for split, count in {"train": 640, "val": 96, "test": 96}.items():
        text = f"clips a set (default {count}; no effect on --narrated, --egocentric)"
        parser.add_argument(f"--{split}", type=int, default=count, metavar="N", help=text)
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    args = parser.parse_args(words)
    how = {"seed": args.seed, "workers": args.workers, "progress": command.bar("toy", "clip")}
    counts = {split: getattr(args, split) for split in scenes.SPLITS}
    with dist.exit_codes():
        if args.narrated:
            log.say(narrated.make_set(args.out, **how))
        elif args.egocentric:
            log.say(egocentric.make_set(args.out, **how))
        elif args.multi:
            for kind in MULTI:
                log.say(scenes.make_set(args.out / kind, kind=kind, counts=counts, **how))
        elif args.small:
            log.say(scenes.make_set(args.out, kind=scenes.SMALL, counts=counts, **how))
        else:
            log.say(scenes.make_set(args.out, counts=counts, **how))
