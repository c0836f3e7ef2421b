"""The clips of an evaluation: a few, right and wrong ones, as small animated pictures, and many more in a list."""

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from videorl.report.predictions import Predictions
from videorl.report.read import one_line, text_of

CLIPS = 24
LISTED = 10_000  # clips in the list at most
FRAMES, SECONDS = 8, 4.0  # frames shown of the middle seconds of a video
SHORT_SIDE, LONG_SIDE, MILLISECONDS = 104, 232, 250


@dataclass(frozen=True)
class Tile:
    """A clip with its prediction; where no picture can be made, `reason` says why. `row`: its place in the list."""

    row: int
    path: str
    link: str
    true: str
    predicted: str
    score: str
    right: bool
    moving: str = ""
    still: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Gallery:
    """Clips of an evaluation. `scale`: what is to be said of scores that are no probabilities. `data`, for the page's
    script: names of classes, and of each listed clip its link (what follows `folder`), true classes, predicted class
    and score; the clips of the tiles come first."""

    name: str
    scale: str
    tiles: list[Tile]
    clips: int
    data: dict


def gallery(predictions: Predictions, tiles: int) -> Gallery:
    """Up to `tiles` clips with pictures, and up to LISTED in the list: wrong predictions first, the surest ahead."""
    shown = choose(predictions, tiles)
    rows = list(dict.fromkeys([*shown, *predictions.order()[:LISTED].tolist()]))[:LISTED]
    links = [link(str(predictions.paths[row])) for row in rows]
    folder = links[0] if len(links) == 1 else os.path.commonprefix(links)
    folder = folder[: folder.rindex("/") + 1]
    listed = [
        [at.removeprefix(folder), predictions.true(row), int(predictions.predicted[row]), _score(predictions, row)]
        for row, at in zip(rows, links, strict=True)
    ]
    return Gallery(
        name=predictions.name,
        scale=_scale(predictions),
        tiles=[_tile(predictions, row, place) for place, row in enumerate(shown)],
        clips=len(predictions.scores),
        data={"names": predictions.classes, "folder": folder, "clips": listed},
    )


def choose(predictions: Predictions, clips: int) -> list[int]:
    """The rows to show: half wrong and half right, or more of the one where the other has too few.

    Wrong ones come first, the surest ahead; the right ones are spread evenly over the rows.
    """
    order, hits = predictions.order(), int(predictions.right.sum())
    wrong, right = order[: len(order) - hits], order[len(order) - hits :]
    from_right = min(len(right), max(clips // 2, clips - len(wrong)))
    spread = np.linspace(0, max(len(right) - 1, 0), from_right).astype(int)
    return [*wrong[: clips - from_right].tolist(), *right[spread].tolist()]


def link(path: str) -> str:
    """Where a browser of this machine finds a file."""
    return "file://" + quote(os.fsencode(os.path.abspath(path)))


def _scale(predictions: Predictions) -> str:
    if (predictions.scores < 0).any():
        return "Scores are no probabilities: they can be below 0."
    if (predictions.scores > 1).any():
        return "The score of a video is the sum of those of its views, so it can be above 1 (DATA.ENSEMBLE_METHOD sum)."
    return ""


def _score(predictions: Predictions, row: int) -> str:
    value = float(predictions.scores[row, predictions.predicted[row]])
    return f"{100 * value:.0f} %" if predictions.fractions else f"score {text_of(value)}"


def _tile(predictions: Predictions, row: int, place: int) -> Tile:
    path = str(predictions.paths[row])
    tile = {
        "row": place,
        "path": path,
        "link": link(path),
        "true": ", ".join(predictions.classes[c] for c in predictions.true(row)) or "none",
        "predicted": predictions.classes[predictions.predicted[row]],
        "score": _score(predictions, row),
        "right": bool(predictions.right[row]),
    }
    moving, still, reason = preview(path)
    return Tile(**tile, moving=moving, still=still, reason=reason)


def preview(path: str) -> tuple[str, str, str]:
    """Data URIs of the middle seconds of a video, playing and still, and nothing; or nothing, and the reason why."""
    try:
        pictures = _pictures(path)
    # A damaged file can make a decoder raise anything; the page must come out all the same, and shows the reason.
    except Exception as error:
        return "", "", one_line(error).replace(path, Path(path).name)
    return webp(pictures), webp(pictures[len(pictures) // 2 :][:1]), ""


def _pictures(path: str) -> list[Image.Image]:
    from videorl.video.reader import open_video

    with open_video(path) as video:
        span = min(video.num_frames, max(1, round(SECONDS * video.fps)))
        first = (video.num_frames - span) // 2
        indices = np.linspace(first, first + span - 1, min(FRAMES, span)).round().astype(int)
        return thumbnails(video, indices)


def thumbnails(video, indices: np.ndarray) -> list[Image.Image]:
    """Frames of an open video, small."""
    return [_small(frame) for _, frames in video.parts(indices) for frame in frames.numpy()]


def _small(frame: np.ndarray) -> Image.Image:
    height, width = frame.shape[:2]
    scale = min(SHORT_SIDE / min(height, width), LONG_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def webp(pictures: list[Image.Image]) -> str:
    """A data URI of one picture, or of several that play in a loop."""
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": pictures[1:], "duration": MILLISECONDS, "loop": 0}
    pictures[0].save(buffer, "WEBP", quality=60, method=3, **(options if len(pictures) > 1 else {}))
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
