"""Features of the windows of many videos: `videorl extract --cfg X --checkpoint Y --out features/ videos/`.

    … --features cls,map --window 2 --stride 0.5          of the class token and all others, of 2 s every half second
    … --layout mmpt --split train --features video_embed --view short_side --l2 \\
      DATA.NUM_FRAMES 30 DATA.SAMPLING_RATE 1 DATA.TARGET_FPS 30    as Norton's data: a vector of S3D every second
    … --num_shards 4 --shard_id 0                         on the first of four processes or machines

Reads a folder of videos, at any depth, a list (any layout of video_list), or one video. Windows are as long as the
config's clips (DATA.NUM_FRAMES, SAMPLING_RATE, TARGET_FPS) where --window says nothing, of TEST.BATCH_SIZE at once. The
same command again goes on where it was, also after kill -9. Videos that cannot be read as a whole have no features and
are listed in OUT/quarantine.jsonl; to try one again, delete the .json of its shard. The process that ends last writes
OUT/index.json. Exit codes: 0 done, 1 done but for bad videos, 2 a mistake in the command or its files.
"""

import argparse
import functools
from pathlib import Path

from videorl import config, exits, log
from videorl.cli import command
from videorl.engine import build
from videorl.engine.given import ANY_MAY_BE_BAD, load_config
from videorl.features.extract import Wanted, extract
from videorl.features.loaded import load
from videorl.features.store import LAYOUTS, Store
from videorl.features.windows import VIEWS, windows_of
from videorl.prepare.chunks import read_sources
from videorl.prepare.record import Shard
from videorl.registry import UserError


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    with exits.exit_codes():
        if args.checkpoint is None:
            raise UserError(
                "--checkpoint FILE is needed: features of random weights say nothing; a run leaves best.pyth"
            )
        cfg, said = load_config([args.cfg], [*args.overrides, *ANY_MAY_BE_BAD], args.checkpoint)
        command.launch(cfg, said, functools.partial(run, cfg, args))


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser("extract", __doc__)
    add = parser.add_argument
    add("input", metavar="IN", type=Path, help="a folder of videos, a list, or a video")
    add("--cfg", required=True, metavar="FILE", help="YAML config of the model")
    add("--checkpoint", metavar="FILE", type=Path, help="its weights, ours or published; needed")
    add("--out", required=True, metavar="DIR", type=Path, help="folder to write; new, empty or of an earlier run")
    add("--root", default="", metavar="DIR", help="of a list: folder that the paths start from (default: the list's)")
    add("--separator", default="", metavar="TEXT", help="of a list `path label`, between the two (default: as found)")
    add("--features", default="features", metavar="NAMES", help="outputs of the model, or cls, map (%(default)s)")
    add("--window", type=float, metavar="SECONDS", help="length of a window, of DATA.NUM_FRAMES frames")
    add("--stride", type=float, metavar="SECONDS", help="from one window to the next (default: its length)")
    add("--view", choices=VIEWS, default="labelled", help="which frames and pixels a window shows (%(default)s)")
    add("--l2", action="store_true", help="scale each vector to length 1")
    add("--dtype", choices=("float16", "float32"), default="float16", help="of the numbers (%(default)s)")
    add("--layout", choices=LAYOUTS, default="npy", help="of the files (%(default)s)")
    add("--split", default="train", metavar="NAME", help="layout mmpt: the beginning of its files' names (%(default)s)")
    add("--shard_size", type=int, metavar="N", help="videos of a shard (default: 256, layout mmpt 4096 as published)")
    add("--num_shards", type=int, default=1, metavar="N", help="processes that share the work (%(default)s)")
    add("--shard_id", type=int, default=0, metavar="K", help="number of this one, from 0 (%(default)s)")
    command.add_overrides(parser)
    return parser.parse_intermixed_args(words)


def run(cfg, args: argparse.Namespace) -> None:
    shard = Shard(args.shard_id, args.num_shards)
    sources = read_sources([args.input], args.root, args.separator, args.out)
    wanted = Wanted(tuple(args.features.split(",")), args.dtype, args.l2, cfg.TEST.BATCH_SIZE)
    store = Store(args.out, args.layout, args.split if args.layout == "mmpt" else "")
    per_shard = args.shard_size or (4096 if args.layout == "mmpt" else 256)
    if per_shard < 1:
        raise UserError(f"--shard_size {per_shard}: expected 1 or more")
    encoder = load(cfg, args.checkpoint)
    windows = windows_of(config.spec(cfg), args.window, args.stride, args.view)
    make_loader = functools.partial(build.loader, cfg, title="extract")
    try:
        done = extract(
            sources, encoder, windows, wanted, store, shard, make_loader,
            per_shard=per_shard, max_pixels=cfg.DATA.MAX_PIXELS,
        )  # fmt: skip
    except OSError as error:  # of what it writes: no permission, disk full
        raise UserError(f"{error}; the same command goes on where it was") from None
    report(done, args.out)


def report(done: dict, out: Path) -> None:
    if not done:
        log.say(f"{out}: this part is done; other shards are not yet")
        return
    log.say(
        f"{out}: {done['windows']} windows of {done['videos']} videos in {done['shards']} shards, {done['bad']} bad"
    )
    if done["bad"]:
        log.say(f"{out / 'quarantine.jsonl'} lists what cannot be read")
        raise SystemExit(1)
