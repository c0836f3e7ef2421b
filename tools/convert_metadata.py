"""Writes lists of narrations as files of arrays: `python tools/convert_metadata.py ego4d_train.pkl …`.

    python tools/convert_metadata.py ego4d_train.pkl ego4d_train.narrator.pkl      # each X becomes X.columns

EGO4D.METADATA goes on naming the list: X.columns beside it is read in its place, in a moment and with its pages shared
by all processes, as long as it was made from these very bytes. Nothing in a list is run: it may hold texts, numbers,
lists and tuples, and nothing else.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from videorl import dist, log
from videorl.data import narrations
from videorl.registry import UserError


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", metavar="LIST", type=Path, nargs="+", help="pickle of narrations")
    args = parser.parse_args(words)
    with dist.exit_codes():
        for path in args.lists:
            try:
                log.say(narrations.convert(path))
            except OSError as error:
                raise UserError(f"{error}; nothing of {path} was written") from None


if __name__ == "__main__":
    main()
