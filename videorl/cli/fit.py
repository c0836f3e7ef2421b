"""From a folder of videos to a trained model, tested, with a report: `videorl fit my_videos/ --out runs/mine`.

    videorl fit my_videos/ --out runs/mine                    my_videos/CLASS/NAME.mp4, or my_videos/CLASS_NAME.mp4
    videorl fit my_videos/ --out runs/mine                    my_videos/train/CLASS/NAME.mp4, my_videos/test/CLASS/…
    videorl fit clips.csv --root videos/ --out runs/mine      lines `path,class`
    videorl fit my_videos/ --out runs/mine --weights k400.pyth --cfg videorl:Kinetics/MVITv2_S_16x4

Looks at every file, draws training, validation and test videos of each class (files with the same bytes stay together),
decides how to train, and says why. Without --weights a small model learns from scratch; with them, of a run or
published, it is their classifier, or with --all-layers the whole model. OUT/fit.yaml holds all that was decided:
`videorl train --cfg OUT/fit.yaml` repeats it. KEY VALUE pairs come after it. The same command goes on where it was.
Exit codes: as `videorl train`.
"""

import argparse
import inspect
import json
import os
from collections import Counter
from pathlib import Path

from videorl import atomic, config, dist, exits, log
from videorl.cli import command, train
from videorl.data.lines import line_of
from videorl.fit import folder, recipe
from videorl.fit.split import SPLITS, split
from videorl.loading.pool import Workers
from videorl.predict.source import checkpoint_of, load_config
from videorl.prepare import files
from videorl.registry import MODELS, UserError, printable

LISTED = 20


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    recipe_file = args.out / "fit.yaml"
    with exits.exit_codes():
        try:
            with command.without_warnings():  # what cannot be read is listed here
                decide_once(args, recipe_file)
        except OSError as error:
            raise UserError(f"--out {args.out} cannot be written: {error.strerror or error}") from None
    train.main(["--cfg", str(recipe_file), *args.overrides])
    log.say(f"report: {args.out / 'report.html'}", f"what it says of a video: videorl predict {args.out} VIDEO.mp4")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser("fit", __doc__)
    add = parser.add_argument
    add("source", metavar="VIDEOS", type=Path, help="folder of class folders or of files CLASS_NAME.mp4, or a csv")
    add("--out", required=True, type=Path, metavar="DIR", help="folder of the run")
    add("--root", default="", metavar="DIR", help="of a csv: folder that its paths start from (default: the csv's)")
    add("--weights", type=Path, metavar="FILE", help="checkpoint, or OUTPUT_DIR of a run, to start from")
    add("--cfg", default="", metavar="FILE", help="config of the model of --weights (default: the one that they hold)")
    add("--all-layers", action="store_true", help="train all layers of --weights, not the classifier alone")
    add("--epochs", type=int, default=0, metavar="N", help="at most (default: by the number of videos)")
    add("--held-out", type=float, default=0.15, metavar="SHARE", help="of each class to validate, and to test (0.15)")
    add("--seed", type=int, default=0, metavar="N", help="of the draw, and of training (%(default)s)")
    command.add_overrides(parser)
    return parser.parse_intermixed_args(words)


def decide_once(args: argparse.Namespace, file: Path) -> None:
    """Writes the lists and the recipe, unless this very command has done so before. Raises `UserError`."""
    if not 0 < args.held_out <= 0.4 or args.epochs < 0 or args.seed < 0:
        raise UserError("--held-out: expected more than 0, at most 0.4; --epochs and --seed: 0 or more")
    if (args.cfg or args.all_layers) and not args.weights:
        raise UserError("--cfg and --all-layers are for --weights; name these, too")
    asked = {k: str(v) for k, v in vars(args).items() if k not in ("out", "overrides")}
    if file.is_file():
        if asked_before(args.out / "fit.json") != asked:
            raise UserError(f"{file} was decided by another command; name another --out")
        log.say(f"{file} is there: going on with what was decided")
        return
    if (args.out / "run.json").exists():
        raise UserError(f"--out {args.out} holds another run, which training would go on with; name another folder")
    if args.source.is_dir() and args.source.resolve() in (args.out.resolve(), *args.out.resolve().parents):
        raise UserError(f"--out {args.out} lies in {args.source}, which holds the videos; name a folder elsewhere")
    weights, found = read_weights(args), folder.find(args.source, args.root)
    facts = look(found)
    for line in skipped(found.skipped):
        log.say(line)
    folder.check_classes(found)
    hashes = {path: facts[path].sha256 for path in found.classes}
    parts = split(found.classes, hashes, found.parts, args.held_out, args.seed)
    made = recipe.decide(parts["train"], found.classes)
    if given := set(found.parts.values()):
        drawn = "".join(f"; {part} is drawn from train" for part in SPLITS if part not in given)
        made.take(f"the folders say which videos are {', '.join(part for part in SPLITS if part in given)}{drawn}")
    if found.skipped:
        made.reasons.append(f"{len(found.skipped)} files are left out; fit.json says which and why")
    if (least := min(len(parts["val"]), len(parts["test"]))) < recipe.SURE:
        made.reasons.append(f"only {least} videos to validate or test on: a share of so few says little")
    base = starting_point(args, made, weights, parts["train"], facts)
    made.settings |= {
        "DATA.PATH_TO_DATA_DIR": os.path.abspath(args.out / "data"),
        "DATA.PATH_PREFIX": os.path.abspath(found.root),
        "DATA.PATH_LABEL_SEPARATOR": " ",
        "TRAIN.MIXED_PRECISION": True,
        "DATA_LOADER.NUM_WORKERS": min(8, len(os.sched_getaffinity(0))),
        "NUM_GPUS": min(1, dist.count_gpus(-1)),
        "NUM_SHARDS": 1,
        "RNG_SEED": args.seed,
        "OUTPUT_DIR": os.path.abspath(args.out),
    }
    write_lists(args.out / "data", found.classes, parts)
    atomic.write(args.out / "fit.json", json.dumps({"asked": asked, "skipped": found.skipped}, indent=1) + "\n")
    atomic.write(file, made.text(base))
    log.say(*table(found.classes, parts), *made.reasons, f"{file}: written")


def asked_before(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))["asked"]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(
            f"{file} cannot be read, so nobody knows which command has decided: `videorl train --cfg"
            f" {file.with_suffix('.yaml')}` goes on, or name another --out"
        ) from None


def look(found: folder.Found) -> dict[str, files.Facts]:
    """Facts about each video by path; those that cannot be read are dropped from `found`."""
    paths, workers = list(found.classes), Workers(len(os.sched_getaffinity(0)), prefetch=8, timeout=120.0)
    wanted = [os.path.abspath(found.root / path) for path in paths]
    facts = files.scan(wanted, files.Look("ends", sha256=True), workers, command.bar("looking at videos", "video"))
    for path, fact in zip(paths, facts):
        if fact.stage:
            found.drop(path, f"{fact.stage}: {fact.reason}")
    if not found.classes:
        path, reason = next(iter(found.skipped.items()))
        raise UserError(f"none of {len(found.skipped)} files of {found.root} can be read; first: {path}: {reason}")
    return dict(zip(paths, facts))


def read_weights(args: argparse.Namespace):
    """The file of --weights and its config; nothing without. Raises `UserError` for what no classifier begins with."""
    if not args.weights:
        return None
    file = checkpoint_of(args.weights)
    cfg, _ = load_config(file, args.cfg, [])
    if cfg.MASK.RATIO:
        raise UserError(
            f"{file} was pre-trained on masked clips: name the config of a fine-tuning with --cfg, such as"
            " videorl:SSv2/VIDEOMAE_VITB_16x2_FT"
        )
    entry, _ = config.component(cfg, MODELS, cfg.MODEL.MODEL_NAME)
    if [*inspect.signature(entry.build.forward).parameters][1:] != ["video"]:
        raise UserError(
            f"{file} holds a {cfg.MODEL.MODEL_NAME}, which has no classifier of videos: name the weights, or with --cfg"
            " the config, of one that has, such as videorl:Kinetics/MVITv2_S_16x4 (`videorl configs` lists all)"
        )
    return file, cfg


def starting_point(args: argparse.Namespace, made: recipe.Decisions, weights, train_on: list[str], facts) -> str:
    """Adds what follows from the weights, or that there are none; the config that the recipe begins with."""
    if weights is None:
        recipe.from_scratch(made, train_on, facts, args.epochs)
        return recipe.SCRATCH
    file, cfg = weights
    all_layers = args.all_layers or len(train_on) >= recipe.FEW
    recipe.from_weights(made, train_on, os.path.abspath(file), args.epochs, all_layers)
    args.out.mkdir(parents=True, exist_ok=True)
    atomic.write(args.out / "base.yaml", recipe.base_of(cfg))
    return "base.yaml"


def write_lists(out: Path, classes: dict[str, str], parts: dict[str, list[str]]) -> None:
    """train.csv, val.csv, test.csv and classes.json."""
    out.mkdir(parents=True, exist_ok=True)
    numbers = {name: number for number, name in enumerate(sorted(set(classes.values())))}
    for part, paths in parts.items():
        lines = [line_of(path, " ", str(numbers[classes[path]])) for path in paths]
        atomic.write(out / f"{part}.csv", "".join(f"{line}\n" for line in lines))
    atomic.write(out / "classes.json", json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")


def skipped(reasons: dict[str, str]) -> list[str]:
    if not reasons:
        return []
    rows = [f"  {path}: {reason}" for path, reason in reasons.items()]
    more = [f"  … and {len(rows) - LISTED} more, in fit.json"] if len(rows) > LISTED else []
    return [f"{len(rows)} file(s) left out:", *rows[:LISTED], *more]


def table(classes: dict[str, str], parts: dict[str, list[str]]) -> list[str]:
    """Videos of each class in each part."""
    counts = {part: Counter(classes[path] for path in paths) for part, paths in parts.items()}
    names = sorted(set(classes.values()))
    width = max(len(printable(name)) for name in [*names, "class"])
    rows = [f"{printable(name):{width}}" + "".join(f"{counts[part][name]:7}" for part in SPLITS) for name in names]
    return [f"{'class':{width}}" + "".join(f"{part:>7}" for part in SPLITS), *rows]
