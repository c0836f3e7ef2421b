"""Looks at every video of a data set once and says what is wrong: `videorl check CFG|CSV …`.

    videorl check configs/toy/mvit.yaml KEY VALUE …      all splits that this config trains or tests on
    videorl check data/train.csv --root DIR              one csv, lines `path label`

Reports broken rows, files that are unreadable, empty, short, odd, or there twice, training videos that are also
evaluated on, and statistics of labels and videos. Damage that no decoder notices is found by a manifest only: `--hash`
writes one, and later runs compare with it. Exit codes: 0 nothing found, 1 findings, 2 a mistake in the command.
"""

import argparse
import json
import os
from pathlib import Path

from videorl import config, exits, log
from videorl.cli import command
from videorl.loading.pool import Workers
from videorl.prepare import check, files, manifest
from videorl.registry import DATASETS, UserError
from videorl.settings import located
from videorl.spec import Reading


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    with exits.exit_codes(), command.without_warnings():  # lost workers stand in the report
        try:
            report = run(args)
        except OSError as error:  # of what it writes: a folder where a file is expected, no permission, disk full
            raise UserError(str(error)) from None
    raise SystemExit(0 if report.clean else 1)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser("check", __doc__)
    parser.add_argument("source", metavar="CFG|CSV", type=Path, help="YAML config, or csv of lines `path label`")
    command.add_overrides(parser)
    parser.add_argument("--root", help="csv only: folder that the paths start from (default: that of the csv)")
    parser.add_argument("--separator", help="csv only: text between path and label (default: a space)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one file (default 120)")
    parser.add_argument(
        "--decode",
        choices=["all", "ends", "none"],
        default="ends",
        help="frames of each video to decode; ends: first, middle and last (default)",
    )
    parser.add_argument(
        "--hash",
        type=Path,
        metavar="MANIFEST",
        help="size and SHA-256 of each file: compared with this file, or written to it if it does not exist",
    )
    parser.add_argument(
        "--clean",
        type=Path,
        metavar="OUT",
        help="write the good rows: to the csv OUT; for a config, to OUT/train.csv, … (DATA.PATH_TO_DATA_DIR OUT)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings and statistics as json")
    return parser.parse_intermixed_args(words)


def run(args: argparse.Namespace) -> check.Report:
    """Checks, prints the report and writes what was asked for."""
    if args.workers < 1 or args.timeout <= 0:
        raise UserError("--workers and --timeout: expected more than 0")
    if args.json and args.json.suffix != ".json":
        raise UserError(f"--json {args.json}: expected a name that ends in .json")
    splits, reading = from_config(args) if _is_config(args.source) else from_csv(args)
    clean_files = clean_names(args, splits) if args.clean else []
    for file in clean_files:
        manifest.refuse_existing(file)
    for file in filter(None, (args.json, args.hash)):
        file.parent.mkdir(parents=True, exist_ok=True)
    verify = args.hash is not None and args.hash.exists()
    report = check.check(
        splits,
        files.Look(args.decode, args.hash is not None, reading),
        Workers(args.workers, prefetch=8, timeout=args.timeout),
        command.bar("checking", "file"),
        manifest.read(args.hash) if verify else None,
    )
    log.say(*check.text(report))
    if args.json:
        args.json.write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
    if args.hash and not verify:
        count = manifest.write(args.hash, report.files, check.base_of(splits))
        log.say(f"{args.hash}: hashes of {count} files written")
    for section, file in zip(report.sections, clean_files):
        count = check.write_clean(section, file)
        log.say(f"{file}: {count} good rows written; their paths start from {section.split.root}")
    return report


def _is_config(source: Path) -> bool:
    return located(source).suffix in (".yaml", ".yml")


def from_config(args: argparse.Namespace) -> tuple[list[check.Split], Reading]:
    """The splits that the config trains, validates and tests on."""
    if args.root is not None or args.separator is not None:
        raise UserError("--root and --separator are for a csv; here, set DATA.PATH_PREFIX or DATA.PATH_LABEL_SEPARATOR")
    cfg = config.load([args.source], args.overrides)
    used = [(cfg.TRAIN.DATASET, "train")] if cfg.TRAIN.ENABLE else []
    for node in cfg.EVALS.values():
        if (cfg.TRAIN.ENABLE and node.EVERY) or (cfg.TEST.ENABLE and node.AT_TEST):
            used.append((node.DATASET, node.SPLIT))
    if not used:
        raise UserError("TRAIN.ENABLE and TEST.ENABLE are both false: the config uses no data")
    spec, splits = config.spec(cfg), []
    several = len({name for name, _ in used}) > 1
    for name, split in dict.fromkeys(used):
        entry, values = config.component(cfg, DATASETS, name)
        splits.append(check.read_split(entry, spec, split, values))
        splits[-1].name = f"{name}/{split}" if several else split
    return splits, spec.reading


def from_csv(args: argparse.Namespace) -> tuple[list[check.Split], Reading]:
    if args.overrides:
        raise UserError(f"{' '.join(args.overrides)[:80]}: KEY VALUE pairs are for a config, and {args.source} is none")
    separator = " " if args.separator is None else args.separator
    return [check.read_csv(args.source, args.root or "", separator)], Reading()


def clean_names(args: argparse.Namespace, splits: list[check.Split]) -> list[Path]:
    """The files that --clean writes, one for each split."""
    if _is_config(args.source):
        return [args.clean / f"{split.name}.csv" for split in splits]
    return [args.clean]
