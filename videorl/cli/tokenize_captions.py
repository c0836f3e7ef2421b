"""Captions as numbers of tokens, beside stored features: `videorl tokenize-captions CAPTIONS --features DIR …`.

    videorl tokenize-captions sentencified_htm_1200k.json --features features --split train \\
      --vocabulary hub:bert-base-uncased --out text/sentencified_htm_1200k.bert-base-uncased.

CAPTIONS is a json, {video: {start: [...], end: [...], text: [...]}}, a pickle of such texts as MMPT has it, a folder of
HowTo100M's csv files, or what `videorl index-captions` makes of one. Writes OUTtrain_0.caps_ids_data.npy and so on for
each shard that DIR/train_meta.pkl names, which FEATURES.CAPTIONS OUT then reads. Videos without captions are counted.
"""

import argparse
from pathlib import Path

from videorl import exits, log
from videorl.cli import command
from videorl.data.features import Texts
from videorl.prepare.tokens import DEDUPLICATE, Cut, source_of, write_split
from videorl.registry import UserError
from videorl.spec import Clip, Spec, Text


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    with exits.exit_codes():
        try:
            log.say(run(args))
        except OSError as error:  # no permission, disk full
            raise UserError(f"{error}; run again when that is mended") from None


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser("tokenize-captions", __doc__)
    add = parser.add_argument
    add("captions", metavar="CAPTIONS", type=Path, help="json, pickle, folder of csv files, or an index of one")
    add("--features", required=True, metavar="DIR", help="folder of SPLIT_meta.pkl, whose videos are written")
    add("--split", default="train", metavar="NAME", help="of the features (%(default)s)")
    add("--vocabulary", required=True, metavar="FILE", help="a vocab.txt or tokenizer of BERT, or hub:NAME")
    add("--out", required=True, metavar="PREFIX", help="beginning of the names of the files, such as text/captions.")
    add("--characters", type=int, default=96, metavar="N", help="of a caption that are read (%(default)s, published)")
    add("--tokens", type=int, default=32, metavar="N", help="of a caption that are kept (%(default)s, published)")
    add("--deduplicate", choices=DEDUPLICATE, default="none", help="leave out what captions repeat (%(default)s)")
    return parser.parse_intermixed_args(words)


def run(args: argparse.Namespace) -> str:
    for name in ("characters", "tokens"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: expected 1 or more")
    texts = Texts(Spec(Clip(1, 1, 1, 1), text=Text(args.vocabulary, "", args.tokens + 2)))
    source = source_of(args.captions)
    cut = Cut(args.characters, args.tokens, args.deduplicate)
    return write_split(args.features, args.split, source, args.out, texts, cut, command.bar("tokenizing", "shard"))
