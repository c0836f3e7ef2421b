"""Says what happens in many clips: `videorl narrate my_day.mp4 --cfg X --checkpoint Y --out narrated/`.

    … my_day.mp4 --every 2 --window 4           a video, or a folder of them, from end to end: lines of JSON, SRT,
                                                WebVTT and a page to look for moments, of each video
    … --metadata ego4d_train.pkl --returns 10 --pickle EGO4D.ROOT ego4d/288px
                                                the moments of a list: several texts of each with their log-likelihoods;
                                                total.pkl goes into EGO4D.METADATA_AUX
    … --num_shards 4 --shard_id 0               the first of four processes or machines (or torchrun, or NUM_GPUS 8)

Texts are drawn as the config's evaluation `captions` says (EVALS.captions.TEMPERATURE 0.7 …), TEST.BATCH_SIZE clips at
once, and depend on SEED and the clip alone. The same command again goes on where it was, also after kill -9 and with
another number of shards. The process that ends last writes the files; clips that cannot be read are listed in
OUT/quarantine.jsonl. Exit codes: 0 done, 1 done but for bad clips, 2 a mistake in the command or its files.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from videorl import dist, exits, log
from videorl.cli import command
from videorl.engine.given import ANY_MAY_BE_BAD, load_config
from videorl.narrate import corpus, runs
from videorl.narrate.parts import share
from videorl.registry import UserError

EVERY, WINDOW = 2.0, 4.0  # seconds


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    with exits.exit_codes():
        if bool(args.metadata) == bool(args.input):
            raise UserError("expected a video, a folder, or --metadata LIST, and pairs KEY VALUE")
        check_flags(args)
        if args.returns is not None and args.returns < 1:
            raise UserError(f"--returns {args.returns}: expected 1 or more")
        cfg, said = load_config([args.cfg], [*args.overrides, *ANY_MAY_BE_BAD], args.checkpoint)
        dist.launch(functools.partial(run, cfg, args, said), gpus=dist.count_gpus(cfg.NUM_GPUS) if cfg.NUM_GPUS else 0)
        bad = args.out / corpus.QUARANTINE  # there when all shards are done
        if bad.is_file() and bad.stat().st_size:
            log.say(f"{bad} lists what cannot be read")
            raise SystemExit(1)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser("narrate", __doc__)
    add = parser.add_argument
    what = "a video or a folder; settings that come after those of the config"
    add("overrides", nargs="*", action=InputFirst, metavar="[IN] KEY VALUE", help=what)
    add("--cfg", required=True, metavar="FILE", help="YAML config of the narrator")
    add("--checkpoint", required=True, metavar="FILE", type=Path, help="its weights, ours or published")
    add("--out", required=True, metavar="DIR", type=Path, help="folder to write; new, empty or of an earlier run")
    add("--every", type=float, metavar="SECONDS", help=f"from one window to the next ({EVERY:g})")
    add("--window", type=float, metavar="SECONDS", help=f"length of a window ({WINDOW:g})")
    add("--metadata", metavar="LIST", help="list of narrations: its moments instead of videos; see EGO4D.ROOT")
    add("--format", choices=corpus.FORMATS, help=f"of a list's texts ({corpus.FORMATS[0]})")
    add("--pickle", action="store_true", help="of a list: also write total.pkl, as LaViLa does")
    add("--returns", type=int, metavar="N", help="texts of a clip (default: a list 10, videos 1)")
    add("--num_shards", type=int, default=1, metavar="N", help="processes that share the work (%(default)s)")
    add("--shard_id", type=int, default=0, metavar="K", help="number of this one, from 0 (%(default)s)")
    parser.set_defaults(input=None)
    return parser.parse_intermixed_args(words)


def check_flags(args: argparse.Namespace) -> None:
    """Raises `UserError` for a flag that would have no effect."""
    what, flags = ("a list is", ("every", "window")) if args.metadata else ("videos are", ("format", "pickle"))
    if given := [f"--{flag}" for flag in flags if getattr(args, flag) not in (None, False)]:
        raise UserError(f"{' and '.join(given)}: of no effect where {what} narrated; leave it out")


class InputFirst(argparse.Action):
    """KEY VALUE come in pairs: where one word is left over, the first is the input."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) % 2:
            namespace.input, *values = Path(values[0]), *values[1:]
        namespace.overrides = values


def run(cfg, args: argparse.Namespace, said: Sequence[str]) -> None:
    command.tell(said, main=dist.is_main())
    if done := share(functools.partial(made, cfg, args), args.out, args.shard_id, args.num_shards):
        log.say(f"{args.out}: {', '.join(f'{count} {what}' for what, count in done.items())}")


def made(cfg, args: argparse.Namespace) -> runs.Run:
    if args.metadata:
        drawn = {"returns": 10, "form": corpus.FORMATS[0]} | _typed(returns=args.returns, form=args.format)
        return runs.of_list(cfg, args.checkpoint, args.out, args.metadata, **drawn, tuples=args.pickle)
    drawn = {"returns": 1, "every": EVERY, "window": WINDOW}
    drawn |= _typed(returns=args.returns, every=args.every, window=args.window)
    return runs.of_videos(cfg, args.checkpoint, args.out, args.input, **drawn)


def _typed(**given) -> dict:
    """Those that were given."""
    return {name: value for name, value in given.items() if value is not None}
