"""Parameters and multiply-adds of a model, by module: `videorl flops --cfg X [KEY VALUE …]`.

    videorl flops --cfg configs/SSv2/VIDEOMAE_VITB_16x2_PT.yaml --depth 2 VIDEOMAE.DECODER_DEPTH 8

Attention counts, whichever kernel computes it. Nothing is computed and no weights are made: giants take a second too.
Also printed: the figure by the rule of published tables, to compare with these. Exit codes: 0 done, 2 a mistake in the
command.
"""

import argparse
import dataclasses
import json
import textwrap

from videorl import config, exits, log
from videorl.cli import command
from videorl.engine import info
from videorl.registry import UserError


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    with exits.exit_codes():
        if args.depth < 0:
            raise UserError(f"--depth {args.depth}: expected 0 (the model alone) or more")
        found = info.model_info(config.load([args.cfg], args.overrides), args.depth)
        log.say(*(as_json(found) if args.json else as_text(found)).split("\n"))


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser("flops", __doc__)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="YAML config of the model")
    parser.add_argument("--depth", type=int, default=1, metavar="N", help="levels of modules to list (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    command.add_overrides(parser)
    return parser.parse_intermixed_args(words)


def as_text(found: info.Info) -> str:
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in found.inputs.items())
    notes = [textwrap.fill(note, 110) for note in (info.COUNTED, info.published_text(found))]
    return "\n\n".join([f"{found.model}, one clip: {shapes}", info.table(found), *notes])


def as_json(found: info.Info) -> str:
    return json.dumps({**dataclasses.asdict(found), "published": found.published, "counted": info.COUNTED}, indent=1)
