"""What the sub-commands have in common: their parsers, bars, and what they make of errors of the disk."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from videorl import log


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


def launch(cfg, said: Sequence[str], job: Callable[[], None]) -> None:
    """Runs `job()` in this process, on a GPU if the config wants one, when the log has told `said`."""
    from videorl import dist  # imports torch, for which --help does not wait

    def run() -> None:
        tell(said, main=True)
        job()

    dist.launch_one(run, gpu=bool(cfg.NUM_GPUS))


def tell(said: Sequence[str], *, main: bool) -> None:
    """Begins the log, of rank 0 (`main`) with the lines `said`."""
    log.setup(None, main=main)
    for line in said:
        logging.getLogger("videorl").info(line)


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
    logger = logging.getLogger("videorl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
