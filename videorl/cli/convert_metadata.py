"""Writes lists of narrations as files of arrays: `videorl convert-metadata ego4d_train.pkl …`.

    videorl convert-metadata ego4d_train.pkl ego4d_train.narrator.pkl      # each X becomes X.columns

EGO4D.METADATA goes on naming the list: X.columns beside it is read in its place, in a moment and with its pages shared
by all processes, as long as it was made from these very bytes. Nothing in a list is run: it may hold texts, numbers,
lists and tuples, and nothing else.
"""

from pathlib import Path

from videorl import exits, log
from videorl.cli import command
from videorl.data import narrations
from videorl.registry import UserError


def main(words: list[str] | None = None) -> None:
    parser = command.parser("convert-metadata", __doc__)
    parser.add_argument("lists", metavar="LIST", type=Path, nargs="+", help="pickle of narrations")
    args = parser.parse_args(words)
    with exits.exit_codes():
        for path in args.lists:
            try:
                log.say(narrations.convert(path))
            except OSError as error:
                raise UserError(f"{error}; nothing of {path} was written") from None
