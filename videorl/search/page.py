"""The result of a search as one HTML file that loads nothing: the clips that were found play in it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup
from PIL import Image

from videorl import report
from videorl.registry import UserError
from videorl.report.gallery import FRAMES, webp
from videorl.search import Hit
from videorl.video.errors import VideoError
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
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    here = Path(__file__).parent
    text = environment.from_string((here / "page.html.j2").read_text(encoding="utf-8")).render(
        query=query,
        tiles=tiles,
        notes=notes,
        unreadable=unreadable,
        style=Markup((report.HERE / "style.css").read_text(encoding="utf-8")),
    )
    draft = file.with_name(file.name + ".part")
    try:
        # Names of files may hold bytes that are no UTF-8, which Python carries as lone surrogates.
        draft.write_bytes(text.encode("utf-8", "backslashreplace"))
        os.replace(draft, file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}; name another file with --out") from None


def tile(folder: Path, hit: Hit, max_pixels: int) -> Tile:
    """What the model saw of a clip: the central square."""
    path = Path(os.path.abspath(folder / hit.path))
    link = f"{path.as_uri()}#t={hit.start:.1f},{hit.end:.1f}"
    try:
        with Spans(path, max_pixels=max_pixels) as video:
            frames = video.clip(hit.start, frames=FRAMES, fps=FRAMES / (hit.end - hit.start), crop=Crop(SIDE))
    except VideoError as error:
        return Tile(hit, link, reason=error.reason)
    pictures = [Image.fromarray(frame) for frame in frames.permute(0, 2, 3, 1).numpy()]
    return Tile(hit, link, webp(pictures), webp(pictures[FRAMES // 2 :][:1]))
