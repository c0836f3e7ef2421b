"""What the sub-commands have in common: their parsers, bars, and what they make of errors of the disk."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm


def parser(name: str, doc: str) -> argparse.ArgumentParser:
    """The parser of `videorl name`, whose help begins with the text `doc` as it stands."""
    return argparse.ArgumentParser(
        prog=f"videorl {name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_overrides(to: argparse.ArgumentParser) -> None:
    to.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings that come after those of the config")


def bar(title: str, unit: str) -> Callable:
    """`show(items, total)`: the items under a bar with the time left, on stderr; lines at long intervals where that is
    no terminal."""

    def show(items, total: int):
        interval = 0.2 if sys.stderr.isatty() else 30.0
        return tqdm(items, title, total, unit=unit, mininterval=interval, dynamic_ncols=True)

    return show


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """For commands whose own report says what the log would warn of, such as lost workers."""
    log = logging.getLogger("videorl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
