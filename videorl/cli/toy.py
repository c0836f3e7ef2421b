"""Writes toy data sets: short videos of moving shapes, in the layouts of published data sets.

videorl toy --out datasets/toy                       8 motions, as PySlowFast reads them
videorl toy --out datasets/toy_multi --multi         three such sets with label spaces of their own
videorl toy --out datasets/toy_small --small         6 motions in small frames, with few labels in few/
videorl toy --out datasets/toy_narrated --narrated   HowTo100M, YouCook2, MSR-VTT and HMDB-51 in small
videorl toy --out datasets/toy_long --long           HowTo100M's long videos, HTM-Align and YouCook2 in small
videorl toy --out datasets/toy_ego --egocentric      Ego4D, EgoMCQ and EPIC-Kitchens in small
"""

import argparse
from pathlib import Path

from videorl import exits, log
from videorl.cli import command
from videorl.registry import UserError
from videorl.toy import egocentric, long, narrated, scenes

MULTI = [kind for kind in scenes.LABEL_SPACES if kind != scenes.SMALL]
COUNTS = {"train": 640, "val": 96, "test": 96}


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    how = {"seed": args.seed, "workers": args.workers, "progress": command.bar("toy", "clip")}
    counts = {split: getattr(args, split) for split in COUNTS}
    with exits.exit_codes():
        if args.narrated or args.long or args.egocentric:
            kind = narrated if args.narrated else long if args.long else egocentric
            log.say(kind.make_set(args.out, **how, **_videos(counts)))
            return
        how["counts"] = {split: COUNTS[split] if count is None else count for split, count in counts.items()}
        for kind in MULTI if args.multi else []:
            log.say(scenes.make_set(args.out / kind, kind=kind, **how))
        if not args.multi:
            log.say(scenes.make_set(args.out, **how, **({"kind": scenes.SMALL} if args.small else {})))


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser("toy", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new, empty or an unfinished toy set")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--multi", action="store_true", help=f"one set in each of {', '.join(MULTI)}")
    kind.add_argument("--small", action="store_true", help="small frames; a quarter of the labels in the folder few")
    kind.add_argument("--narrated", action="store_true", help="narrated videos, and what to evaluate on")
    kind.add_argument("--long", action="store_true", help="long narrated videos, and what to evaluate on")
    kind.add_argument("--egocentric", action="store_true", help="first-person videos in chunks, with narrations")
    parser.add_argument("--seed", type=int, default=0)
    for split, count in COUNTS.items():
        other = "long videos to train on" if split == "train" else "not to be chosen"
        text = f"clips a set (default {count}); of --narrated, --long, --egocentric: {other}"
        parser.add_argument(f"--{split}", type=int, metavar="N", help=text)
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    return parser.parse_args(words)


def _videos(counts: dict[str, int | None]) -> dict[str, int]:
    """What of the numbers typed is for sets of long videos. Raises `UserError`."""
    if counts["val"] is not None or counts["test"] is not None:
        raise UserError("--val and --test: test sets of --narrated, --long and --egocentric have one size")
    if counts["train"] is None:
        return {}
    if counts["train"] < 1:
        raise UserError(f"--train {counts['train']}: expected 1 or more")
    return {"videos": counts["train"]}
