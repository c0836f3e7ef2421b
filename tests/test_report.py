"""The report of a run: what stands in it, what hostile or broken input does to it, and how a real browser takes it."""

import html.parser
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from videorl.report import write
from videorl.report.classes import classes, confusion
from videorl.report.curves import GROUPS, charts
from videorl.report.gallery import choose
from videorl.report.read import Predictions, percent, read

HOSTILE = "<script>alert(1)</script>"
CLASSES = ["open", "close", "a \"quoted\" & 'odd' one", HOSTILE]


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
        "data": {"toy/train": {"fingerprint": "f00dfeed", "samples": 800}},
        "batch": {"process": 8, "step": 64},
    }
    (folder / "run.json").write_text(json.dumps(run))
    evals = {"test": {"top1": 0.93, HOSTILE: 0.5, "median_rank": 12.0, "n": 93, "of": 100}}
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
        "top1 93.0 % (n=93/100, 93.0 %)",
        "median_rank 12 (n=93/100, 93.0 %)",
        "10 clips x 3 crops, mean of softmax",
        "right for 3 of 4 clips (75.0 %)",
        "step 30, epoch 3 top1: 0.6",
        "1 step(s) with NaN or infinity (×), the first at 7",
        "moov atom not found",
        "after 1:02:03",
        "python tools/run_net.py --cfg 'a file.yaml'",
        "f00dfeed",
        "1 unreadable line(s) of metrics.jsonl",
    ):
        assert expected in text, expected


def test_the_page_loads_nothing_and_escapes_all(folder):
    source = write(folder).read_text()
    page = Page(source)
    assert "<script>alert" not in source
    assert all(not attributes or attributes == {"type": "application/json"} for attributes in page.all("script"))
    assert len(page.all("script")) == 1
    for tag, attributes in page.elements:
        assert not {name for name in attributes if name.startswith("on")}, tag
        for name in ("src", "srcset", "href", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, name)
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


def test_an_empty_folder_and_cut_files_give_a_page(tmp_path):
    assert "results.json is not in" in write(tmp_path).read_text()
    (tmp_path / "run.json").write_text('{"argv": [')
    (tmp_path / "metrics.jsonl").write_bytes(b'7\n\xff\xfe\n{"kind": "train", "step": 1, "loss": NaN}\n')
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "val.npz").write_bytes(b"PK\x03\x04 cut")
    text = Page(write(tmp_path).read_text()).text
    for expected in ("run.json cannot be read", "2 unreadable line(s)", "predictions/val.npz cannot be read", "NaN"):
        assert expected in text


def test_without_final_results_the_latest_of_training_is_named_as_such(folder):
    (folder / "results.json").unlink()
    text = " ".join(Page(write(folder).read_text()).text.split())
    assert "top1 60.0 % (n=93/100, 93.0 %)" in text
    assert "Not final: measured in training at step 30." in text


def test_confusions_and_class_figures_equal_a_slow_count():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 5, 60), rng.random((60, 5)).astype(np.float32)
    scores[3] = np.nan
    names = list("abcde")
    p = Predictions("x", labels, scores, np.array(["v"] * 60), names, 0)
    slow = np.zeros((5, 5), int)
    for label, row in zip(labels, scores, strict=True):
        slow[label, max(range(5), key=lambda c, row=row: -1 if math.isnan(row[c]) else row[c])] += 1
    assert np.array_equal(confusion(p), slow)
    for figure in classes(p).best:
        c = names.index(figure.name)
        assert figure.n == slow[c].sum()
        assert figure.value == slow[c, c] / figure.n


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


def test_a_browser_shows_the_sections_without_an_error(folder, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser and os.environ.get("CI") != "true":
        pytest.skip("no chromium or google-chrome on PATH")
    assert browser, "CI needs chromium or google-chrome on PATH"
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    options += " --disable-component-update --disable-sync --virtual-time-budget=3000 --enable-logging=stderr --v=0"
    command = [browser, *options.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([*command, write(folder).as_uri()], capture_output=True, text=True, timeout=120, check=True)
    page = Page(done.stdout)
    assert [s["id"] for s in page.all("section")] == ["results", "curves", "classes", "clips", "quality", "rerun"]
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    hints = [rect["data-tip"] for rect in page.all("rect")]
    assert "step 30, epoch 3" in "".join(hints), "the script takes over the hints of the charts"
