"""One HTML file per run: what came out, how it went, where it errs, and how to run it again."""

import base64
import datetime
import hashlib
import json
import os
import shlex
from pathlib import Path

from markupsafe import Markup

from videorl.report.classes import classes
from videorl.report.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, charts
from videorl.report.gallery import CLIPS, gallery
from videorl.report.read import Reconstructions, RunFolder, metric, number, percent, read, text_of
from videorl.report.reconstructions import HERE, strip, templates

QUARANTINE_ROWS = 200


def write(output_dir: Path) -> Path:
    """Writes OUTPUT_DIR/report.html and returns its path.

    The page is a pure function of the files of the run (run.json, metrics.jsonl, results.json, predictions/*.npz,
    quarantine.jsonl) and of the videos that the predictions point to. It holds everything itself: it opens without a
    network, and loads nothing. A file that is absent or cut off costs its section, and the page says so.
    """
    output_dir = Path(output_dir)
    target, draft = output_dir / "report.html", output_dir / "report.html.part"
    # Paths of files may hold bytes that are no UTF-8, which Python carries as lone surrogates.
    draft.write_bytes(page(read(output_dir)).encode("utf-8", "backslashreplace"))
    os.replace(draft, target)
    return target


def page(folder: RunFolder) -> str:
    """The report as HTML; the template escapes all text, and only our own style and script may run."""
    environment = templates()
    environment.filters |= {"percent": percent, "metric": metric, "text_of": text_of, "data": _data}
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    clips = max(4, CLIPS // max(1, len(folder.predictions)))
    bad = sorted(folder.quarantine, key=lambda row: (-_count(row), str(row.get("path"))))
    return environment.get_template("page.html.j2").render(
        folder=folder,
        run=folder.run,
        results=_results(folder),
        charts=charts(folder),
        box={
            "width": WIDTH,
            "height": HEIGHT,
            "left": LEFT,
            "right": WIDTH - RIGHT,
            "top": TOP,
            "bottom": HEIGHT - BOTTOM,
        },
        classes=[classes(p) for p in folder.predictions],
        galleries=[(p.name, gallery(p, clips)) for p in folder.predictions[: CLIPS // 4]],
        scored=bool(folder.predictions or not folder.reconstructions or _unread_predictions(folder)),
        reconstructions=[(r.name, _strips(r)) for r in folder.reconstructions],
        quarantine=bad[:QUARANTINE_ROWS],
        quarantined=len(bad),
        status=_status(folder),
        facts=_facts(folder.run),
        command=_command(folder.run),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _unread_predictions(folder: RunFolder) -> list[str]:
    return [name for name in folder.absent if name.startswith("predictions")]


def _strips(found: Reconstructions) -> list:
    return [
        strip(Path(path).name, pictures, [("squared error", text_of(mse)), ("of mean colours", text_of(baseline))])
        for path, pictures, (mse, baseline) in zip(found.paths, found.pictures, found.errors)
    ]


def _data(value) -> Markup:
    """JSON for a <script> element: no text in it can close the element or open a comment."""
    return Markup(json.dumps(value).replace("<", "\\u003c"))


def _count(row: dict) -> int:
    return row["count"] if isinstance(row.get("count"), int) else 1


def _results(folder: RunFolder) -> list[dict]:
    """Final numbers by evaluation; of a run without them the latest of training, named as such."""
    protocols, found = folder.results.get("protocol") or {}, folder.results.get("evals") or {}
    if not found:
        found = {name: lines[-1] for name, lines in folder.evals.items()}
        protocols = {name: f"Not final: measured in training at step {row['step']}." for name, row in found.items()}
    return [
        {
            "name": name,
            "protocol": protocols.get(name, ""),
            "n": text_of(row.get("n")),
            "of": text_of(row.get("of")),
            "part": _part(row.get("n"), row.get("of")),
            "short": row.get("n") != row.get("of"),
            "metrics": {k: v for k, v in row.items() if k not in ("kind", "name", "step", "epoch", "n", "of", "time")},
        }
        for name, row in found.items()
    ]


def _part(n, of) -> str:
    return f", {100 * n / of:.1f} %" if number(n) and number(of) and n < of else ""


def _status(folder: RunFolder) -> str:
    started, finished = folder.run.get("started"), folder.run.get("finished")
    steps = f"last logged step {folder.train[-1]['step']}" if folder.train else ""
    if not started:
        return steps
    if not finished:
        return ", ".join(filter(None, [f"not finished; started {_time(started)}", steps]))
    return ", ".join(filter(None, [f"finished {_time(finished)} after {_time(finished) - _time(started)}", steps]))


def _time(iso: str) -> datetime.datetime:
    # Python 3.10 does not know the Z of UTC.
    return datetime.datetime.fromisoformat(iso.replace("Z", "+00:00")).replace(microsecond=0)


def _facts(run: dict) -> list[tuple[str, str]]:
    git = run.get("git") or {}
    commit = str(git.get("commit") or "")
    state = " with uncommitted changes" if git.get("dirty") else ""
    facts = [("Device", run.get("device")), ("Host", run.get("host")), ("Commit", commit and commit + state)]
    facts += [("Started", run.get("started")), ("Finished", run.get("finished"))]
    facts += [(name, version) for name, version in (run.get("versions") or {}).items()]
    facts += [(f"Batch: {name}", value) for name, value in (run.get("batch") or {}).items()]
    return [(name, text_of(value)) for name, value in facts if value not in (None, "")]


def _command(run: dict) -> str:
    argv = [str(word) for word in run.get("argv") or []]
    return shlex.join(["python", *argv] if argv and argv[0].endswith(".py") else argv)
