"""A few clips of an evaluation, right and wrong ones, as small animated pictures."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from videorl.report.read import Predictions, text_of

CLIPS = 24
FRAMES, SECONDS = 8, 4.0  # frames shown of the middle seconds of a video
SHORT_SIDE, LONG_SIDE, MILLISECONDS = 104, 232, 250


@dataclass(frozen=True)
class Tile:
    """A clip with its prediction; where no picture can be made, `reason` says why."""

    path: str
    true: str
    predicted: str
    score: str
    right: bool
    moving: str = ""
    still: str = ""
    reason: str = ""


def gallery(predictions: Predictions, clips: int) -> list[Tile]:
    """Up to `clips` tiles: wrong predictions first, the surest ahead; then right ones, spread evenly over the rows."""
    return [_tile(predictions, row) for row in choose(predictions, clips)]


def choose(predictions: Predictions, clips: int) -> list[int]:
    """The rows to show: half wrong and half right, or more of the one where the other has too few."""
    wrong, right = np.flatnonzero(~predictions.right), np.flatnonzero(predictions.right)
    from_right = min(len(right), max(clips // 2, clips - len(wrong)))
    from_wrong = min(len(wrong), clips - from_right)
    sure = predictions.scores[wrong, predictions.predicted[wrong]]
    spread = np.linspace(0, max(len(right) - 1, 0), from_right).astype(int)
    return [*wrong[np.argsort(-sure, kind="stable")][:from_wrong].tolist(), *right[spread].tolist()]


def _tile(predictions: Predictions, row: int) -> Tile:
    predicted, path = int(predictions.predicted[row]), str(predictions.paths[row])
    scores = predictions.scores[row]
    value = float(scores[predicted])
    fractions = bool(np.all((scores >= 0) & (scores <= 1)))
    tile = {
        "path": path,
        "true": predictions.true_names(row),
        "predicted": predictions.classes[predicted],
        "score": f"{100 * value:.0f} %" if fractions else f"score {text_of(value)}",
        "right": bool(predictions.right[row]),
    }
    try:
        pictures = _pictures(path)
    # A damaged file can make a decoder raise anything; the report must come out all the same, and shows the reason.
    except Exception as error:
        return Tile(**tile, reason=str(error).replace(path, Path(path).name) or type(error).__name__)
    return Tile(**tile, moving=webp(pictures), still=webp(pictures[len(pictures) // 2 :][:1]))


def _pictures(path: str) -> list[Image.Image]:
    from videorl.video.reader import open_video

    with open_video(path) as video:
        span = min(video.num_frames, max(1, round(SECONDS * video.fps)))
        first = (video.num_frames - span) // 2
        indices = np.linspace(first, first + span - 1, min(FRAMES, span)).round().astype(int)
        frames = video.frames(indices.tolist()).numpy()  # [T, H, W, 3]
    height, width = frames.shape[1:3]
    scale = min(SHORT_SIDE / min(height, width), LONG_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return [Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0) for frame in frames]


def webp(pictures: list[Image.Image]) -> str:
    """A data URI of one picture, or of several that play in a loop."""
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": pictures[1:], "duration": MILLISECONDS, "loop": 0}
    pictures[0].save(buffer, "WEBP", quality=60, method=3, **(options if len(pictures) > 1 else {}))
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
