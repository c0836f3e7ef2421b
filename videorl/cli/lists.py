"""Writes the lists that training reads, `path label`, from published annotations and a folder of videos.

    videorl lists kinetics --annotations train.csv val.csv --videos /data/k400/videos --out /data/k400
    videorl lists ssv2 --annotations /data/ssv2/labels --videos /data/ssv2/videos --out /data/ssv2
    videorl lists k710 --set /data/k400 k400/videos --set /data/k600 k600/videos --out /data/k710
    videorl lists internvid --annotations clips.csv --videos /data/internvid --out /data/internvid

Writes train.csv, val.csv, test.csv (a copy of val.csv unless there are test annotations), classes.json, and report.json
with the videos that are missing, left out, or in no list. Paths start from --videos (DATA.PATH_PREFIX); those of k710
from where each set's second word does. Nothing is overwritten. Exit codes: 0 done, 2 a mistake in the command.
"""

import argparse
import os
from pathlib import Path

from videorl import exits, log
from videorl.cli import command
from videorl.loading.pool import Workers
from videorl.prepare import lists
from videorl.registry import UserError


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    with exits.exit_codes(), command.without_warnings():  # lost workers stand in the report
        try:
            made = run(args)
            lists.write(made, args.out)
        except OSError as error:  # of what it writes: a folder where a file is expected, no permission, disk full
            raise UserError(str(error)) from None
    log.say(*made.text())


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser("lists", __doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinetics = kinds.add_parser("kinetics", help="Kinetics-400, 600, 700: label,youtube_id,time_start,time_end,split")
    ssv2 = kinds.add_parser("ssv2", help="Something-Something v2: something-something-v2-*.json")
    k710 = kinds.add_parser("k710", help="the lists of several Kinetics in one")
    internvid = kinds.add_parser("internvid", help="YoutubeID,Start_timestamp,End_timestamp: lines `path 0 first end`")
    for kind in (kinetics, internvid):
        kind.add_argument("--annotations", nargs="+", type=Path, required=True, metavar="CSV")
    ssv2.add_argument("--annotations", type=Path, required=True, metavar="DIR", help="folder of the json files")
    for kind in (kinetics, ssv2, internvid):
        kind.add_argument("--videos", type=Path, required=True, metavar="DIR", help="folder of the videos, any depth")
    k710.add_argument(
        "--set",
        nargs=2,
        action="append",
        required=True,
        metavar=("LISTS", "PREFIX"),
        help="folder of lists; path before its paths",
    )
    k710.add_argument("--merge", type=Path, metavar="JSON", help="names of one class: [[name, name], …]")
    for kind in (kinetics, k710):
        kind.add_argument("--classes", type=Path, metavar="FILE", help="class numbers: json, or a name in each line")
    for kind in (kinetics, ssv2, k710, internvid):
        kind.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the lists")
    internvid.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> lists.Lists:
    if args.kind == "kinetics":
        return lists.kinetics(args.annotations, args.videos, args.classes)
    if args.kind == "ssv2":
        return lists.ssv2(args.annotations, args.videos)
    if args.kind == "k710":
        return lists.k710([(Path(folder), prefix) for folder, prefix in args.set], args.merge, args.classes)
    if args.workers < 1:
        raise UserError("--workers: expected more than 0")
    return lists.internvid(args.annotations, args.videos, Workers(args.workers), command.bar("reading times", "video"))
