"""Says what videos show, by a trained classifier: `videorl predict RUN IN …`.

    videorl predict runs/mine holiday.mp4 more_videos/               a table: the best classes of each video
    videorl predict runs/mine more_videos/ --out said/ --page        and predictions.jsonl, and a page with the clips
    videorl predict runs/mine lecture.mp4 --out said/ --page --over-time --window 2 --stride 1
    videorl predict k400.pyth a.mp4 --cfg videorl:Kinetics/MVITv2_S_16x4

RUN is the OUTPUT_DIR of a run, whose best checkpoint is taken, or a checkpoint. Frames, crops and views are those of
the run's test, so a video of its test set gets the scores that it had there. --over-time looks at windows, as long as
the run's clips where --window says nothing, end to end where --stride says nothing: the curve of the best classes is on
the page and in predictions.jsonl, and NAME.srt holds segments of one class each, which players show as subtitles.
Exit codes: 0 done, 1 done but for bad videos, 2 a mistake in the command or its files.
"""

import argparse
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

from videorl import atomic, exits, log
from videorl.cli import command
from videorl.predict import inputs, page
from videorl.predict.classifier import Classifier, Prediction
from videorl.predict.segments import segments, srt
from videorl.predict.source import checkpoint_of, load_config
from videorl.registry import UserError, printable


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    with exits.exit_codes():
        if args.top < 1:
            raise UserError(f"--top {args.top}: expected 1 or more")
        if (args.page or args.over_time) and not args.out:
            raise UserError("--page and --over-time write files: name a folder with --out")
        if not args.over_time and (args.window or args.stride):
            raise UserError("--window and --stride are for --over-time; add it")
        paths, unreadable = inputs.find(args.inputs, args.root)
        file = checkpoint_of(args.run)
        workers = min(len(os.sched_getaffinity(0)), len(paths)) if len(paths) > 1 else 0
        given = ["DATA_LOADER.NUM_WORKERS", str(workers), *(word for pair in args.set for word in pair)]
        cfg, said = load_config(file, args.cfg, given)
        command.launch(cfg, said, functools.partial(run, cfg, file, args, paths, unreadable))


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser("predict", __doc__)
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="OUTPUT_DIR of a run, or a checkpoint")
    add("inputs", metavar="IN", nargs="+", type=Path, help="a video, a folder of videos, or a list (.csv, .txt)")
    add("--cfg", default="", metavar="FILE", help="config of the model (default: that of the run)")
    add("--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="a setting that comes after it")
    add("--head", default="", metavar="NAME", help="of a model with several: data set whose classes are meant")
    add("--root", default="", metavar="DIR", help="of lists: folder that the paths start from (default: the list's)")
    add("--top", type=int, default=5, metavar="N", help="classes to show of each video (%(default)s)")
    add("--out", type=Path, metavar="DIR", help="folder for predictions.jsonl and what is asked for below")
    add("--page", action="store_true", help="write OUT/index.html, where the clips play")
    add("--over-time", action="store_true", help="windows over time: curve and OUT/NAME.srt")
    add("--window", type=float, metavar="SECONDS", help="length of a window")
    add("--stride", type=float, metavar="SECONDS", help="from one window to the next")
    return parser.parse_intermixed_args(words)


def run(cfg, file: Path, args: argparse.Namespace, paths: list[str], unreadable: dict[str, str]) -> None:
    classifier = Classifier(cfg, file, args.head)
    found = [*classifier.over_time(paths, args.window, args.stride)] if args.over_time else classifier.all_of(paths)
    good = [one for one in found if not one.reason]
    unreadable = unreadable | {one.path: one.reason for one in found if one.reason}
    if not good:
        path, reason = next(iter(unreadable.items()))
        raise UserError(f"none of {len(unreadable)} videos can be read; first: {path}: {reason}")
    log.say(*table(good, args.top), *listed(unreadable))
    if args.out:
        try:
            write(args, classifier, good, unreadable)
        except OSError as error:
            raise UserError(f"{args.out} cannot be written: {error.strerror}; name another folder with --out") from None
    if unreadable:
        raise SystemExit(1)


def table(found: list[Prediction], top: int) -> list[str]:
    """A line for each video: path, and the best classes with their scores."""
    width = max([len(printable(one.path)) for one in found], default=0)
    rows = []
    for one in found:
        classes = "  ".join(f"{printable(name)} {100 * score:.1f} %" for name, score in one.top(top))
        rows.append(f"{printable(one.path):{width}}  {classes}")
    return rows


def listed(unreadable: dict[str, str]) -> list[str]:
    if not unreadable:
        return []
    return [f"{len(unreadable)} file(s) that cannot be read:", *(f"  {p}: {r}" for p, r in unreadable.items())]


def write(
    args: argparse.Namespace, classifier: Classifier, found: list[Prediction], unreadable: dict[str, str]
) -> None:
    """What was asked for, in the folder --out."""
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [*(row(one, args.top) for one in found), *({"path": p, "error": r} for p, r in unreadable.items())]
    atomic.write(args.out / "predictions.jsonl", "".join(json.dumps(one) + "\n" for one in rows))
    log.say(f"{args.out / 'predictions.jsonl'}: {len(rows)} lines")
    if args.over_time:
        for one, name in zip(found, names(found)):
            atomic.write(args.out / f"{name}.srt", srt(segments(one.windows), one.classes))
        log.say(f"{args.out}: {len(found)} .srt files")
    if args.page:
        page.write(args.out / "index.html", found, top=args.top, source=str(classifier.file), unreadable=unreadable)
        log.say(f"{args.out / 'index.html'}: written")


def row(one: Prediction, top: int) -> dict:
    """A line of predictions.jsonl."""
    best = {"path": one.path, "top": [{"class": name, "score": score} for name, score in one.top(top)]}
    if one.windows is None:
        return best
    times, scores = one.windows.times.round(3).tolist(), one.windows.scores
    names = [name for name, _ in one.top(top)]
    columns = [one.classes.index(name) for name in names]
    lines = zip(times, scores[:, columns].tolist())
    windows = [{"start": start, "end": end, "scores": dict(zip(names, line))} for (start, end), line in lines]
    parts = [
        {"start": s.start, "end": s.end, "class": one.classes[s.label], "score": s.score} for s in segments(one.windows)
    ]
    return {**best, "windows": windows, "segments": parts}


def names(found: list[Prediction]) -> Iterator[str]:
    """The stem of each file, with a number where another has it, too."""
    used: set[str] = set()
    for one in found:
        stem = name = Path(one.path).stem
        number = 2
        while name in used:
            name, number = f"{stem}_{number}", number + 1
        used.add(name)
        yield name
