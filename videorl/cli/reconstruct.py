"""What a masked autoencoder makes of clips: `videorl reconstruct --cfg X --checkpoint Y [VIDEO …]`.

    videorl reconstruct --cfg configs/SSv2/VIDEOMAE_VITB_16x2_PT.yaml --checkpoint vit_b.pth a.mp4 b.mp4

Of a video the clip in its middle, its frames chosen as in training; without videos, the first clips of the config's
validation set. Writes index.html, where the clips play, and a PNG of each: its frames from left to right; below them
what the model sees, what it makes of that, and the same with the true statistics of the hidden patches, as published
visualisers show it. Masks depend on RNG_SEED and the number of the clip.
Exit codes: 0 done, 2 a mistake in the command or its files.
"""

import argparse
import functools
import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from videorl import checkpoint, config, exits, log
from videorl.cli import command
from videorl.engine import build, determinism, weights
from videorl.engine.given import load_config
from videorl.engine.step import call, to_device
from videorl.evals.reconstruction import described, errors, pictures
from videorl.loading.worker import collate
from videorl.metrics.pixels import Targets, patches, unseen
from videorl.registry import UserError, printable
from videorl.report import reconstructions
from videorl.spec import Views
from videorl.video.errors import VideoError

READS = ("pixels", "visible", "masked")
SHEET_FRAMES = 8  # of a clip, in its PNG
LEGEND = """squared error: of the pixels that are hidden and predicted: {what}
of mean colours: that of predicting the mean colour of each patch
grey levels off: mean difference to the true pixels, of 255, in the third picture
with true statistics: the same in the fourth"""


@dataclass(frozen=True)
class Result:
    """A clip: its four pictures, uint8 [4, T, H, W, 3], and its figures by name."""

    path: str
    pictures: np.ndarray
    facts: dict[str, str]


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    with exits.exit_codes():
        cfg, said = load_config([args.cfg], args.opts, args.checkpoint)
        command.launch(cfg, said, functools.partial(run, cfg, args))


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser("reconstruct", __doc__)
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="files (default: the validation set)")
    parser.add_argument("--cfg", required=True, metavar="FILE", help="YAML config of the pre-training")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", type=Path, help="its weights, ours or published")
    parser.add_argument("--count", type=int, default=8, metavar="N", help="clips to show (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("reconstructions"), metavar="DIR", help="folder (%(default)s)")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="settings that come after those of the config"
    )
    args = parser.parse_intermixed_args(words)
    for word in args.videos:
        if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.\w+)+", word) and not Path(word).exists():
            parser.error(f"{word}: no such video; settings go behind --opts")
    return args


def run(cfg, args: argparse.Namespace) -> None:
    if args.count < 1:
        raise UserError(f"--count {args.count}: expected 1 or more")
    model = loaded(cfg, args.checkpoint)
    data = of_files(cfg, args.videos) if args.videos else of_validation(cfg)
    results, unreadable = reconstruct(cfg, model, data, args.count)
    if not results:
        path, reason = next(iter(unreadable.items()), ("the data set", "it is empty"))
        raise UserError(f"no clip can be read; first: {path}: {reason}")
    legend = LEGEND.format(what=described(Targets.of(config.spec(cfg))))
    log.say(*table(results), legend, *(f"not read: {path}: {reason}" for path, reason in unreadable.items()))
    try:
        write(args, cfg, results, unreadable)
    except OSError as error:
        raise UserError(f"{args.out} cannot be written: {error.strerror}; name another folder with --out") from None
    log.say(f"{args.out / 'index.html'}: written, and {len(results)} PNG beside it")


def loaded(cfg, file: Path) -> torch.nn.Module:
    """The config's model with the weights of a checkpoint. Raises `UserError` where it predicts no masked pixels."""
    determinism.set_level(cfg.DETERMINISM)
    model = build.model(cfg).eval()
    if not set(READS) <= set(inspect.signature(model.forward).parameters):
        raise UserError(
            f"MODEL.MODEL_NAME {cfg.MODEL.MODEL_NAME} predicts no masked pixels: expected a model that reads"
            f" {', '.join(READS)}, such as VideoMAE; name the config of its pre-training"
        )
    weights.take(cfg, model, checkpoint.read(file), file, testing=True)
    return model


def of_files(cfg, videos: list[str]):
    """The clip in the middle of each file, its frames chosen as those of the data set that the config trains on."""
    try:  # the offset makes the middle ones of single clips
        return build.dataset_of_files(cfg, cfg.TRAIN.DATASET, videos, Views(1, 1), OFFSET=True)
    except UserError as error:
        raise UserError(f"TRAIN.DATASET: {error}; or name no videos") from None


def of_validation(cfg):
    """The data of the config's evaluation of reconstructions, or else what it trains on, its split val."""
    named = [node for node in cfg.EVALS.values() if node.NAME == "reconstruction"]
    name, split = (named[0].DATASET, named[0].SPLIT) if named else (cfg.TRAIN.DATASET, "val")
    return build.dataset(cfg, name, split)


def reconstruct(cfg, model, data, count: int) -> tuple[list[Result], dict[str, str]]:
    """Up to `count` clips, and the files before them that cannot be read with the reasons."""
    spec, precision = config.spec(cfg), build.precision(cfg)
    targets = Targets.of(spec)
    results: list[Result] = []
    unreadable = {}
    for i in range(len(data)):
        try:
            batch = to_device(collate(data[i][:1]), precision.device, spec.clip)
        except VideoError as error:
            unreadable[data.path(i)] = error.reason
            continue
        with torch.inference_mode(), precision.autocast():
            predicted = call(model, batch)["predicted"]
        given = [*(batch[name] for name in READS), predicted, targets]
        made = pictures(*given)
        facts = _facts(errors(*given), made, batch, targets.shape)
        results.append(Result(data.path(i), made[0].movedim(2, -1).cpu().numpy(), facts))
        if len(results) == count:
            break
    return results, unreadable


def _facts(found: dict, made: torch.Tensor, batch: dict, patch: tuple[int, int, int]) -> dict[str, str]:
    tokens = batch["masked"][unseen(batch["masked"], batch["visible"])][None]
    true, *shown = (255 * patches(made[:, k], tokens, patch) for k in (0, 2, 3))
    levels = [float((picture - true).abs().mean()) for picture in shown]
    error, baseline = (float(found[name] / found["values"]) for name in ("error", "baseline"))
    return {
        "squared error": f"{error:.3f}",
        "of mean colours": f"{baseline:.3f}",
        "grey levels off": f"{levels[0]:.1f}",
        "with true statistics": f"{levels[1]:.1f}",
    }


def table(results: list[Result]) -> list[str]:
    width = max(len(printable(result.path)) for result in results)
    names = list(results[0].facts)
    rows = [" " * width + "".join(f"  {name}" for name in names)]
    for result in results:
        cells = "".join(f"  {result.facts[name]:>{len(name)}}" for name in names)
        rows.append(f"{printable(result.path):{width}}{cells}")
    return rows


def write(args: argparse.Namespace, cfg, results: list[Result], unreadable: dict[str, str]) -> None:
    """The page and the pictures."""
    args.out.mkdir(parents=True, exist_ok=True)
    for k, result in enumerate(results):
        sheet(result.pictures).save(args.out / f"{k:02}_{Path(result.path).stem}.png")
    notes = [
        f"{cfg.MODEL.MODEL_NAME}, {cfg.MASK.RATIO:.0%} of the patches hidden ({cfg.MASK.KIND})",
        str(args.checkpoint),
    ]
    strips = [reconstructions.strip(r.path, r.pictures, list(r.facts.items())) for r in results]
    reconstructions.write(
        args.out / "index.html", strips, title=args.checkpoint.name, notes=notes, unreadable=unreadable
    )


def sheet(pictures: np.ndarray) -> Image.Image:
    """uint8 `[4, T, H, W, 3]` as a picture: a row for each of the four, a column for each of some frames."""
    frames = np.linspace(0, pictures.shape[1] - 1, min(SHEET_FRAMES, pictures.shape[1])).round().astype(int)
    chosen = pictures[:, frames]  # [4, F, H, W, 3]
    rows, columns, height, width, _ = chosen.shape
    return Image.fromarray(chosen.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3))
