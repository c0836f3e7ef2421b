"""Videos narrated from end to end: lines of JSON, subtitles, and a page to look for moments, of each video."""

import base64
import hashlib
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from videorl import atomic
from videorl.narrate.corpus import QUARANTINE, line
from videorl.prepare.chunks import Sources, stem_of
from videorl.registry import UserError
from videorl.report.pages import save, templates
from videorl.report.subtitles import srt, stamp, vtt

PICTURES = 1500  # on a page at most


def write(out: Path, rows: Iterable[dict], sources: Sources, unreadable: Mapping[str, str], notes: str) -> dict:
    """Writes NAME.jsonl, NAME.srt, NAME.vtt and NAME.html for each video, and `quarantine.jsonl`.

    `unreadable`: videos without rows, and why; `notes`: a line for the pages. Says how many `clips` of how many
    `videos`, how many `without words`, and how many `bad`. Clips without words have no subtitle.
    """
    bad = [{"video": name, "bad": reason} for name, reason in unreadable.items()]
    count = Counter({"videos": 0, "clips": 0, "without words": 0})
    for name, found in itertools.groupby(rows, key=lambda row: row["video"]):
        own = list(found)
        good = [row for row in own if "bad" not in row]
        bad += [row for row in own if "bad" in row]
        _write_video(out / stem_of(sources.parts[name]), good, sources.file(name), name, notes)
        count.update({"videos": 1, "clips": len(good), "without words": sum(not likeliest(row) for row in good)})
    atomic.write(out / QUARANTINE, b"".join(map(line, bad)))
    return {**count, "bad": len(bad)}


def check_names(sources: Sources) -> None:
    """Raises `UserError` for a video whose lines would stand where those of the bad ones do."""
    for name, part in sources.parts.items():
        if f"{stem_of(part)}.jsonl" == QUARANTINE:
            raise UserError(f"{name} would have its texts in {QUARANTINE}, which lists what cannot be read; rename it")


def _write_video(stem: Path, rows: Sequence[dict], path: str, name: str, notes: str) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    cues = [(start, end, likeliest(row)) for (start, end), row in zip(shown(rows), rows) if likeliest(row)]
    lines = (line({key: row[key] for key in row if key != "picture"}) for row in rows)
    atomic.write(Path(f"{stem}.jsonl"), b"".join(lines))
    atomic.write(Path(f"{stem}.srt"), srt(cues))
    atomic.write(Path(f"{stem}.vtt"), vtt(cues))
    link = quote(os.fsencode(os.path.relpath(path, stem.parent)))
    save(Path(f"{stem}.html"), _page(rows, name, link, notes))


def likeliest(row: dict) -> str:
    """The text of the largest log-likelihood, on one line."""
    best = max(range(len(row["texts"])), key=lambda k: row["log_likelihoods"][k])
    return " ".join(row["texts"][best].split())


def shown(rows: Sequence[dict]) -> list[tuple[float, float]]:
    """When the text of each clip is on the screen: as long as the clip, but where clips overlap to the middle of that.

    So no two texts are on at once.
    """
    starts, ends = [row["start"] for row in rows], [row["end"] for row in rows]
    for k in range(1, len(rows)):
        if ends[k - 1] > starts[k]:
            starts[k] = ends[k - 1] = (ends[k - 1] + starts[k]) / 2
    return list(zip(starts, ends))


def _page(rows: Sequence[dict], name: str, link: str, notes: str) -> str:
    """All windows of a video, of a long one each so-and-so-many-th with a picture."""
    here = Path(__file__).parent
    script = (here / "page.js").read_text(encoding="utf-8")
    template = templates(here).get_template("page.html.j2")
    return template.render(
        name=name,
        link=link,
        notes=notes,
        rows=rows,
        every=math.ceil(len(rows) / PICTURES),
        likeliest=likeliest,
        stamp=lambda seconds: stamp(seconds)[:8],
        length=max([row["end"] for row in rows], default=0),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
