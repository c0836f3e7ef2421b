"""Cuts videos into short, small chunks, which load fast: `videorl prepare IN --out OUT`.

    videorl prepare videos/ --out chunks/                              a folder, at any depth
    videorl prepare train.csv val.csv --root videos/ --out chunks/     lists of any layout of video_list
    videorl prepare ego4d/ --out 288px/ --seconds 300 --short_side 288 --names seconds   as LaViLa reads
    … --num_shards 4 --shard_id 0                                                     on the first of four machines

Every chunk is encoded as H.264 without sound, read again and listed in OUT/manifest.jsonl with its SHA-256; lists get
the labels of their chunks (a folder: videos.csv, label 0). Of a line `path label sframe eframe` only frames sframe to
eframe - 1 are cut. The same command again goes on where it was; videos that cannot be read are listed in OUT/bad.jsonl
and tried again then. The last shard to end writes the merged files.
Exit codes: 0 done, 1 done but for bad videos, 2 a mistake in the command.
"""

import argparse
import os
from fractions import Fraction
from pathlib import Path

from videorl import exits, log
from videorl.cli import command
from videorl.loading.pool import Workers
from videorl.prepare import chunks
from videorl.prepare.cut import PRESETS, Encoding
from videorl.prepare.record import Shard
from videorl.registry import UserError

LISTED = 10


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    with exits.exit_codes(), command.without_warnings():  # lost workers stand among the bad videos
        try:
            outcome = run(args)
        except OSError as error:  # of what it writes: a folder where a file is expected, no permission, disk full
            raise UserError(str(error)) from None
    log.say(*report(outcome, args.out))
    raise SystemExit(1 if outcome.bad or outcome.unreadable else 0)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser("prepare", __doc__)
    usual = Encoding()
    parser.add_argument("inputs", metavar="IN", nargs="+", type=Path, help="a folder of videos, or csv files")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; new, empty or of an earlier run")
    parser.add_argument("--root", default="", help="csv only: folder that the paths start from (default: the csv's)")
    parser.add_argument(
        "--separator", default="", metavar="TEXT", help="of lists `path label`, between the two (default: as found)"
    )
    parser.add_argument(
        "--seconds", type=number, default=usual.seconds, help="length of a chunk; 0: whole videos (default 3)"
    )
    parser.add_argument(
        "--short_side", type=int, default=usual.short_side, help="pixels; smaller videos keep theirs (default 256)"
    )
    parser.add_argument("--fps", type=number, help="frames a second, 30 or 30000/1001 (default: those of the source)")
    parser.add_argument("--gop", type=int, default=usual.gop, help="frames between key frames (default 30)")
    parser.add_argument("--crf", type=int, default=usual.crf, help="quality, 0 best to 51 (default 23)")
    parser.add_argument("--preset", choices=PRESETS, default=usual.preset, help="effort of x264 (default veryfast)")
    parser.add_argument(
        "--names",
        choices=("numbers", "seconds"),
        default="numbers",
        help="of chunks: a/b_00000.mp4, or by their first second a/b.mp4/0.mp4, as Ego4D is read (default numbers)",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds without a new frame (default 120)")
    parser.add_argument("--num_shards", type=int, default=1, help="machines that share the work (default 1)")
    parser.add_argument("--shard_id", type=int, default=0, help="number of this one, from 0 (default 0)")
    return parser.parse_args(words)


def number(text: str) -> Fraction:
    """`3`, `2.5` or `30000/1001`."""
    try:
        return Fraction(text)
    except ZeroDivisionError:
        raise argparse.ArgumentTypeError(f"{text}: division by zero") from None


def run(args: argparse.Namespace) -> chunks.Outcome:
    if args.workers < 1 or args.timeout <= 0:
        raise UserError("--workers and --timeout: expected more than 0")
    how = (args.seconds, args.short_side, args.fps, args.gop, args.crf, args.preset, args.names == "seconds")
    encoding = Encoding(*how)
    shard = Shard(args.shard_id, args.num_shards)
    sources = chunks.read_sources(args.inputs, args.root, args.separator, args.out)
    workers = Workers(args.workers, timeout=args.timeout)
    return chunks.prepare(sources, args.out, encoding, shard, workers, command.bar("cutting", "video"))


def report(outcome: chunks.Outcome, out: Path):
    """Lines about what was done, the first bad videos, and the files written."""
    cut = outcome.sources - outcome.before - outcome.bad
    yield f"{out}: {cut} videos cut, {outcome.before} were finished before, {outcome.bad} bad"
    bad = list(outcome.unreadable.values())
    for row in bad[:LISTED]:
        yield f"  {row['source']}: {row['stage']}: {row['reason']}"
    if len(bad) > LISTED:
        yield f"  … and {len(bad) - LISTED} more in bad.jsonl"
    if outcome.left:
        yield f"{outcome.left} videos are left to other shards; the lists are written when all have ended"
    else:
        yield f"{outcome.chunks} chunks in all"
    yield from outcome.written
