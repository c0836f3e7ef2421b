"""Trains and tests: `videorl train --cfg configs/toy/mvit.yaml KEY VALUE …`.

Flags and KEY VALUE pairs may stand in any order. Exit codes: 0 done, 2 a mistake in command, config or data (one line
on stderr says which), 70 another process of the run died or hangs (one line says which), 75 stopped by a signal with
everything saved, 130 Ctrl-C. After 70, 75 and 130 the same command resumes.
"""

import argparse
import functools

from videorl import config, exits, log
from videorl.cli import command
from videorl.engine.given import load_config
from videorl.registry import UserError


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    with exits.exit_codes(args.debug):
        if args.help_config is not None:
            log.say(*config.describe(args.help_config, args.cfg or []).split("\n"))
            return
        if not args.cfg and not args.overrides:
            raise UserError("nothing to run: name a config, e.g. --cfg configs/toy/mvit.yaml")
        for file in args.cfg or [None]:
            run(file, args)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser("train", __doc__)
    parser.add_argument(
        "--cfg",
        "--cfg_files",
        action="append",
        metavar="FILE",
        help="YAML config; given twice: one run after the other",
    )
    parser.add_argument("--opts", action="store_true", help="may stand before KEY VALUE pairs, as in PySlowFast")
    parser.add_argument("--init_method", default="", help="tcp://HOST:PORT of shard 0, or file://PATH on a shared disk")
    parser.add_argument("--num_shards", type=int, help="machines (NUM_SHARDS)")
    parser.add_argument("--shard_id", type=int, help="number of this machine (SHARD_ID)")
    parser.add_argument(
        "--help-config",
        nargs="?",
        const="",
        metavar="NODE",
        help="show every key of a node: type, default, unit and meaning",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.add_overrides(parser)
    return parser.parse_intermixed_args(words)


def run(file: str | None, args: argparse.Namespace) -> None:
    """Trains, then tests, as TRAIN.ENABLE and TEST.ENABLE say."""
    top = {"NUM_SHARDS": args.num_shards, "SHARD_ID": args.shard_id}
    cfg, said = load_config([file] if file else [], args.overrides, **top)
    from videorl import dist  # torch, whose seconds nobody waits for who has mistyped a key

    dist.launch(
        functools.partial(job, cfg, said),
        init_method=args.init_method,
        gpus=dist.count_gpus(cfg.NUM_GPUS),
        shards=cfg.NUM_SHARDS,
        shard_id=cfg.SHARD_ID,
        backend=cfg.DIST_BACKEND,
        timeout=cfg.DIST.TIMEOUT,
        facts=config.flat(cfg),
    )


def job(cfg, said: list[str]) -> None:
    """What every process does. `said`: lines for the log."""
    from videorl.engine.job import run_phases

    run_phases(cfg, said)
