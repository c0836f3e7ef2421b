"""The report of a run: what stands in it, what hostile or broken input does to it, and how a real browser takes it."""

import html.parser
import io
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from videorl import report
from videorl.engine import job
from videorl.report import page, write
from videorl.report.classes import classes, confusions
from videorl.report.curves import GROUPS, charts
from videorl.report.gallery import LISTED, choose, gallery
from videorl.report.predictions import Predictions
from videorl.report.read import percent, read

HOSTILE = "<script>alert(1)</script>"
CLASSES = ["open", "close", "a \"quoted\" & 'odd' one", HOSTILE]

TRAINED = [700, 0, 60, 40]  # clips of each class


class Page(html.parser.HTMLParser):
    """The elements of a page with their attributes, and its visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text, self._open = "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open = tag

    def handle_endtag(self, tag):
        self._open = ""
        self.text += " "

    def handle_data(self, data):
        if self._open not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def video(path: Path, shade: int) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for t in range(12):
            frame = np.full((48, 64, 3), shade, np.uint8)
            frame[:, 4 * t : 4 * t + 8] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return str(path)


def metrics(steps: int) -> list[dict]:
    lines = []
    for step in range(1, steps + 1):
        norm = math.nan if step == 7 else 2 + math.sin(step)
        shared = {"kind": "train", "step": step, "epoch": step / 10, "lr": 1e-3 / step, "grad_norm": norm}
        lines.append(
            {**shared, "loss": 3 / step, "losses": {"a": 2 / step, HOSTILE: 1 / step}, "dt": 0.5, "dt_data": 0.1}
        )
        if step % 10 == 0:
            found = {"top1": 0.6, HOSTILE: 0.25, "loss": 1.25}
            lines.append({"kind": "eval", "name": "val", "step": step, "epoch": step / 10, **found, "n": 93, "of": 100})
    return lines


def predictions(folder: Path, paths: list[str], labels: np.ndarray, scores: np.ndarray, names: list[str]) -> None:
    (folder / "predictions").mkdir(exist_ok=True)
    arrays = {"index": np.arange(len(labels)), "labels": labels, "scores": scores.astype(np.float32)}
    np.savez(folder / "predictions" / "test.npz", paths=np.array(paths), classes=np.array(names), **arrays)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A finished run: four clips of which one is taken for another and one cannot be opened."""
    folder = tmp_path / "my_run"
    folder.mkdir()
    (folder / f"{HOSTILE[:8]}x.mp4").write_bytes(b"no video")
    paths = [video(folder / f"{k}.mp4", 60 * k) for k in range(3)] + [str(folder / f"{HOSTILE[:8]}x.mp4")]
    scores = np.array([[0.9, 0.1, 0, 0], [0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.8, 0], [0, 0, 0.4, 0.6]])
    predictions(folder, paths, np.arange(4), scores, CLASSES)
    run = {
        "argv": ["tools/run_net.py", "--cfg", "a file.yaml", "TRAIN.NOTE", HOSTILE],
        "git": {"commit": "0123abcd", "dirty": True},
        "versions": {"python": "3.11.2", "torch": "2.15.0"},
        "device": "cpu",
        "host": "node7",
        "started": "2025-01-01T10:00:00Z",
        "finished": "2025-01-01T11:02:03Z",
        "config": f"MODEL:\n  NAME: {HOSTILE}\n",
        "data": {
            "toy/train": {"fingerprint": "f00dfeed", "samples": 800, "classes": {"toy": dict(zip(CLASSES, TRAINED))}}
        },
        "batch": {"process": 8, "step": 64},
    }
    (folder / "run.json").write_text(json.dumps(run))
    evals = {"test": {"top1": 87 / 93, HOSTILE: 0.5, "median_rank": 12.0, "n": 93, "of": 100}}
    protocol = {"test": "10 clips x 3 crops, mean of softmax"}
    (folder / "results.json").write_text(json.dumps({"evals": evals, "protocol": protocol, "checkpoint": "c/1.pyth"}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics(30)) + '{"kind": "tra')
    bad = {"path": HOSTILE, "error": "moov atom not found", "stage": "open", "first_seen": "2025-01-01", "count": 3}
    (folder / "quarantine.jsonl").write_text(json.dumps(bad) + "\n")
    return folder


def test_the_numbers_stand_in_the_page(folder):
    path = write(folder)
    text = " ".join(Page(path.read_text()).text.split())
    assert path == folder / "report.html"
    for expected in (
        "top1 93.5 % (n=93/100, 93.0 %) 95 % interval 86.6–97.0 %",
        "median_rank 12 (n=93/100, 93.0 %)",
        "10 clips x 3 crops, mean of softmax",
        "right for 3 of 4 clips (75.0 %, 95 % interval 30.1–95.4 %)",
        "step 30, epoch 3 top1: 0.6",
        "1 step(s) with NaN or infinity (×), the first at 7",
        "moov atom not found",
        "after 1:02:03",
        "python tools/run_net.py --cfg 'a file.yaml'",
        "f00dfeed",
        "metrics.jsonl has 1 unreadable line(s)",
        "toy/train: 4 classes, of 0 to 700 clips; 1 without any: close",
    ):
        assert expected in text, expected


def test_the_page_loads_nothing_and_escapes_all(folder):
    source = write(folder).read_text()
    page = Page(source)
    assert "<script>alert" not in source
    assert sorted(attributes.get("type", "own") for attributes in page.all("script")) == ["application/json", "own"]
    for tag, attributes in page.elements:
        assert not {name for name in attributes if name.startswith("on")}, tag
        for name in ("src", "srcset", "href", "data", "action"):
            allowed = ("#", "file:///") if tag == "a" else ("#", "data:image/")
            assert attributes.get(name, "#").startswith(allowed), (tag, name)
        assert tag not in ("link", "iframe", "base", "object", "embed")
    assert "url(" not in source
    assert "@import" not in source
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy
    assert HOSTILE in page.text


def test_pictures_have_texts_and_tables_have_captions(folder):
    source = write(folder).read_text()
    page = Page(source)
    moving = [image for image in page.all("img") if image["src"].startswith("data:image/webp")]
    assert len(moving) == 3
    assert all(image["alt"] for image in page.all("img"))
    assert source.count("no preview") == 1
    assert source.count("✓ right") == 3
    assert source.count("✗ wrong") == 1
    assert len(page.all("table")) == len(page.all("caption")) > 3
    assert all(svg["aria-label"] for svg in page.all("svg"))


def test_the_same_files_give_the_same_page(folder):
    assert write(folder).read_bytes() == write(folder).read_bytes()


@pytest.mark.parametrize("gone", ["run.json", "metrics.jsonl", "results.json", "quarantine.jsonl", "predictions"])
def test_an_absent_file_costs_its_section_only(folder, gone):
    shutil.rmtree(folder / gone) if gone == "predictions" else (folder / gone).unlink()
    text = Page(write(folder).read_text()).text
    assert "is in the folder" in text if gone == "predictions" else f"{gone} is not in the folder of this run" in text


def test_without_a_list_of_bad_videos_every_video_could_be_read(folder):
    (folder / "quarantine.jsonl").unlink()
    results = json.loads((folder / "results.json").read_text())
    results["evals"]["test"]["n"] = 100
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics(30) if m["kind"] == "train"))
    text = Page(write(folder).read_text()).text
    assert "Every video could be read." in text
    assert "quarantine" not in text


@pytest.mark.parametrize(("add", "said"), [(0.0, ""), (1.0, "sum of those of its views"), (-1.0, "can be below 0")])
def test_scores_that_are_no_probabilities_are_explained(add, said):
    scores = np.array([[0.9, 0.1], [0.3, 0.7]], np.float32) + add
    shown = gallery(Predictions("x", np.array([0, 1]), scores, np.array(["absent.mp4"] * 2), ["a", "b"], 0), 2)
    assert said in shown.scale if said else not shown.scale


def test_an_empty_folder_and_cut_files_give_a_page(tmp_path):
    assert "results.json is not in" in write(tmp_path).read_text()
    (tmp_path / "run.json").write_text('{"argv": [')
    (tmp_path / "metrics.jsonl").write_bytes(b'7\n\xff\xfe\n{"kind": "train", "step": 1, "loss": NaN}\n')
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "val.npz").write_bytes(b"PK\x03\x04 cut")
    text = Page(write(tmp_path).read_text()).text
    for expected in ("run.json cannot be read", "2 unreadable line(s)", "predictions/val.npz cannot be read", "NaN"):
        assert expected in text


ODD = [None, True, -7, 10**400, math.nan, "\ud800", [[0]], {"a": {"b": []}}]


def changed(value):
    """Every JSON value that has an odd one in the place of one of its parts, or of itself."""
    yield from ODD
    if isinstance(value, dict):
        for name in value:
            yield from ({**value, name: other} for other in changed(value[name]))
    elif isinstance(value, list) and value:
        yield from ([other, *value[1:]] for other in changed(value[0]))


@pytest.mark.parametrize("name", ["run.json", "results.json", "quarantine.jsonl", "metrics.jsonl"])
def test_no_odd_value_costs_a_section(folder, name):
    shutil.rmtree(folder / "predictions")
    if name != "metrics.jsonl":
        (folder / "metrics.jsonl").unlink()
    lines = (folder / name).read_text().splitlines()
    documents = [json.loads(line) for line in lines[:2]] if name.startswith("metrics") else [json.loads("".join(lines))]
    rows = [json.dumps(odd) for document in documents for odd in changed(document)]
    for text in [*rows, "[" * 100_000, "7" * 5000, '{"a": ' * 9 + "NaN", "\0" * 99]:
        (folder / name).write_text(text)
        made = page(read(folder))
        assert made.count("<section id=") == 6, text
        assert "cannot be made" not in made, (text, made[made.index("cannot be made") :][:200])


ARRAYS = ("labels", "scores", "paths", "classes")


@pytest.mark.parametrize(
    "spoil",
    [
        *(lambda a, n=n: {k: v for k, v in a.items() if k != n} for n in ARRAYS),
        *(lambda a, n=n: {**a, n: a[n][:2]} for n in ARRAYS),
        *(lambda a, n=n: {**a, n: a[n][:0]} for n in ARRAYS if n != "classes"),
        *(lambda a, n=n: {**a, n: a[n][None]} for n in ARRAYS),
        *(lambda a, n=n: {**a, n: np.array(7)} for n in ARRAYS),
        lambda a: {**a, "scores": a["scores"].astype(complex)},
        lambda a: {**a, "scores": a["scores"].astype(str)},
        lambda a: {**a, "scores": a["scores"].astype(object)},
        lambda a: {**a, "labels": a["labels"].astype(float)},
        lambda a: {**a, "labels": a["labels"] - 9},
        lambda a: {**a, "labels": a["labels"].astype(str)},
        lambda a: {**a, "pictures": a["scores"]},
    ],
)
def test_arrays_that_do_not_fit_cost_their_file_only(folder, spoil):
    file = folder / "predictions" / "test.npz"
    shutil.copy(file, file.with_name("val.npz"))
    with np.load(file) as arrays:
        arrays = spoil(dict(arrays))
    np.savez(file, **arrays)
    text = page(read(folder))
    assert "predictions/test.npz cannot be read: " in text
    assert "cannot be made" not in text
    assert text.count("✗ wrong") == 1, "the other evaluation stands"


def bomb(file: Path) -> None:
    """A small archive whose one array says that it has 8 TiB."""
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**41,)})
    with zipfile.ZipFile(file, "w") as archive:
        for name in ARRAYS:
            archive.writestr(f"{name}.npy", header.getvalue())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: f.write_bytes(f.read_bytes()[:-30]),
        lambda f: f.write_bytes(f.read_bytes()[:200] + b"\xff" * 50 + f.read_bytes()[250:]),
        lambda f: f.write_bytes(b""),
        lambda f: np.save(f.open("wb"), np.zeros(3)),
        lambda f: (f.unlink(), f.mkdir()),
        lambda f: (f.unlink(), os.mkfifo(f)),
        lambda f: (f.unlink(), f.symlink_to("nowhere")),
        lambda f: os.truncate(f, 2**31),
        bomb,
    ],
)
@pytest.mark.parametrize("name", ["predictions/test.npz", "run.json", "metrics.jsonl"])
def test_a_damaged_file_is_one_line(folder, name, spoil):
    spoil(folder / name)
    found = read(folder).absent
    if name == "metrics.jsonl" and (folder / name).is_file() and not (folder / name).stat().st_size:
        return  # a run that has just begun
    assert name in found
    assert "\n" not in found[name]
    assert len(found[name]) < 400
    assert "cannot be made" not in page(read(folder))


def test_a_section_that_cannot_be_made_says_so(folder, monkeypatch):
    def fail(folder):
        raise RuntimeError("what nobody\nhas foreseen <b>")

    broken = [report.Section(s.name, s.title, fail) if s.name == "curves" else s for s in report.SECTIONS]
    monkeypatch.setattr(report, "SECTIONS", broken)
    made = Page(write(folder).read_text())
    assert "This section cannot be made: RuntimeError: what nobody has foreseen <b>" in made.text
    assert [s["id"] for s in made.all("section")] == ["results", "curves", "classes", "clips", "quality", "rerun"]


def test_a_report_that_fails_changes_nothing_of_the_run_s_end(folder, monkeypatch, caplog):
    caplog.set_level("WARNING", "videorl")
    monkeypatch.setattr(report, "write", lambda folder: 1 / 0)
    job._report(folder)
    assert {*caplog.messages} == {"report.html cannot be written (ZeroDivisionError: division by zero)"}


def test_without_final_results_the_latest_of_training_is_named_as_such(folder):
    (folder / "results.json").unlink()
    text = " ".join(Page(write(folder).read_text()).text.split())
    assert "top1 60.0 % (n=93/100, 93.0 %)" in text
    assert "Not final: measured in training at step 30." in text


def test_classes_without_names_are_numbered(folder):
    """What an evaluation writes where there is no classes.json."""
    file = folder / "predictions" / "test.npz"
    with np.load(file) as arrays:
        np.savez(file, **{**arrays, "classes": np.array([], dtype=str)})
    (found,) = read(folder).predictions
    assert found.classes == ["0", "1", "2", "3"]
    text = " ".join(Page(write(folder).read_text()).text.split())
    assert "true: 1 predicted: 0 70 %" in text


def test_training_and_evaluations_share_the_chart_of_a_metric(tmp_path):
    lines = [{"kind": "train", "step": s, "loss": 9 - s, "top1": s / 10, "lr": 1} for s in range(1, 9)]
    lines += [{"kind": "eval", "name": "val", "step": s, "top1": s / 20, "top5": s / 10, "loss": 5} for s in (4, 8)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    shown = {chart.title: [(line.name, line.last) for line in chart.lines] for chart in charts(read(tmp_path))}
    assert shown == {
        "Loss": [("each step", "1"), ("loss", "1"), ("val", "5")],
        "Learning rate": [("lr", "1")],
        "top1": [("training batches", "80.0 %"), ("val", "40.0 %")],
        "val: metrics": [("top5", "80.0 %")],
    }


def test_the_list_has_all_clips_and_links_to_their_files(folder):
    (found,) = read(folder).predictions
    shown = gallery(found, 2)
    assert [(tile.row, tile.right) for tile in shown.tiles] == [(0, False), (1, True)]
    rows = {shown.data["folder"] + at: (true, guess, score) for at, true, guess, score in shown.data["clips"]}
    assert rows == {
        (folder / name).as_uri(): row
        for name, row in {
            "1.mp4": ([1], 0, "70 %"),
            "0.mp4": ([0], 0, "90 %"),
            "2.mp4": ([2], 2, "80 %"),
            f"{HOSTILE[:8]}x.mp4": ([3], 3, "60 %"),
        }.items()
    }
    assert all(tile.link in rows for tile in shown.tiles)


def test_a_long_list_keeps_the_wrong_clips():
    n = LISTED + 500
    labels = np.r_[np.zeros(LISTED, int), np.ones(500, int)]
    scores = np.tile(np.array([[0.6, 0.4]], np.float32), (n, 1))
    shown = gallery(Predictions("x", labels, scores, np.array(["absent.mp4"] * n), ["a", "b"], 0), 4)
    assert len(shown.data["clips"]) == LISTED
    assert sum(true == [1] for _, true, _, _ in shown.data["clips"]) == 500


def test_confusions_and_class_figures_equal_a_slow_count():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 5, 60), rng.random((60, 5)).astype(np.float32)
    scores[3] = np.nan
    names = list("abcde")
    p = Predictions("x", labels, scores, np.array(["v"] * 60), names, 0)
    slow = np.zeros((5, 5), int)
    found = np.zeros((5, 5), int)
    for true, predicted, count in confusions(p).tolist():
        found[true, predicted] = count
    for label, row in zip(labels, scores, strict=True):
        slow[label, max(range(5), key=lambda c, row=row: -1 if math.isnan(row[c]) else row[c])] += 1
    assert np.array_equal(found, slow)
    for figure in classes(p).best:
        c = names.index(figure.name)
        assert figure.n == slow[c].sum()
        assert figure.value == slow[c, c] / figure.n
        wrong = slow[c] * (np.arange(5) != c)
        assert figure.taken_for == (wrong.argmax(), names[wrong.argmax()], wrong.max())


def reconstructed(folder: Path, name: str, clips: int = 2) -> None:
    """The predictions of a masked model: pictures of the last clips of five."""
    (folder / "predictions").mkdir(exist_ok=True)
    arrays = {
        "index": np.arange(5),
        "mse": np.linspace(0.1, 0.5, 5),
        "baseline_mse": np.full(5, 0.998),
        "pictures": np.random.default_rng(0).integers(0, 256, (clips, 4, 3, 16, 16, 3), np.uint8),
        "pictured": np.arange(5 - clips, 5),
    }
    paths = np.array([f"/videos/{k}<script>.mp4" for k in range(5)])
    np.savez(folder / "predictions" / f"{name}.npz", paths=paths, classes=np.array([], str), **arrays)


def test_reconstructions_stand_beside_what_else_there_is(folder):
    reconstructed(folder, "recon")
    page = Page(write(folder).read_text())
    sections = [s["id"] for s in page.all("section")]
    assert sections == ["results", "curves", "classes", "clips", "reconstructions", "quality", "rerun"]
    text = " ".join(page.text.split())
    assert "4<script>.mp4 squared error 0.5 of mean colours 0.998" in text
    assert len([a for a in page.all("img") if "reconstruction" in a["alt"]]) == 2


def test_a_run_of_reconstructions_alone_says_nothing_of_classes(tmp_path):
    reconstructed(tmp_path, "recon")
    page = Page(write(tmp_path).read_text())
    assert [s["id"] for s in page.all("section")] == ["results", "curves", "reconstructions", "quality", "rerun"]
    assert "#classes" not in [a.get("href") for a in page.all("a")]
    (tmp_path / "predictions" / "val.npz").write_bytes(b"PK\x03\x04 cut")
    assert "predictions/val.npz cannot be read" in Page(write(tmp_path).read_text()).text


def test_broken_pictures_cost_their_section_only(tmp_path):
    reconstructed(tmp_path, "recon")
    file = tmp_path / "predictions" / "recon.npz"
    with np.load(file) as arrays:
        changed = {**arrays, "pictures": arrays["pictures"][:1]}
    np.savez(file, **changed)
    assert "predictions/recon.npz cannot be read" in Page(write(tmp_path).read_text()).text


def test_several_labels_give_average_precision():
    labels = np.array([[1, 0], [0, 1], [1, 1]])
    scores = np.array([[0.9, 0.8], [0.5, 0.1], [0.1, 0.3]], np.float32)
    shown = classes(Predictions("x", labels, scores, np.array(["v"] * 3), ["a", "b"], 0))
    assert shown.counts is None
    assert shown.metric == "average precision"
    expected = {"a": (1 / 1 + 2 / 3) / 2, "b": (1 / 2 + 2 / 3) / 2}
    assert {f.name: pytest.approx(f.value) for f in shown.best} == expected


@pytest.mark.parametrize(
    ("right", "wrong", "shown"), [(50, 50, (12, 12)), (50, 3, (21, 3)), (2, 50, (2, 22)), (3, 0, (3, 0))]
)
def test_the_gallery_mixes_right_and_wrong(right, wrong, shown):
    labels = np.array([0] * right + [1] * wrong)
    scores = np.stack([np.linspace(0.6, 0.9, len(labels)), np.full(len(labels), 0.1)], 1)
    rows = choose(Predictions("x", labels, scores, np.array(["v"] * len(labels)), ["a", "b"], 0), 24)
    assert (sum(r < right for r in rows), sum(r >= right for r in rows)) == shown
    assert len(set(rows)) == len(rows)
    assert not wrong or rows[0] == right + wrong - 1


def test_many_classes_and_steps_stay_small(tmp_path):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 400, 4000), rng.random((4000, 400))
    predictions(tmp_path, ["absent.mp4"] * 4000, labels, scores, [f"class {c}{HOSTILE}" for c in range(400)])
    lines = "".join(json.dumps(line) + "\n" for line in metrics(5000))
    (tmp_path / "metrics.jsonl").write_text(lines)
    source = write(tmp_path).read_text()
    assert len(source) < 2e6
    assert "Most frequent confusions" in source
    assert "<script>alert" not in source
    assert all(len(chart.hits) <= GROUPS for chart in charts(read(tmp_path)))


def test_a_resumed_run_counts_the_last_line_of_a_step(tmp_path):
    lines = [{"kind": "train", "step": s, "loss": v} for s, v in ((1, 5.0), (2, 4.0), (3, 9.0), (2, 3.0), (3, 2.0))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [line["loss"] for line in read(tmp_path).train] == [5.0, 3.0, 2.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.93, "93.0 %"), (-0.0036, "-0.4 %"), (1, "100.0 %"), (12.5, "12.5"), (math.nan, "NaN"), (None, "–")],
)
def test_fractions_are_shown_as_percent(value, text):
    assert percent(value) == text


@pytest.fixture
def browse(tmp_path):
    """browse(file) opens a page in a browser and returns what stands there after its scripts, and what it logged."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser and os.environ.get("CI") != "true":
        pytest.skip("no chromium or google-chrome on PATH")
    assert browser, "CI needs chromium or google-chrome on PATH"
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    options += " --disable-component-update --disable-sync --virtual-time-budget=3000 --enable-logging=stderr --v=0"
    command = [browser, *options.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]

    def browse(file: Path) -> tuple[Page, list[str]]:
        done = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=120, check=True)
        return Page(done.stdout), [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return browse


def test_a_browser_shows_the_sections_without_an_error(folder, browse):
    made, said = browse(write(folder))
    assert [s["id"] for s in made.all("section")] == ["results", "curves", "classes", "clips", "quality", "rerun"]
    assert not said
    hints = [rect["data-tip"] for rect in made.all("rect")]
    assert "step 30, epoch 3" in "".join(hints), "the script takes over the hints of the charts"
    assert "4 of 4 clips" in made.text
    assert len([link for link in made.all("a") if link["href"].startswith("file:///")]) == 8, "of tiles and list"


@pytest.mark.parametrize("classes", [4, 50])
def test_a_cell_of_the_matrix_filters_the_clips(folder, browse, classes):
    """In a browser: a click on the matrix, which is a table of few classes and a picture of many."""
    file = folder / "predictions" / "test.npz"
    with np.load(file) as arrays:
        names = [*CLASSES, *map(str, range(4, classes))]
        scores = np.pad(arrays["scores"], ((0, 0), (0, classes - 4)))
        np.savez(file, **{**arrays, "scores": scores, "classes": np.array(names)})
    click = {
        4: 'document.querySelector(\'.matrix [data-true="1"][data-predicted="0"]\').click();',
        50: """const image = document.querySelector(".pixels img"), box = image.getBoundingClientRect();
            const at = { clientX: box.left + 0.5 * box.width / 50, clientY: box.top + 1.5 * box.height / 50 };
            image.dispatchEvent(new MouseEvent("click", { bubbles: true, ...at }));""",
    }[classes]
    source = write(folder).read_text()
    # Our own policy lets no other script run.
    source = source.replace("Content-Security-Policy", "none").replace("</body>", f"<script>{click}</script></body>")
    (folder / "clicked.html").write_text(source)
    made, said = browse(folder / "clicked.html")
    assert not said
    assert "1 of 4 clips: true close, predicted open" in made.text
    tiles = [figure for figure in made.all("figure") if figure["class"].startswith("tile")]
    assert [("hidden" in tile, tile["class"]) for tile in tiles] == [(False, "tile wrong"), *[(True, "tile right")] * 3]
    assert "close" in "".join(made.text.split("1 of 4 clips")[1:])
