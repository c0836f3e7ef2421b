"""The result of a search as one HTML file that loads nothing: the clips that were found play in it."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from videorl.features.each import by_index, in_batches, read_each
from videorl.loading.pool import Loader
from videorl.registry import UserError
from videorl.report.gallery import FRAMES, webp
from videorl.report.pages import save, templates
from videorl.search import Hit
from videorl.video.spans import Crop, Spans

SIDE = 168  # pixels


@dataclass(frozen=True)
class Tile:
    """A clip as data URIs; where no picture can be made, `reason` says why."""

    hit: Hit
    link: str  # to the file on this machine, at the second where the clip begins
    moving: str = ""
    still: str = ""
    reason: str = ""


def write(
    file: Path, query: str, tiles: Sequence[Tile], *, notes: Sequence[str], unreadable: Mapping[str, str]
) -> None:
    """Writes the page. `notes`: lines below the query; `unreadable`: path -> reason. Raises `UserError`."""
    template = templates(Path(__file__).parent).get_template("page.html.j2")
    text = template.render(query=query, tiles=tiles, notes=notes, unreadable=unreadable)
    try:
        save(file, text)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}; name another file with --out") from None


class Tiles:
    """The tile of each hit, as a data set: what the model saw of a clip, the central square."""

    split, epoch = "test", 0

    def __init__(self, folder: Path, hits: Sequence[Hit], max_pixels: int):
        self.folder, self.hits, self.max_pixels = folder, hits, max_pixels

    def __len__(self) -> int:
        return len(self.hits)

    def path(self, i: int) -> str:
        return os.path.abspath(self.folder / self.hits[i].path)

    def bare(self, i: int, reason: str = "") -> Tile:
        hit = self.hits[i]
        return Tile(hit, f"{Path(self.path(i)).as_uri()}#t={hit.start:.1f},{hit.end:.1f}", reason=reason)

    def __getitem__(self, i: int) -> dict:
        hit = self.hits[i]
        with Spans(self.path(i), max_pixels=self.max_pixels) as video:
            frames = video.clip(hit.start, frames=FRAMES, fps=FRAMES / (hit.end - hit.start), crop=Crop(SIDE))
        pictures = [Image.fromarray(frame) for frame in frames.permute(0, 2, 3, 1).numpy()]
        tile = replace(self.bare(i), moving=webp(pictures), still=webp(pictures[FRAMES // 2 :][:1]))
        return {"tile": tile, "index": torch.tensor(i)}


def make_tiles(
    folder: Path, hits: Sequence[Hit], make_loader: Callable[[Tiles], Loader], *, max_pixels: int
) -> list[Tile]:
    """The tiles of all hits, also of those whose pictures cannot be made. `make_loader` as in `embed.fill`."""
    data = Tiles(folder, hits, max_pixels)
    with contextlib.closing(make_loader(data)) as loader:
        singles = in_batches(len(hits), 1)
        found = read_each(loader, singles, lambda batch: by_index(batch, batch["tile"]), "making pictures", "clip")
        return [data.bare(i, tile) if isinstance(tile, str) else tile for i, tile in enumerate(found)]
