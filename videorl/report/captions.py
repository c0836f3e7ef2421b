"""What a narrator wrote of clips, beside what people said: those where the two are nearest, and farthest."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from videorl.report.gallery import FRAMES, link, thumbnails, webp
from videorl.report.predictions import Captions
from videorl.report.read import one_line, text_of

SHOWN = 8  # clips of each kind


@dataclass(frozen=True)
class Row:
    """A clip with what was written and said; where no picture can be made, `reason` says why."""

    path: str
    link: str
    when: str
    text: str
    references: list[str]
    score: str
    moving: str = ""
    still: str = ""
    reason: str = ""


def nearest_and_farthest(captions: Captions, shown: int = SHOWN) -> list[tuple[str, list[Row]]]:
    """By CIDEr-D; clips of the same score by their order. Half of a few clips are of each kind."""
    order = np.argsort(-captions.scores, kind="stable")
    count = min(shown, -(-len(order) // 2))
    kinds = {"nearest to what people said": order[:count], "farthest": order[count:][::-1][:shown]}
    return [(kind, [_row(captions, int(k)) for k in places]) for kind, places in kinds.items()]


def _row(captions: Captions, k: int) -> Row:
    path, (start, end) = str(captions.paths[k]), captions.moments[k].tolist()
    row = {
        "path": path,
        "link": link(path),
        "when": f"{text_of(start)} to {text_of(end)} s",
        "text": str(captions.texts[k]),
        "references": captions.references[k],
        "score": text_of(float(captions.scores[k])),
    }
    try:
        pictures = _pictures(path, captions.seconds, start, end)
    # As in the gallery: the report must come out whatever a decoder raises.
    except Exception as error:
        return Row(**row, reason=one_line(error).replace(path, Path(path).name))
    return Row(**row, moving=webp(pictures), still=webp(pictures[len(pictures) // 2 :][:1]))


def _pictures(path: str, seconds: int, start: float, end: float) -> list[Image.Image]:
    """Evenly over the moment."""
    from videorl.spec import Reading
    from videorl.video.chunked import ChunkedVideo

    with ChunkedVideo(path, seconds, start, Reading(allow_outside_root=True)) as video:
        first, last = (round((second - video.start) * video.fps) for second in (start, end))
        last = last if video.reaches(last) else video.num_frames - 1
        return thumbnails(video, np.unique(np.linspace(min(first, last), last, FRAMES).round().astype(int)))
