"""Finds clips in a folder of videos by text: `videorl search --cfg X --checkpoint Y "cut the tomato" videos/`.

    videorl search --cfg configs/HowTo100M/S3D_MILNCE.yaml --checkpoint s3d_milnce.pyth \
      "cut the tomato" path/to/videos TEXT.DICT data/dict.npy

prints the best windows with their times and writes search.html, where they play. They are ranked by dot products, as
MIL-NCE is trained; for dual encoders, which learn by cosines, add DUAL.NORM_EMBED True. Every video is cut into windows
as long as the config's clips (DATA.NUM_FRAMES, SAMPLING_RATE, TARGET_FPS), which are embedded once: a later query takes
seconds. Embeddings are kept for each folder, weights and clip shape; new and changed files alone are embedded again.
Files that cannot be read are listed. Exit codes: 0 done, 2 a mistake in the command or its files.
"""

import argparse
import functools
from pathlib import Path

from videorl import config, exits, log, search
from videorl.cli import command
from videorl.data.text import tokenizer
from videorl.engine import build
from videorl.engine.given import ANY_MAY_BE_BAD, load_config
from videorl.features.loaded import load
from videorl.registry import MODELS, UserError, printable
from videorl.search import cache, embed, page
from videorl.video import folder


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    with exits.exit_codes():
        cfg, said = load_config([args.cfg], [*args.overrides, *ANY_MAY_BE_BAD], args.checkpoint)
        command.launch(cfg, said, functools.partial(run, cfg, args))


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser("search", __doc__)
    parser.add_argument("query", metavar="QUERY", help="what the clips should show")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="videos, at any depth")
    parser.add_argument(
        "--cfg", required=True, metavar="FILE", help="YAML config of a model that embeds text and video"
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", type=Path, help="its weights, ours or published")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="clips to show (%(default)s)")
    parser.add_argument("--per-video", type=int, default=1, metavar="N", help="of one video at most (%(default)s)")
    parser.add_argument(
        "--stride", type=float, metavar="SECONDS", help="from one window to the next (default: its length)"
    )
    parser.add_argument("--out", type=Path, default=Path("search.html"), metavar="FILE", help="page (%(default)s)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("~/.cache/videorl/search"),
        metavar="DIR",
        help="where embeddings are kept (%(default)s)",
    )
    command.add_overrides(parser)
    return parser.parse_intermixed_args(words)


def run(cfg, args: argparse.Namespace) -> None:
    if min(args.top, args.per_video) < 1 or (args.stride is not None and args.stride <= 0):
        raise UserError("--top and --per-video: expected 1 or more; --stride: expected more than 0 seconds")
    files, unreadable = folder.find(args.folder)
    words, notes = search.words_of(args.query, tokenizer(config.spec(cfg).text))
    embedder = load(cfg, args.checkpoint, embed.Embedder)
    text = embedder.text(words)

    stride = args.stride or embedder.seconds
    entry, settings = config.component(cfg, MODELS, embedder.name)
    # How texts are read changes no embedding of a video.
    settings = {name: value for name, value in settings.items() if not entry.keys[name].bound.startswith("TEXT.")}
    kept = cache.Cache(args.cache.expanduser(), args.folder, embedder.fingerprint(stride, settings))
    make_loader = functools.partial(build.loader, cfg, title="search")
    unreadable |= embed.fill(
        kept,
        args.folder,
        files,
        embedder,
        make_loader,
        stride=stride,
        batch=cfg.TEST.BATCH_SIZE,
        max_pixels=cfg.DATA.MAX_PIXELS,
    )
    unreadable |= {file.path: video.bad for file, video in kept.videos.items() if video.bad}
    if not kept.videos:
        path, reason = next(iter(unreadable.items()))
        raise UserError(f"{args.folder}: none of {len(unreadable)} videos can be read; first: {path}: {reason}")
    hits = search.ranked(text, kept.videos, seconds=embedder.seconds, top=args.top, per_video=args.per_video)
    windows = sum(len(video.starts) for video in kept.videos.values())
    notes = [f"best of {windows} windows of {len(kept.videos)} videos", *notes]
    log.say(*table(hits), *notes, *listed(unreadable))
    tiles = page.make_tiles(args.folder, hits, make_loader, max_pixels=cfg.DATA.MAX_PIXELS)
    page.write(args.out, args.query, tiles, notes=notes, unreadable=unreadable)
    log.say(f"{args.out}: written")


def table(hits: list[search.Hit]) -> list[str]:
    width = max([len(printable(hit.path)) for hit in hits] + [len("video")])
    rows = [f"{k:4}  {hit.score:9.3f}  {printable(hit.path):{width}}  {hit.time}" for k, hit in enumerate(hits, 1)]
    return [f"{'rank':>4}  {'score':>9}  {'video':{width}}  time", *rows]


def listed(unreadable: dict[str, str]) -> list[str]:
    if not unreadable:
        return []
    rows = [f"  {path}: {reason}" for path, reason in sorted(unreadable.items())]
    return [f"{len(unreadable)} file(s) that cannot be read, wholly or in part:", *rows]
