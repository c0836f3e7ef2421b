"""One HTML file per run: what came out, how it went, where it errs, and how to run it again."""

import base64
import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from videorl.metrics.proportion import hits_of
from videorl.report.captions import nearest_and_farthest
from videorl.report.classes import classes, interval, trained_on
from videorl.report.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, charts
from videorl.report.gallery import CLIPS, LISTED, gallery
from videorl.report.pages import HERE, save, templates
from videorl.report.predictions import Reconstructions
from videorl.report.read import NO_METRICS, RunFolder, metric, number, one_line, percent, read, text_of
from videorl.report.reconstructions import strip

QUARANTINE_ROWS = 200
CLASS_ROWS = 40  # of a training set's classes
BOX = {
    **{"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}
}


def write(output_dir: Path) -> Path:
    """Writes OUTPUT_DIR/report.html and returns its path.

    The page is a pure function of the files of the run (run.json, metrics.jsonl, results.json, predictions/*.npz,
    quarantine.jsonl) and of the videos that the predictions point to. It holds everything itself: it opens without a
    network, and loads nothing. A file that is absent or damaged costs its section, and the page says so.
    """
    output_dir = Path(output_dir)
    target = output_dir / "report.html"
    save(target, page(read(output_dir)))
    return target


@dataclass(frozen=True)
class Section:
    """A part of the page: `content` gives the names of its template sections/NAME.html.j2, or None where the run has
    nothing of the kind."""

    name: str
    title: str
    content: Callable[[RunFolder], dict | None]


def page(folder: RunFolder) -> str:
    """The report as HTML; the template escapes all text, and only our own style and script may run."""
    environment = templates()
    environment.filters |= {"percent": percent, "metric": metric, "text_of": text_of, "data": _data}
    script = (HERE / "script.js").read_text(encoding="utf-8")
    drawn = {section: _drawn(environment, section, folder) for section in SECTIONS}
    return environment.get_template("page.html.j2").render(
        folder=folder,
        status=_status(folder),
        sections={section: html for section, html in drawn.items() if html},
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _drawn(environment: jinja2.Environment, section: Section, folder: RunFolder) -> Markup:
    try:
        content = section.content(folder)
        if content is None:
            return Markup()
        return Markup(environment.get_template(f"sections/{section.name}.html.j2").render(folder=folder, **content))
    # Damage that no check has foreseen may raise anything here; the other sections must come out all the same.
    except Exception as error:
        reason = f"This section cannot be made: {type(error).__name__}: {one_line(error)}"
        return Markup('<p class="absent">{}</p>').format(reason)


def _data(value) -> Markup:
    """JSON for a <script> element: no text in it can close the element or open a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _status(folder: RunFolder) -> str:
    started, finished = folder.run.get("started"), folder.run.get("finished")
    steps = f"last logged step {folder.train[-1]['step']}" if folder.train else ""
    if not started:
        return steps
    if not finished:
        return ", ".join(filter(None, [f"not finished; started {started}", steps]))
    return ", ".join(filter(None, [f"finished {finished} after {finished - started}", steps]))


# ---- sections --------------------------------------------------------------------------------------------------------


def _results(folder: RunFolder) -> dict:
    """Final numbers by evaluation; of a run without them the latest of training, named as such."""
    protocols, found = folder.results.get("protocol", {}), folder.results.get("evals", {})
    if not found:
        found = {name: lines[-1] for name, lines in folder.evals.items()}
        protocols = {name: f"Not final: measured in training at step {row['step']}." for name, row in found.items()}
    rows = [
        {
            "name": name,
            "protocol": protocols.get(name, ""),
            "n": text_of(row.get("n")),
            "of": text_of(row.get("of")),
            "part": _part(row.get("n"), row.get("of")),
            "short": row.get("n") != row.get("of"),
            "metrics": [(k, v, _interval(k, v, row.get("n"))) for k, v in row.items() if k not in NO_METRICS],
        }
        for name, row in found.items()
    ]
    return {"results": rows}


def _part(n, of) -> str:
    return f", {100 * n / of:.1f} %" if number(n) and number(of) and 0 <= n < of else ""


def _interval(name: str, value, n) -> str:
    hits = hits_of(name, value, n)
    return "" if hits is None else interval(hits, n)


def _curves(folder: RunFolder) -> dict:
    return {"charts": charts(folder), "box": BOX}


def _classes(folder: RunFolder) -> dict | None:
    trained = [dict(one.counts) for one in trained_on(folder)]
    shown = [classes(p, next((t for t in trained if t.keys() == {*p.classes}), None)) for p in folder.predictions]
    return {"classes": shown} if _has_scores(folder) else None


def _clips(folder: RunFolder) -> dict | None:
    tiles = max(4, CLIPS // max(1, len(folder.predictions)))
    galleries = [gallery(p, tiles) for p in folder.predictions[: CLIPS // 4]]
    return {"galleries": galleries, "listed": LISTED} if _has_scores(folder) else None


def _has_scores(folder: RunFolder) -> bool:
    """Whether there are predictions, or some are missing: not where a run has reconstructions or captions alone."""
    unread = any(name.startswith("predictions") for name in folder.absent)
    return bool(folder.predictions or not (folder.reconstructions or folder.captions) or unread)


def _reconstructions(folder: RunFolder) -> dict | None:
    return (
        {"reconstructions": [(r.name, _strips(r)) for r in folder.reconstructions]} if folder.reconstructions else None
    )


def _captions(folder: RunFolder) -> dict | None:
    found = [(one.name, nearest_and_farthest(one)) for one in folder.captions]
    return {"captions": found} if found else None


def _strips(found: Reconstructions) -> list:
    return [
        strip(Path(path).name, pictures, [("squared error", text_of(mse)), ("of mean colours", text_of(baseline))])
        for path, pictures, (mse, baseline) in zip(found.paths, found.pictures, found.errors)
    ]


def _quality(folder: RunFolder) -> dict:
    bad = sorted(folder.quarantine, key=lambda row: (-_count(row), str(row.get("path"))))
    return {
        "quarantine": bad[:QUARANTINE_ROWS],
        "quarantined": len(bad),
        "nothing_bad": _nothing_bad(folder),
        "data": folder.run.get("data", {}),
        "trained": trained_on(folder),
        "class_rows": CLASS_ROWS,
    }


def _nothing_bad(folder: RunFolder) -> str:
    """What it means that there is no list of bad videos, which a run writes with the first of them."""
    evals = [*folder.results.get("evals", {}).values(), *(lines[-1] for lines in folder.evals.values())]
    if not folder.train and not evals:
        return ""
    if any(row.get("n") != row.get("of") for row in evals):
        return "quarantine.jsonl is not in the folder of this run, though not every clip was counted."
    return "Every video could be read."


def _count(row: dict) -> int:
    return row["count"] if isinstance(row.get("count"), int) else 1


def _rerun(folder: RunFolder) -> dict:
    run, git = folder.run, folder.run.get("git", {})
    argv = [str(word) for word in run.get("argv", [])]
    commit = str(git.get("commit") or "")
    facts = [("Device", run.get("device")), ("Host", run.get("host"))]
    facts += [("Commit", commit and commit + " with uncommitted changes" * bool(git.get("dirty")))]
    facts += [("Started", run.get("started")), ("Finished", run.get("finished"))]
    facts += [*run.get("versions", {}).items()]
    facts += [(f"Batch: {name}", value) for name, value in run.get("batch", {}).items()]
    return {
        "command": shlex.join(["python", *argv] if argv and argv[0].endswith(".py") else argv),
        "dirty": git.get("dirty"),
        "facts": [(name, text_of(value)) for name, value in facts if value not in (None, "")],
        "config": run.get("config"),
    }


SECTIONS = (
    Section("results", "Results", _results),
    Section("curves", "Curves", _curves),
    Section("classes", "Classes", _classes),
    Section("clips", "Clips", _clips),
    Section("reconstructions", "Reconstructions", _reconstructions),
    Section("captions", "Captions", _captions),
    Section("quality", "Data quality", _quality),
    Section("rerun", "Rerun", _rerun),
)
