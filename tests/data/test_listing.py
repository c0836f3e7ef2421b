"""Lists as columns: what is told of many lines at once is what the reader of one line says, and is kept for all."""

import json
import logging
import multiprocessing
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from videorl.data import columns, listing
from videorl.data.dataset import Records
from videorl.data.labelled import Csv, Kinetics, read_csv
from videorl.data.lines import parse_lines
from videorl.data.listed import Lists, Part, Parts, read_list
from videorl.data.paths import Paths
from videorl.registry import UserError
from videorl.spec import Clip, Reading, Spec

CLASSES = 12

# What may stand in a line, most of it odd.
NAMES = [
    "a.mp4",
    "b/c.webm",
    "été/日.mkv",
    "my clip.avi",
    "x..y.mp4",
    "b\\c.mp4",
    "there",
    "on disk 3",
    "v.m2ts",
    "w.TS",
]
NAMES += ["q.mp4.", "..mp4", "c/.mp4", "deep/" * 9 + "long name of a video.mp4", '"in quotes.mp4"', "~a.mp4", "12"]
BAD = ["../up.mp4", "/abs.mp4", "http://x/a.mp4", "C:/a.mp4", "a\0.mp4", "a\u3000", "frames", "\u3000b.mp4", "~/h.mp4"]
NUMBERS = ["0", "7", "007", "11", "12345678", "123456789", "-1", "-0", "", "1.0", "x", "٣", '"3"', "1,3", " 4", "1_0"]


def text_of(rng: random.Random, layout: list[str], mark: str, bad: float) -> str:
    """A list in a layout of columns, of which the share `bad` may be wrong."""
    lines = []
    for _ in range(rng.randrange(1, 40)):
        sane = {"path": rng.choice(NAMES[:4] if rng.random() < 0.6 else NAMES), "source": "K400", "total": "-1"}
        first = rng.randrange(5)
        sane |= {"label": str(len(sane["path"]) % 3), "start": "0", "sframe": str(first), "eframe": str(first + 3)}
        cells = [sane.get(name, "99") for name in layout]
        if rng.random() < bad:
            k = rng.randrange(len(layout))
            cells[k] = rng.choice(BAD if layout[k] == "path" else NUMBERS)
        line = mark.join(cells)
        lines.append(rng.choice([line] * 9 + [f" {line}", f"{line} ", "", "  ", line.replace(mark, mark * 2)]))
    end = rng.choice(["\n", "\n", "\r\n", "\r"])
    return rng.choice(["", "\ufeff"]) + end.join(lines) + rng.choice(["", end])


def outcome(of):
    try:
        return of()
    except UserError as error:
        return str(error)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("there.mp4", "on disk 3", "frames/1.jpg"):
        (tmp_path / "v" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "v" / name).touch()
    monkeypatch.setattr(listing.plain, "SIZE", 250)  # several blocks
    return tmp_path


def test_csvs_read_as_they_read_line_by_line(folder):
    rng, file, root, refused = random.Random(0), folder / "train.csv", str(folder / "v"), 0
    for trial in range(150):
        separator, outside, lists = rng.choice([" ", ",", "\t", ", "]), rng.random() < 0.5, rng.random() < 0.5
        text = text_of(rng, ["path", "label"], separator if rng.random() < 0.9 else " ", 0.1 * (trial % 2))
        file.write_text(text, newline="")
        expected = outcome(lambda: read_csv(file, root, separator, CLASSES, lists, outside))  # noqa: B023
        reader = Csv(Paths(root, outside), separator, CLASSES, lists, several=lists)
        found = outcome(lambda: Records.of(listing.read(file, reader), root, num_classes=CLASSES * reader.several))  # noqa: B023
        if isinstance(expected, str):
            refused += 1
            assert found == expected
        else:
            assert found.paths.tolist() == [path.encode() for path, _ in expected]
            labels = [np.flatnonzero(row).tolist() for row in found.labels] if lists else found.labels.tolist()
            assert labels == [sorted({*numbers}) if lists else numbers[0] for _, numbers in expected]
    assert 30 < refused < 110


LAYOUTS = ["path label", "path start total", "path label sframe eframe", "source path label sframe eframe nframes"]


def test_lists_of_videomae_read_as_they_read_line_by_line(folder):
    rng, file, root, refused = random.Random(1), folder / "train.csv", str(folder / "v"), 0
    for trial in range(150):
        file.write_text(
            text_of(rng, LAYOUTS[trial % 4].split(), rng.choice(" ,\t"), 0.1 * (trial % 3 == 0)), newline=""
        )
        for classes, outside in ((CLASSES, False), (None, True)):

            def line_by_line():
                layout, lines = read_list(file, root, classes, outside)  # noqa: B023
                return parse_lines(file, lines, layout.parse, len(lines))

            expected = outcome(line_by_line)
            found = outcome(lambda: Parts.of(listing.read(file, Lists(Paths(root, outside), classes)), root))  # noqa: B023
            if isinstance(expected, str):
                refused += 1
                assert found == expected
            else:
                rows = zip(found.paths, found.first.tolist(), found.stop.tolist(), found.folder.tolist())
                assert [Part(path.decode(), *rest) for path, *rest in rows] == [part for part, _ in expected]
                assert found.labels.tolist() == [label for _, (label,) in expected]
    assert 60 < refused < 220


def test_most_lines_are_plain(folder, monkeypatch):
    """Else it would be right, and slow."""
    monkeypatch.setattr(Csv, "parse", None)
    file = folder / "train.csv"
    file.write_text("a b/é.mp4 3\r\nc.TS 0\n2020:01.mkv 11\n" * 9)
    reader = Csv(Paths(str(folder), False), " ", CLASSES, False, several=False)
    assert Records.of(listing.read(file, reader), "").paths[1] == b"c.TS"
    monkeypatch.setattr(Lists, "parse", None)
    file.write_text("/a b.mp4 0 -1\n/d.avi 7 -10\n" * 9)
    assert len(listing.read(file, Lists(Paths(str(folder), True), None))) == 18


# --- kept in a file --------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A list that is long enough to be kept, and a function that makes its data set."""
    monkeypatch.setattr(listing, "LEAST", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "videos").mkdir()
    file = tmp_path / "lists" / "train.csv"
    file.parent.mkdir()
    file.write_text("".join(f"v{i}.mp4 {i % 5}\n" for i in range(100)))
    return file


def data_of(file: Path, **changes):
    values = {"num_classes": 5, "root": str(file.parents[1] / "videos"), "separator": " ", "class_names": ""}
    values |= {"multi_label": False, "offset": False, "val_skip": 1, "annotations": str(file.parent)}
    return Kinetics(Spec(Clip(4, 2, 32, 32), reading=Reading()), "train", **{**values, **changes})


def samples(data) -> tuple:
    return data.records.paths.tolist(), data.records.labels.tolist(), data.fingerprint


@pytest.fixture
def parses(monkeypatch):
    """How often a list was parsed."""
    calls = []
    of = listing._parsed
    monkeypatch.setattr(listing, "_parsed", lambda file, reader: (calls.append(file), of(file, reader))[1])
    return calls


def test_a_list_is_parsed_once_until_it_changes(kept, parses):
    first = samples(data_of(kept))
    assert samples(data_of(kept)) == first
    assert len(parses) == 1
    text = kept.read_text()
    kept.write_text(text.replace("v7.mp4 2", "v7.mp4 3"))  # of the same size
    changed = data_of(kept)
    assert (changed.records.labels[7], len(parses)) == (3, 2)
    assert changed.fingerprint != first[2]
    kept.write_text(text)
    assert samples(data_of(kept)) == first
    with pytest.raises(UserError, match=r"train\.csv:5: label 4 is not in 0 … 3.* \(and 15 more lines\)"):
        data_of(kept, num_classes=4)


def test_what_is_kept_is_what_is_read_into_memory(kept, monkeypatch):
    for changes in ({}, {"multi_label": True}):
        twice = [samples(data_of(kept, **changes)) for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(listing, "LEAST", 10**9)
            assert twice == [samples(data_of(kept, **changes))] * 2


def test_a_list_is_parsed_again_when_a_folder_that_tells_its_meaning_changes(kept, parses):
    kept.write_text("clip 1\nother.mp4 2\n")
    videos = kept.parents[1] / "videos"
    assert data_of(kept).records.paths[0] == b"clip"
    os.utime(videos, ns=(1, 1))  # long ago
    assert [data_of(kept).records.paths[0] for _ in range(2)] == [b"clip"] * 2
    assert len(parses) == 2, "not kept the first time, for the folder had just been made"
    (videos / "clip.mkv").touch()
    assert data_of(kept).records.paths[0] == b"clip.mkv"


def test_a_folder_that_cannot_be_written_has_its_columns_elsewhere(kept, parses, monkeypatch, caplog):
    real, closed = listing.tempfile.TemporaryFile, {kept.parent}

    def temporary(dir):
        if dir in closed:
            raise PermissionError(13, "Permission denied")
        return real(dir=dir)

    monkeypatch.setattr(listing.tempfile, "TemporaryFile", temporary)
    first = samples(data_of(kept))
    assert [samples(data_of(kept)), len(parses)] == [first, 1]
    assert [path.name for path in kept.parent.iterdir()] == ["train.csv"]
    cache = kept.parents[1] / "cache" / "videorl" / "lists"
    for path in cache.iterdir():
        path.unlink()
    closed.add(cache)
    assert samples(data_of(kept)) == first
    assert "train.csv: parsed into the memory of each process, for neither" in caplog.text


def test_a_full_disk_is_no_end(kept, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(columns, "_append", full)
    assert len(data_of(kept)) == 100
    assert "cannot be written: No space left on device" in caplog.text
    assert [path.name for path in kept.parent.iterdir()] == ["train.csv"]


def test_records_of_a_kept_list_travel_as_the_name_of_its_file(kept):
    data = data_of(kept)
    message = pickle.dumps(data)
    assert b"v77.mp4" not in message
    assert samples(pickle.loads(message)) == samples(data)
    assert samples(pickle.loads(pickle.dumps(data_of(kept, multi_label=True)))) == samples(
        data_of(kept, multi_label=True)
    )
    kept.write_text("a.mp4 1\n")
    data_of(kept)
    with pytest.raises(UserError, match=r"the list that it was made of has changed since the run began"):
        pickle.loads(message)


def test_columns_that_others_made_name_no_file_outside(kept):
    made = Path(data_of(kept).records.origin[0])
    made.write_bytes(made.read_bytes().replace(b"v7.mp4", b"/7.mp4"))
    data = data_of(kept)
    assert data.path(6).endswith("videos/v6.mp4")
    with pytest.raises(UserError, match=r"columns: sample 7: '/7\.mp4' leaves the video folder; .* delete this file"):
        data.path(7)
    columns.head_of(made).write_text(json.dumps({"format": listing.FORMAT, "bytes": made.stat().st_size}))
    assert data_of(kept).path(7).endswith("videos/v7.mp4"), "not ours: made again"


def _read_with_others(file: Path, start, found) -> None:
    logging.disable()
    listing.LEAST = 1
    start.wait()
    data = data_of(file)
    found.put((samples(data), data.records.origin[0]))


def test_several_processes_may_begin_at_once(kept):
    context = multiprocessing.get_context("fork")
    start, found = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_read_with_others, args=(kept, start, found)) for _ in range(4)]
    for process in processes:
        process.start()
    results = [found.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert all(result == results[0] for result in results)
    assert sorted(path.suffix for path in kept.parent.iterdir()) == [".columns", ".csv", ".json"]
    head = json.loads(columns.head_of(Path(results[0][1])).read_text())
    assert columns.sha256(Path(results[0][1])) == head["sha256"]
