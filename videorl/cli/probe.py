"""How well a simple classifier does on features: `videorl probe features/ --train train.csv --test test.csv`.

    videorl probe features/ --train train.csv --test test.csv                    a linear SVM, as MIL-NCE is evaluated
    videorl probe features/ --train train.csv --test test.csv --method logistic --c 1
    videorl probe features/ --train train.csv --test test.csv --method knn --k 20         as DINO is evaluated

FEATURES is what `videorl extract` wrote (npy or safetensors) for the videos of both lists, lines `path label` with the
paths of the extraction. Every window of a training video is a training sample; the scores of a test video's windows are
summed. Listed videos without features are counted and named. Exit codes: 0 done, 2 a mistake in the command or its
files.
"""

import argparse
import functools
import json
from pathlib import Path

from videorl import atomic, exits, log
from videorl.cli import command
from videorl.engine.evaluate import readable
from videorl.features.probe import Rows, probe, rows_of
from videorl.features.store import Features
from videorl.metrics.probe import knn_scores, logistic_scores, svm_scores
from videorl.prepare import check
from videorl.registry import UserError

# Of each its scores, the flag that it takes, and the usual value of that.
METHODS = {"svm": (svm_scores, "c", 100.0), "logistic": (logistic_scores, "c", 100.0), "knn": (knn_scores, "k", 20)}
LISTED = 5


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    with exits.exit_codes():
        run(args)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser("probe", __doc__)
    add = parser.add_argument
    add("features", metavar="FEATURES", type=Path, help="folder of `videorl extract`")
    add("--train", required=True, type=Path, metavar="CSV", help="lines `path label` to train on")
    add("--test", required=True, type=Path, metavar="CSV", help="lines `path label` to test on")
    add("--separator", default=" ", metavar="TEXT", help="of the lists, between path and label (default: a space)")
    add("--feature", default="", metavar="NAME", help="which, where there are several")
    add("--method", choices=METHODS, default="svm", help="classifier (%(default)s)")
    add("--c", type=float, metavar="C", help="penalty of svm and logistic (100)")
    add("--k", type=int, metavar="K", help="neighbours of knn (20)")
    add("--json", type=Path, metavar="FILE", help="write the metrics as json")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> None:
    function, name, usual = METHODS[args.method]
    other = {"c": "k", "k": "c"}[name]
    if getattr(args, other) is not None:
        raise UserError(f"--{other}: of no effect with --method {args.method}, which takes --{name}; leave it out")
    value = usual if getattr(args, name) is None else getattr(args, name)
    if value <= 0:
        raise UserError(f"--{name} {value:g}: expected more than 0")
    store = Features(args.features)
    train, test = (rows_of(store, args.feature, listed(file, args.separator)) for file in (args.train, args.test))
    found = probe(train, test, functools.partial(function, **{name: value}))
    found |= {"n": len(test.labels), "of": len(test.labels) + len(test.missing)}
    gaps = [line for file, rows in ((args.train, train), (args.test, test)) for line in without(file, rows)]
    log.say(*gaps, f"{args.method}, {name}={value:g}, {len(train.labels)} training videos: {readable(found)}")
    if args.json:
        try:
            atomic.write(args.json, json.dumps({**found, "method": args.method}, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--json {args.json} cannot be written: {error.strerror}") from None


def listed(file: Path, separator: str) -> list[tuple[str, int]]:
    """Path and class of each line. Raises `UserError` for a broken one, or one of several classes."""
    split = check.read_csv(file, separator=separator, multi_label=False)
    if split.broken:
        raise UserError(f"{file}:{split.broken[0].line}: {split.broken[0].reason}")
    return [(row.path, row.labels[0]) for row in split.rows]


def without(file: Path, rows: Rows) -> list[str]:
    if not rows.missing:
        return []
    more = ", …" if len(rows.missing) > LISTED else ""
    return [f"{file}: {len(rows.missing)} videos have no features: {', '.join(rows.missing[:LISTED])}{more}"]
