"""Writes a published checkpoint as one of ours: `videorl convert IN OUT --cfg X KEY VALUE …`.

The weights in IN are renamed and resized for the model of the config and written to OUT in PySlowFast's layout under
our names, with the json beside it that proves them whole. Prints what became of every tensor; `--dry-run` only that.
TRAIN.CHECKPOINT_FILE_PATH and TEST.CHECKPOINT_FILE_PATH do the same while loading: nothing has to be converted first.
Exit codes: 0 done, 2 a mistake in the command, or a file that gives less than 95 % of the model without its head
(MODEL.ALLOW_PARTIAL True writes what there is).
"""

import argparse
from pathlib import Path

from videorl import checkpoint, config, convert, exits, log
from videorl.cli import command
from videorl.engine import build, weights
from videorl.engine.given import load_config
from videorl.registry import UserError


def main(words: list[str] | None = None) -> None:
    with exits.exit_codes():
        run(parse(words))


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser("convert", __doc__)
    parser.add_argument("source", metavar="IN", type=Path, help="checkpoint, published or ours")
    parser.add_argument("out", metavar="OUT", type=Path, help="file to write, NAME.pyth")
    parser.add_argument("--cfg", required=True, metavar="FILE", help="YAML config of the model")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    command.add_overrides(parser)
    return parser.parse_intermixed_args(words)


def run(args: argparse.Namespace) -> None:
    if args.out.suffix != ".pyth":
        raise UserError(f"{args.out}: expected a name that ends in .pyth, such as {args.out.with_suffix('.pyth').name}")
    if args.out.exists() and not args.dry_run:
        raise UserError(f"{args.out} exists; name another file or remove it")
    cfg, said = load_config([args.cfg], args.overrides, args.source)
    model = build.model(cfg)
    state = checkpoint.read(args.source)
    taken, audit = weights.fitted(cfg, model, state, args.source)
    log.say(*said, *audit.text().split("\n"))
    convert.accept(audit, testing=False, partial=cfg.MODEL.ALLOW_PARTIAL)
    if args.dry_run:
        return
    content = {
        "epoch": -1,  # none is done
        "model_state": taken,
        "ema_state": None,
        "classes": convert.class_names(state, model),
        "cfg": config.dump(cfg),
    }
    try:
        checkpoint.save(args.out, content, {"converted_from": str(args.source), "layout": audit.layout})
    except OSError as error:
        raise UserError(f"{args.out} cannot be written: {error.strerror}") from None
    log.say(f"{args.out}: {len(taken)} tensors written")
