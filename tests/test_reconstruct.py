"""`videorl reconstruct`: what it writes, its figures, and the errors of those who hold it wrong."""

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_report import HOSTILE, Page, video
from tests.video.clips_on_disk import number_of, write_video
from videorl import checkpoint, config, report
from videorl.cli import reconstruct as tool
from videorl.engine import build
from videorl.engine.evaluate import Evaluation
from videorl.evals.reconstruction import SHOWN
from videorl.metrics.pixels import Targets, patches

ROOT = Path(__file__).parents[1]
YAML = """
MODEL: {MODEL_NAME: VideoMAE, PATCH_SIZE: [2, 8, 8]}
VIDEOMAE: {EMBED_DIM: 24, DEPTH: 1, NUM_HEADS: 3, DECODER_DIM: 24, DECODER_DEPTH: 1, DECODER_HEADS: 3}
MASK: {RATIO: 0.75}
DATA: {NUM_FRAMES: 4, SAMPLING_RATE: 1, TRAIN_CROP_SIZE: 32, TEST_CROP_SIZE: 32, TRAIN_JITTER_SCALES: [32, 32]}
LOSSES: {pixels: {NAME: masked_pixels}}
NUM_GPUS: 0
"""


def save(cfg, file: Path) -> Path:
    checkpoint.save(file, {"model_state": build.model(cfg).state_dict()})
    return file


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder, the current one, with a config, its weights and two videos."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mae.yaml").write_text(YAML)
    save(config.load(["mae.yaml"]), tmp_path / "weights.pyth")
    for name, shade in (("a", 40), ("b", 160)):
        video(tmp_path / f"{name}.mp4", shade)
    return tmp_path


def words(*more, cfg="mae.yaml", weights="weights.pyth") -> list[str]:
    return ["--cfg", cfg, "--checkpoint", weights, *map(str, more)]


def test_page_and_pictures(place, capsys):
    tool.main(words("a.mp4", "b.mp4", "--out", "out"))
    printed = capsys.readouterr().out
    source = (place / "out/index.html").read_text()
    page = Page(source)
    images = page.all("img")
    assert len(images) == 2
    assert all(image["src"].startswith("data:image/webp;base64,") for image in images)
    assert [s["srcset"][:11] for s in page.all("source")] == ["data:image/"] * 2
    assert not page.all("script")
    assert "default-src 'none'" in page.all("meta")[1]["content"]
    for text in ("VideoMAE, 75% of the patches hidden (tube)", "weights.pyth", "a.mp4", "distance⁴"):
        assert text in page.text
    assert sorted(f.name for f in (place / "out").iterdir()) == ["00_a.png", "01_b.png", "index.html"]
    with Image.open(place / "out/00_a.png") as sheet:
        assert sheet.size == (4 * 32, 4 * 32)
    rows = [line.split() for line in printed.splitlines() if line.startswith(("a.mp4", "b.mp4"))]
    shown = re.findall(r"squared error <b>([\d.]+)</b>", source)
    assert [row[1] for row in rows] == shown


def test_figures_equal_those_taken_from_the_model(place):
    cfg = config.load(["mae.yaml"])
    model, data = tool.loaded(cfg, Path("weights.pyth")), tool.of_files(cfg, ["a.mp4", "b.mp4"])
    results, unreadable = tool.reconstruct(cfg, model, data, 8)
    assert not unreadable
    item = data[1][0]
    given = {name: item[name][None] for name in ("pixels", "visible", "masked")}
    with torch.no_grad():
        predicted = model(**given)["predicted"]
    true = patches(given["pixels"], given["masked"], (2, 8, 8))
    targets = Targets((2, 8, 8))
    levels = (targets.restored(predicted, *targets.statistics(true)) * 255).clamp(0, 255).round() - true * 255
    assert results[1].facts["with true statistics"] == f"{float(levels.abs().mean()):.1f}"
    assert np.array_equal(results[1].pictures[0], item["pixels"].permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        ("TRAIN.DATASET video_list", [16, 18, 20, 22]),  # in the middle of 0, 2, …, 38, whatever the frame rate
        ("TRAIN.DATASET video_list DATA.SAMPLING_RATE 10", [0, 10, 20, 30]),
        ("TRAIN.DATASET video_list VIDEO_LIST.SAMPLING sparse", [5, 15, 25, 35]),  # in the middle of each ten
        ("DATA.SAMPLING_RATE 10", [12, 17, 22, 27]),  # 16 frames of 12 a second last as long as 40 of 30
        ("TRAIN.DATASET ssv2", [5, 15, 24, 34]),  # between 0, 10, 20, 29, 39
        ("TRAIN.DATASET mit TEST.NUM_SPATIAL_CROPS 3 DATA.PATH_LABEL_SEPARATOR ,", [18, 18, 19, 20]),
    ],
)
def test_a_clip_of_a_file_is_the_middle_one_of_the_data_set_trained_on(place, opts, expected):
    write_video(place / "c 3.mp4", range(40), size=(64, 64), time_base=Fraction(1, 12))
    size = "DATA.TEST_CROP_SIZE 64 DATA.TRAIN_CROP_SIZE 64 DATA.TRAIN_JITTER_SCALES [64,64] DATA.VAL_SKIP 2"
    cfg = config.load(["mae.yaml"], f"{size} DATA.SAMPLING_RATE 2 MODEL.NUM_CLASSES 1 {opts}".split())
    data = tool.of_files(cfg, ["a.mp4", "c 3.mp4"])
    (item,) = data[1]
    assert data.path(1) == "c 3.mp4"
    assert [number_of(frame.permute(1, 2, 0).numpy()) for frame in item["pixels"]] == expected


def test_the_validation_set_is_shown_without_videos(place, capsys):
    (place / "val.csv").write_text("a.mp4 0\nb.mp4 1\nb.mp4 1\n")
    tool.main(words("--count", 2, "--opts", "DATA.PATH_TO_DATA_DIR", place, "EVALS.recon.NAME", "reconstruction",
                    "EVALS.recon.DATASET", "kinetics"))  # fmt: skip
    assert len(list((place / "reconstructions").glob("*.png"))) == 2
    assert "2 PNG" in capsys.readouterr().out


def test_the_report_of_a_run_shows_the_first_clips(place):
    (place / "val.csv").write_text("".join(f"{name}.mp4 0\n" for name in "ababababab"))
    evals = ["EVALS.recon.NAME", "reconstruction", "EVALS.recon.DATASET", "kinetics", "TEST.BATCH_SIZE", "4"]
    cfg = config.load(["mae.yaml"], [*evals, "DATA.PATH_TO_DATA_DIR", str(place), "DATA_LOADER.NUM_WORKERS", "0"])
    evaluation = Evaluation(cfg, "recon")
    found = evaluation.run(build.model(cfg), build.precision(cfg), place / "run/predictions/recon.npz")
    assert found["n"] == 10
    assert found["explained"] == pytest.approx(1 - found["mse"] / found["baseline_mse"])
    page = Page(report.write(place / "run").read_text())
    assert len(page.all("img")) == SHOWN
    assert {"results", "curves", "reconstructions"} <= {section["id"] for section in page.all("section")}
    assert "classes" not in [section["id"] for section in page.all("section")]
    assert f"squared error {evaluation.per_sample['mse'][0]:.4g}" in " ".join(page.text.split())


def test_a_file_that_cannot_be_read_is_named(place, capsys):
    bad = place / f"{HOSTILE[:8]}.mp4"
    bad.write_bytes(b"no video")
    tool.main(words(bad, "b.mp4"))
    source = (place / "reconstructions/index.html").read_text()
    assert "<script" not in source
    assert HOSTILE[:8] in Page(source).text
    assert "not read" in capsys.readouterr().out
    assert fails(capsys, words(bad)).startswith("no clip can be read; first:")


def fails(capsys, arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        tool.main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("error: ")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--opts", "MODEL.MODEL_NAME", "ViT", "MASK.RATIO", "0.0"], "ViT predicts no masked pixels"),
        (["--opts", "VIDEOMAE.DEPTH", "2"], "is it a checkpoint of this model"),
        (["--count", "0"], "--count 0: expected 1 or more"),
        (["MASK.RATIO", "0.5"], "MASK.RATIO: no such video; settings go behind --opts"),
        (["--opts", "MASK.RATIO", "0.0"], "MASK.RATIO"),
        (["--opts", "TRAIN.DATASET", "hmdb51", "HMDB51.ANNOTATIONS", "x"], "hmdb51 reads no list of files"),
    ],
)
def test_errors_are_one_line(place, capsys, more, expected):
    assert expected in fails(capsys, words("a.mp4", *more))


def test_a_checkpoint_of_something_else_is_refused(place, capsys):
    cfg = config.load([], ["MODEL.MODEL_NAME", "MViT", "MVIT.DEPTH", "1", "NUM_GPUS", "0"])
    save(cfg, place / "mvit.pyth")
    assert "that this model has no place for: set MODEL.MODEL_NAME MViT" in fails(
        capsys, words("a.mp4", weights="mvit.pyth")
    )
