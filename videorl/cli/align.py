"""When is what is said in a video to be seen, if ever? `videorl align VIDEO CAPTIONS --cfg X --checkpoint Y …`.

    videorl align video.mp4 captions.srt --cfg configs/HowTo100M/NORTON.yaml --checkpoint norton.pt \\
      --video_cfg configs/HowTo100M/S3D_features.yaml --video_checkpoint s3d_howto100m.pth

CAPTIONS is a .srt, .vtt or .csv (start,end,text). Writes OUT/aligned.srt, the lines that are shown at the time when
they are, OUT/aligned.jsonl, all lines with times, score and verdict, and OUT/aligned.html, where similarities and the
path of the transport plan are drawn. Features of the video, one a second, are made by the model of --video_cfg and
kept in OUT/features, or read from a file or folder (--features). Exit codes: 0 done, 2 a mistake in the command or
its files.
"""

import argparse
import functools
import json
import shlex
from pathlib import Path

import numpy as np

from videorl import atomic, checkpoint, config, exits, log
from videorl.align import Aligned, Plan, align, similarities, subtitles
from videorl.cli import command, extract
from videorl.data.feature_sets import VideoRows
from videorl.data.features import Texts
from videorl.engine import build, determinism, weights
from videorl.engine.given import ANY_MAY_BE_BAD, load_config
from videorl.registry import UserError
from videorl.report import alignment
from videorl.report.pages import save
from videorl.report.subtitles import srt
from videorl.video.errors import VideoError

AS_PUBLISHED = shlex.split("--layout mmpt --split video --features video_embed --l2 --view short_side")  # features


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    with exits.exit_codes():
        cfg, said = load_config([args.cfg], args.overrides, args.checkpoint)
        command.launch(cfg, said, functools.partial(run, cfg, args))


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser("align", __doc__)
    add = parser.add_argument
    add("video", metavar="VIDEO", type=Path, help="a video")
    add("captions", metavar="CAPTIONS", type=Path, help="what is said in it: .srt, .vtt or .csv")
    add("--cfg", required=True, metavar="FILE", help="YAML config of a model of stored features and texts")
    add("--checkpoint", required=True, metavar="FILE", type=Path, help="its weights, ours or published")
    add("--video_cfg", metavar="FILE", help="YAML config of the model that makes the features")
    add("--video_checkpoint", metavar="FILE", type=Path, help="its weights")
    add("--features", metavar="PATH", type=Path, help="features of the video instead: .npy, or a folder with them")
    add("--out", metavar="DIR", type=Path, help="folder to write (default: aligned/NAME OF THE VIDEO)")
    add("--within", type=float, default=Plan.within, metavar="SECONDS", help="look for a line so far from when it is spoken, at most (%(default)s; 0: in the whole video)")  # fmt: skip  # noqa: E501
    add("--threshold", type=float, metavar="COSINE", help="score above which a line is shown (default: where the scores of the lines fall best into two groups)")  # fmt: skip  # noqa: E501
    command.add_overrides(parser)
    return parser.parse_intermixed_args(words)


def run(cfg, args: argparse.Namespace) -> None:
    if args.within < 0:
        raise UserError(f"--within {args.within:g}: expected 0 seconds or more")
    out = args.out or Path("aligned") / args.video.stem
    captions = subtitles.read(args.captions)
    texts, model = Texts(config.spec(cfg)), _model(cfg, args.checkpoint)
    try:
        rows = _features(args, out)
        inside = [caption for caption in captions if caption.start < len(rows)]
        if not inside:
            raise UserError(f"{args.captions}: all {len(captions)} lines begin after the {len(rows)} s of {args.video}")
        scores = similarities(model, rows, inside, texts, args.video.name)
    except VideoError as error:
        raise UserError(f"{args.video}: {error.reason}") from None
    found = align(scores, inside, Plan(args.within, args.threshold))
    try:
        write(out, args.video.name, found, len(captions) - len(inside))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; name another folder with --out") from None


def _model(cfg, file: Path):
    determinism.set_level(cfg.DETERMINISM)
    model = build.model(cfg)
    if not hasattr(model, "embed_text") or not hasattr(model, "embed_video"):
        raise UserError(f"MODEL.MODEL_NAME {cfg.MODEL.MODEL_NAME}: expected one of stored features: VideoCLIP")
    weights.take(cfg, model, checkpoint.read(file), file, testing=True)
    return model.eval()


def _features(args: argparse.Namespace, out: Path) -> np.ndarray:
    """[seconds, F] of the video: stored ones, or those that tools/extract.py makes."""
    if args.features:
        whole = args.features.is_dir()
        folder, name = (args.features, args.video.stem) if whole else (args.features.parent, args.features.stem)
        return VideoRows(str(folder), "--features").of(name)
    if not args.video_cfg or not args.video_checkpoint:
        raise UserError("give --video_cfg and --video_checkpoint, a model that makes features, or stored --features")
    given = [args.video, "--cfg", args.video_cfg, "--checkpoint", args.video_checkpoint, "--out", out / "features"]
    asked = extract.parse([*map(str, given), *AS_PUBLISHED])
    cfg, said = load_config([asked.cfg], ANY_MAY_BE_BAD, asked.checkpoint)
    command.tell(said, main=True)
    try:
        extract.run(cfg, asked)
    except SystemExit:
        bad = json.loads((out / "features/quarantine.jsonl").read_text(encoding="utf-8").splitlines()[0])
        raise UserError(f"{args.video} cannot be read: {bad['bad']}") from None
    return VideoRows(str(out / "features"), "--out").of(args.video.stem)


def write(out: Path, name: str, found: Aligned, late: int) -> None:
    """The three files. `late`: lines that are left out."""
    lines = found.lines
    out.mkdir(parents=True, exist_ok=True)
    shown = sorted((line for line in lines if line.shown), key=lambda line: line.start)
    retimed = [line.said._replace(start=line.start, end=line.end) for line in shown]
    atomic.write(out / "aligned.srt", srt(retimed))
    atomic.write(out / "aligned.jsonl", "".join(json.dumps(_entry(line)) + "\n" for line in lines))
    notes = [f"{len(shown)} of {len(lines)} lines are shown (score above {found.threshold:.2f})"]
    notes += [f"{late} lines begin after the video has ended: left out"] * bool(late)
    rows = [
        alignment.Row(line.said.text, line.said[:2], (line.start, line.end), line.score, line.shown) for line in lines
    ]
    save(out / "aligned.html", alignment.page(name, rows, found.similarity, notes))
    log.say(*notes, f"{out}: aligned.srt, aligned.jsonl and aligned.html written")


def _entry(line) -> dict:
    times = {"start": line.start, "end": line.end} if line.shown else {"start": None, "end": None}
    said = {"text": line.said.text, "spoken": list(line.said[:2])}
    return said | {"shown": line.shown, **times, "score": round(line.score, 4)}
