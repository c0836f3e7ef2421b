"""Looks at every file of a data set once: what cannot be read, what is odd, what is there twice, what has changed.

`read_csv` or `read_split` gives the rows of a split, broken ones aside; `check` looks at their files (see `files.py`)
and makes a `Report`, `text` turns it into lines, `write_clean` keeps the good rows.
"""

import inspect
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from videorl.clip import sampling
from videorl.data.labelled import Labelled, parse_line
from videorl.data.lines import read_lines, separator_of, split_label
from videorl.data.listed import VideoList, read_list
from videorl.data.paths import KEYS, Paths, Settings, check_root, shortened
from videorl.loading.pool import Workers
from videorl.prepare.files import Facts, Look, Progress, find_equal, scan, silent
from videorl.prepare.manifest import Manifest, difference, refuse_existing
from videorl.registry import Entry, UserError
from videorl.spec import Clip, Spec

KINDS = {
    "broken": "rows that are no path and label",
    "unreadable": "files that cannot be opened or decoded",
    "empty": "files without a byte",
    "short": "videos shorter than a clip",
    "odd": "videos that look wrong or are slow to read, and labels far above the others",
    "duplicate": "rows with the video of an earlier row",
    "conflict": "rows with one video and different labels",
    "leaked": "training videos that are evaluated on, too",
    "changed": "files that differ from the manifest",
    "unlisted": "files that the manifest does not hold",
}
# Rows with these are left out of a clean csv. Short and odd videos can be trained on, and unlisted ones may be new.
DROPPED = {"broken", "unreadable", "empty", "duplicate", "conflict", "leaked", "changed"}

MOST_CLASSES = 2**31  # where no config says how many there are
FLAGS = Settings(annotations="", root="--root", separator="--separator")  # what may be set where there is no config
GAP = 10  # classes in a row without rows, which a list of few rows may well have
LISTED = 10  # findings of one kind that are printed; the json report holds all


@dataclass(frozen=True)
class Finding:
    """Something wrong with one row: its kind (see KINDS), line number from 1, path, stage of reading, and reason."""

    kind: str
    line: int
    path: str
    reason: str
    stage: str = ""


# ----------------------------------------------------------------------------------------------------- rows of a split


@dataclass(frozen=True)
class Row:
    """One line of a csv: number from 1, path of its file from the video folder, class numbers, the whole text, path as
    it is written there, and in words which part of the file is meant, where it is not the whole.
    """

    line: int
    path: str
    labels: tuple[int, ...]
    text: str
    written: str
    part: str = ""


@dataclass
class Split:
    """The rows of one split. `file` is None where they come from no csv; `clip` is None where no config is known.

    `sampling`: how clips are taken, "dense", "strided" or "uniform" as in `sampling`.
    """

    name: str
    file: Path | None
    root: str
    rows: list[Row]
    broken: list[Finding] = field(default_factory=list)
    num_classes: int | None = None
    clip: Clip | None = None
    sampling: str = "dense"
    training: bool = False

    def path(self, row: Row) -> str:
        return os.path.normpath(os.path.join(self.root, row.path))


def read_csv(
    file: Path,
    root: str = "",
    separator: str = " ",
    num_classes: int = MOST_CLASSES,
    multi_label: bool = True,
    allow_outside: bool = True,
    settings: Settings = FLAGS,
) -> Split:
    """The split in a csv. `root`: folder its paths start from, by default its own. Raises `UserError`: no such csv."""
    lines = read_lines(file, settings)
    root = os.path.abspath(root or file.parent)
    check_root(root, file, settings)
    split, paths, separator = Split(file.stem, file, root, []), Paths(root, allow_outside), separator_of(separator)
    for number, text in lines:
        with _noted(split, number, text):
            path, labels = parse_line(text, separator, num_classes, multi_label, paths, settings)
            written, _ = split_label(text, separator)
            split.rows.append(Row(number, path, tuple(sorted(labels)), text, written))
    if not lines:
        raise UserError(f"{file} holds no samples; expected lines `path{separator}label`")
    return split


def read_video_list(file: Path, root: str, num_classes: int | None, allow_outside: bool) -> Split:
    """The split in a list of VideoMAE's (see `listed`). Raises `UserError`: no such list, a folder of frames in it."""
    root = os.path.abspath(root or file.parent)
    layout, lines = read_list(file, root, num_classes, allow_outside)
    split = Split(file.stem, file, root, [])
    for number, text in lines:
        with _noted(split, number, text):
            part, labels = layout.parse(text)
            if part.folder:
                raise UserError(
                    f"{file}:{number}: {shortened(layout.path(text))} is a folder of frames; only videos are checked"
                )
            known = tuple(labels) if num_classes is not None else ()
            split.rows.append(Row(number, part.path, known, text, layout.path(text), part.span))
    return split


@contextmanager
def _noted(split: Split, number: int, text: str) -> Iterator[None]:
    """Notes what is wrong with a line that is no row."""
    try:
        yield
    except ValueError as error:
        split.broken.append(Finding("broken", number, text[:80], str(error)))


def read_split(entry: Entry, spec: Spec, name: str, values: Mapping[str, object]) -> Split:
    """The split `name` of a registered data set with these values of its keys."""
    if inspect.isclass(entry.build) and issubclass(entry.build, Labelled):
        split = read_csv(
            Path(values["ANNOTATIONS"]) / f"{name}.csv",
            values["ROOT"],
            values["SEPARATOR"],
            values["NUM_CLASSES"],
            values["MULTI_LABEL"],
            spec.reading.allow_outside_root,
            KEYS,
        )
        split.num_classes, split.sampling = values["NUM_CLASSES"], "uniform" if entry.build.uniform else "dense"
    elif entry.build is VideoList:
        file, classes = Path(values["ANNOTATIONS"]) / f"{name}.csv", values["NUM_CLASSES"]
        root, allowed = values["ROOT"], spec.reading.allow_outside_root
        split = read_video_list(file, root, None if spec.masking.ratio else classes, allowed)
        split.num_classes, split.sampling = classes, "strided" if values["SAMPLING"] == "dense" else "uniform"
    else:
        data = entry(spec, name, values=values)
        split = Split(name, None, os.sep, [Row(i + 1, data.path(i), (), "", data.path(i)) for i in range(len(data))])
    split.clip, split.training = spec.clip, name == "train"
    return split


# ------------------------------------------------------------------------------------------------------------ report


@dataclass
class Section:
    """What was found out about one split. `labels` and `videos` are the statistics of its readable rows."""

    split: Split
    findings: list[Finding]
    labels: dict
    videos: dict

    @property
    def counts(self) -> dict[str, int]:
        found = Counter(finding.kind for finding in self.findings)
        return {kind: found[kind] for kind in KINDS}

    @property
    def good(self) -> list[Row]:
        """The rows of a clean csv."""
        bad = {finding.line for finding in self.findings if finding.kind in DROPPED}
        return [row for row in self.split.rows if row.line not in bad]


@dataclass
class Report:
    """All sections, and the facts by file."""

    sections: list[Section]
    files: dict[str, Facts]

    @property
    def clean(self) -> bool:
        return not any(section.findings for section in self.sections)

    def as_dict(self) -> dict:
        """For json: all counts, statistics and findings."""
        return {"clean": self.clean, "splits": {s.split.name: _section_dict(s) for s in self.sections}}


def _section_dict(section: Section) -> dict:
    split = section.split
    return {
        "csv": str(split.file) if split.file else None,
        "root": split.root,
        "rows": len(split.rows) + len(split.broken),
        "files": len({split.path(row) for row in split.rows}),
        "good_rows": len(section.good),
        "counts": section.counts,
        "labels": section.labels,
        "videos": section.videos,
        "findings": [asdict(finding) for finding in section.findings],
    }


def check(
    splits: Sequence[Split],
    look: Look,
    workers: Workers,
    progress: Progress = silent,
    manifest: Manifest | None = None,
) -> Report:
    """Looks at the files of all splits, each once, and compares them with `manifest` (see `manifest.read`)."""
    paths = list(dict.fromkeys(split.path(row) for split in splits for row in split.rows))
    files = dict(zip(paths, scan(paths, look, workers, progress), strict=True))
    find_equal(files, workers)
    base = base_of(splits)
    sections = []
    for split in splits:
        findings = [*split.broken, *_bad_files(split, files), *_odd_labels(split), *_repeated(split, files)]
        if split.training:
            findings += _leaked(split, [s for s in splits if not s.training], files)
        if manifest is not None:
            findings += _changed(split, files, manifest, base)
        findings.sort(key=lambda finding: (list(KINDS).index(finding.kind), finding.line))
        sections.append(Section(split, findings, _label_statistics(split), _video_statistics(split, files)))
    return Report(sections, files)


def base_of(splits: Sequence[Split]) -> str:
    """The folder that the paths in a manifest start from: the video folder, or what several have in common."""
    return os.path.commonpath([split.root for split in splits])


def _changed(split: Split, files: Mapping[str, Facts], manifest: Manifest, base: str) -> Iterator[Finding]:
    for row in split.rows:
        path = split.path(row)
        if found := difference(path, files[path], manifest, base):
            kind, reason = found
            yield Finding(kind, row.line, row.written, reason)


def _bad_files(split: Split, files: Mapping[str, Facts]) -> Iterator[Finding]:
    sides = [min(f.width, f.height) for f in map(files.get, map(split.path, split.rows)) if f.width]
    usual = float(np.median(sides)) if sides else 0.0
    for row in split.rows:
        facts = files[split.path(row)]
        if facts.size == 0:
            yield Finding("empty", row.line, row.written, "0 bytes", "open")
        elif facts.stage:
            where = f": {split.path(row)}" * (facts.size < 0 and row.written != split.path(row))
            yield Finding("unreadable", row.line, row.written, facts.reason + where, facts.stage)
        else:
            if reason := _too_short(facts, split):
                yield Finding("short", row.line, row.written, reason)
            if reasons := _oddities(facts, usual):
                yield Finding("odd", row.line, row.written, "; ".join(reasons))


def _too_short(facts: Facts, split: Split) -> str:
    """Why a video is too short, or nothing. Without a config: less than two frames or half a second."""
    if not facts.frames:
        return ""
    length, clip = f"{facts.frames} frames at {facts.fps:.4g} fps", split.clip
    if clip is None:
        return f"{length}, {facts.seconds:.2f} s" if facts.frames < 2 or facts.seconds < 0.5 else ""
    needed = clip.frames
    if split.sampling == "strided":
        needed *= clip.rate
    elif split.sampling == "dense":
        needed = int(sampling.clip_length(facts.fps, frames=clip.frames, rate=clip.rate, target_fps=clip.fps))
    return f"{length}, a clip spans {needed}" if facts.frames < needed else ""


def _oddities(facts: Facts, usual_side: float) -> list[str]:
    """What is wrong or slow with a video that can be read. `usual_side`: the median short side of its split."""
    side, size = min(facts.width, facts.height), f"{facts.width}x{facts.height}"
    tiny = 0 < side < 16
    tests = {
        f"{size} pixels": tiny,
        f"{size} pixels where a short side of {usual_side:.0f} is usual": side > 0
        and not tiny
        and not usual_side / 4 <= side <= usual_side * 4,
        f"{facts.frames} frames{facts.lost}": bool(facts.lost),
        f"{facts.fps:.4g} frames per second": facts.frames > 1 and not 5 <= facts.fps <= 240,
        f"uneven frame rate: up to {facts.gap:.1f} times the mean between two frames": facts.gap > 2.5,
        f"every read decodes from the start: one key frame in {facts.frames}": facts.keys == 1 and facts.frames > 300,
        "frames of one colour only": facts.blank,
    }
    return [reason for reason, true in tests.items() if true]


def _identity(path: str, files: Mapping[str, Facts]) -> str:
    """The same for files with the same contents, as far as they are known."""
    facts = files[path]
    return facts.sha256 if facts.sha256 and facts.size > 0 and not facts.stage else path


def _video(row: Row, split: Split, files: Mapping[str, Facts]) -> tuple[str, str]:
    """The same for rows with the same part of the same video."""
    return _identity(split.path(row), files), row.part


def _by_video(split: Split, files: Mapping[str, Facts]) -> dict[tuple[str, str], list[Row]]:
    groups = defaultdict(list)
    for row in split.rows:
        groups[_video(row, split, files)].append(row)
    return groups


def _repeated(split: Split, files: Mapping[str, Facts]) -> Iterator[Finding]:
    for rows in _by_video(split, files).values():
        first = rows[0]
        for row in rows:
            if other := next((r for r in rows if r.labels != row.labels), None):
                yield Finding("conflict", row.line, row.written, _conflict(row, other))
            elif row is not first:
                what = "file" if split.path(row) == split.path(first) else "contents"
                yield Finding("duplicate", row.line, row.written, f"same {what} as line {first.line} ({first.written})")


def _conflict(row: Row, other: Row) -> str:
    own, theirs = (",".join(map(str, r.labels)) for r in (row, other))
    return f"label {own}; the same video has label {theirs} in line {other.line} ({other.written})"


def _leaked(train: Split, others: Sequence[Split], files: Mapping[str, Facts]) -> Iterator[Finding]:
    known = _by_video(train, files)
    seen = set()
    for split in others:
        for row in split.rows:
            for own in known.get(_video(row, split, files), ()):
                if own.line not in seen:
                    yield Finding(
                        "leaked", own.line, own.written, f"also in {split.name}, line {row.line} ({row.written})"
                    )
                seen.add(own.line)


def _odd_labels(split: Split) -> Iterator[Finding]:
    """The first row of each class above a gap, where no config says how many classes there are.

    A gap: more classes without rows than there are classes with rows below it, and at least GAP.
    """
    first = {label: row for row in reversed(split.rows) for label in row.labels}
    classes = sorted(first) if split.num_classes is None else []
    for seen, (below, label) in enumerate(itertools.pairwise(classes), 1):
        if label - below > max(seen, GAP):
            reason = f"label {label}: the next lower one is {below}"
            yield Finding("odd", first[label].line, first[label].written, reason)


def _label_statistics(split: Split) -> dict:
    """Rows of each class, and what they come to; empty where there are no labels."""
    counts = Counter(label for row in split.rows for label in row.labels)
    if not counts:
        return {}
    classes = split.num_classes or max(counts) + 1
    (largest, most), *_, (smallest, fewest) = [*counts.most_common(), counts.most_common()[-1]]
    return {
        "classes": classes,
        "seen": len(counts),
        "fewest": {"class": smallest, "rows": fewest},
        "most": {"class": largest, "rows": most},
        "imbalance": round(most / fewest, 3),
        "first_without_rows": list(itertools.islice((c for c in range(classes) if c not in counts), LISTED)),
        "rows_by_class": {str(label): counts[label] for label in sorted(counts)},
    }


def _video_statistics(split: Split, files: Mapping[str, Facts]) -> dict:
    """Frame rates, lengths and sizes of the files that can be read."""
    good = [f for f in map(files.get, dict.fromkeys(map(split.path, split.rows))) if f.frames and not f.stage]
    if not good:
        return {}
    sizes = Counter(f"{f.width}x{f.height}" for f in good if f.width)
    return {
        "files": len(good),
        "fps": _spread([f.fps for f in good]),
        "uneven": sum(f.uneven for f in good),
        "frames": _spread([f.frames for f in good]),
        "seconds": _spread([f.seconds for f in good]),
        "hours": round(sum(f.seconds for f in good) / 3600, 3),
        "gigabytes": round(sum(f.size for f in good) / 1e9, 3),
        "sizes": dict(sizes.most_common()),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {name: round(float(of(values)), 3) for name, of in (("min", min), ("median", np.median), ("max", max))}


# ---------------------------------------------------------------------------------------------------- text for people


def text(report: Report) -> Iterator[str]:
    """The lines of the report: a table of counts, the first findings of each kind, statistics."""
    yield from itertools.chain(_table(report), *map(_details, report.sections))


def _table(report: Report) -> Iterator[str]:
    columns = [_section_dict(section) for section in report.sections]
    widths = [max(len(section.split.name), 8) for section in report.sections]

    def line(title: str, cells: Iterable, meaning: str = "") -> str:
        values = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        return f"{title:<11}{values}   {meaning}".rstrip()

    yield line("", [section.split.name for section in report.sections])
    yield line("rows", [column["rows"] for column in columns])
    yield line("files", [column["files"] for column in columns])
    for kind, meaning in KINDS.items():
        yield line(kind, [column["counts"][kind] for column in columns], meaning)


def _details(section: Section) -> Iterator[str]:
    name = section.split.name
    for kind, group in itertools.groupby(section.findings, key=lambda finding: finding.kind):
        found = list(group)
        yield f"{name}: {kind}"
        for f in found[:LISTED]:
            yield f"  line {f.line}: {f.path}: {f.stage}{': ' if f.stage else ''}{f.reason}"
        if len(found) > LISTED:
            yield f"  … and {len(found) - LISTED} more"
    if section.labels:
        yield f"{name}: {_labels_line(section.labels)}"
    if section.videos:
        yield from (f"{name}: {line}" for line in _video_lines(section.videos))


def _labels_line(labels: Mapping) -> str:
    fewest, most, without = labels["fewest"], labels["most"], labels["first_without_rows"]
    line = (
        f"labels: {labels['seen']} of {labels['classes']} classes; {fewest['rows']} (class {fewest['class']})"
        f" to {most['rows']} (class {most['class']}) rows each, imbalance {labels['imbalance']:.4g}"
    )
    more = ", …" if labels["classes"] - labels["seen"] > len(without) else ""
    return f"{line}; no rows of class {', '.join(map(str, without))}{more}" if without else line


def _video_lines(videos: Mapping) -> Iterator[str]:
    for title, key, unit in (("frame rate", "fps", "fps"), ("length", "seconds", "s")):
        spread = videos[key]
        line = f"{title}: {spread['min']:.4g} to {spread['max']:.4g} {unit}, median {spread['median']:.4g}"
        yield line + (f", {videos['hours']:.4g} hours in all" if key == "seconds" else "")
    if videos["uneven"]:
        yield f"frame rate: uneven in {videos['uneven']} of {videos['files']} files; dense clips go by time there"
    total = sum(videos["sizes"].values())
    if total:
        usual = [f"{size} ({100 * n / total:.0f} %)" for size, n in itertools.islice(videos["sizes"].items(), 5)]
        more = len(videos["sizes"]) - len(usual)
        yield f"size: {', '.join(usual)}{f' and {more} others' if more else ''}; {videos['gigabytes']:.4g} GB in all"


# ------------------------------------------------------------------------------------------------------------ clean csv


def write_clean(section: Section, file: Path) -> int:
    """Writes the good rows, as they stand in the original, to a new csv; returns how many there are."""
    refuse_existing(file)
    if section.split.file is None:
        raise UserError(f"{section.split.name} comes from no csv, so no clean one can be written")
    if not section.good:
        raise UserError(f"{section.split.name}: no row is good; {file} is not written")
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "x", encoding="utf-8") as out:
        out.writelines(row.text + "\n" for row in section.good)
    return len(section.good)
