"""The clips that are narrated: the moments of a list, or all windows of videos.

Both are data sets whose `facts(i)` lists what is known of each of the `count(i)` clips of sample i before it is read:
its video and its seconds, and its `number`, on which what is drawn for it depends.
"""

import os
from collections.abc import Mapping, Sequence

import torch
from PIL import Image

from videorl.data.moments import Moments, Shot
from videorl.data.narrations import Narrations
from videorl.features.windows import Block, Blocks, Windows
from videorl.report.gallery import webp
from videorl.spec import Spec
from videorl.video.errors import VideoError

THUMBNAIL = 96  # pixels


class Rows(Moments):
    """The moments of a list of narrations; what people said of them, or whether they did, does not matter.

    Raises `VideoError`, beside those of `Moments`, where a moment begins after the end of its video.
    """

    def __init__(self, spec: Spec, rows: Narrations, root: str, *, seconds: int, rule: str):
        self.root = root
        super().__init__(spec, "test", rows, seconds=seconds, rule=rule)

    def path(self, i: int) -> str:
        return os.path.join(self.root, f"{self.rows.name(i)}.mp4")

    def moment(self, i: int) -> tuple[float, float]:
        row = self.rows[i]
        return row.start, row.end

    def count(self, i: int) -> int:
        return 1

    def facts(self, i: int) -> list[dict]:
        start, end = self.moment(i)
        return [{"number": i, "video": self.rows.name(i), "start": start, "end": end}]

    def _open(self, i: int) -> Shot:
        shot, (start, _) = super()._open(i), self.moment(i)
        if not shot.reaches(int((start - shot.start) * shot.fps)):
            with shot:
                ends = shot.start + shot.num_frames / shot.fps
                raise VideoError(self.path(i), "index", f"row {i} begins at {start:g} s, its video ends at {ends:g} s")
        return shot

    def _notes(self, i: int, k: int) -> dict[str, torch.Tensor]:
        return {}


class Stretches(Blocks):
    """Blocks of windows, of each of which there is also a `picture`: its middle frame, small, as a data URI.

    `names` and `lengths`: of each block's video, by path.
    """

    def __init__(self, blocks: Sequence[Block], windows: Windows, max_pixels: int, names: Mapping, lengths: Mapping):
        super().__init__(blocks, windows, max_pixels)
        self.names, self.lengths = names, lengths

    def count(self, i: int) -> int:
        return len(self.blocks[i])

    def facts(self, i: int) -> list[dict]:
        block = self.blocks[i]
        name, length = self.names[block.path], self.lengths[block.path]
        spans = self.windows.spans(block.numbers, length).tolist()
        return [
            {"number": number, "video": name, "start": round(start, 3), "end": round(end, 3)}
            for number, (start, end) in zip(block.numbers.tolist(), spans)
        ]

    def __getitem__(self, i: int) -> list[dict]:
        return [{**clip, "picture": _thumbnail(clip["video"])} for clip in super().__getitem__(i)]


def _thumbnail(clip: torch.Tensor) -> str:
    middle = clip[len(clip) // 2].permute(1, 2, 0).numpy()
    return webp([Image.fromarray(middle).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)])
