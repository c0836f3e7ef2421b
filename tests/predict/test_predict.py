"""`videorl predict`: its scores are those of the run's test, a curve is its windows, mistakes are told in a line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import videorl
from tests.video.clips_on_disk import write_video
from videorl import checkpoint, config
from videorl.cli import predict
from videorl.engine import build, evaluate
from videorl.predict.classifier import Curve
from videorl.predict.segments import segments, srt
from videorl.predict.source import checkpoint_of
from videorl.video.reader import open_video

ROOT = Path(__file__).parents[2]
WORDS = ["DATA_LOADER.NUM_WORKERS", "0", "NUM_GPUS", "0", "TEST.NUM_SPATIAL_CROPS", "1", "MVIT.DEPTH", "2"]
WORDS += ["DATA.NUM_FRAMES", "4", "DATA.SAMPLING_RATE", "4", "DATA.TEST_CROP_SIZE", "64"]
NAMES = [f"class {k}" for k in range(8)]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """toy/: 4 test videos; run/: random weights of a small MViT, as a run leaves them behind."""
    place = tmp_path_factory.mktemp("predict")
    (place / "toy/videos").mkdir(parents=True)
    for k in range(4):
        write_video(place / f"toy/videos/{k}.mp4", range(20 * k, 20 * k + 40 + k))
    (place / "toy/test.csv").write_text("".join(f"videos/{k}.mp4 {k}\n" for k in range(4)))
    torch.manual_seed(0)
    model = build.model(config_of(place))
    for parameter in model.parameters():  # else all scores are nearly equal
        torch.nn.init.normal_(parameter, std=0.3)
    state = {"model_state": model.state_dict(), "cfg": config.dump(config_of(place)), "classes": {"kinetics": NAMES}}
    checkpoint.save(place / "run/checkpoints/best.pyth", state)
    return place


def config_of(place: Path):
    """The config of the run."""
    return config.load(["videorl:toy/mvit"], [*WORDS, "DATA.PATH_TO_DATA_DIR", str(place / "toy")])


@pytest.fixture
def run(place, monkeypatch, capsys):
    """run(*words) in the folder of the toy set: exit code, stdout, stderr."""
    monkeypatch.chdir(place)

    def run(*words) -> tuple[int, str, str]:
        try:
            predict.main(list(map(str, words)))
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def listed(place: Path) -> list[str]:
    return [line.rpartition(" ")[0] for line in (place / "toy/test.csv").read_text().splitlines()]


def test_scores_are_those_of_the_test(place):
    """Of a list in another order, with a file that cannot be read, and alone: the same numbers."""
    cfg, classifier = config_of(place), videorl.load(place / "run")
    test = evaluate.Evaluation(cfg, "test")
    test.run(classifier.encoder.model, build.precision(cfg))
    expected = test.per_sample["scores"] / test.eval.views
    (place / "broken.mp4").write_bytes(b"no video")
    paths = [place / "toy" / path for path in listed(place)]
    found = classifier.all_of([paths[3], place / "broken.mp4", *paths[:3]])
    np.testing.assert_allclose([one.scores for one in found if not one.reason], expected[[3, 0, 1, 2]], atol=1e-6)
    assert found[1].reason
    alone = classifier(paths[2])
    np.testing.assert_allclose(alone.scores, expected[2], atol=1e-6)
    assert alone.top(1) == [(NAMES[expected[2].argmax()], pytest.approx(expected[2].max()))]


def test_windows_over_time_are_clips_of_the_video(place):
    classifier = videorl.load(place / "run")
    path = place / "toy" / listed(place)[0]
    (one,) = classifier.over_time([path], window=0.5, stride=0.25)
    times, scores = one.windows.times, one.windows.scores
    np.testing.assert_allclose(times[:, 0], 0.25 * np.arange(len(times)))
    assert times[-1, 1] - times[-1, 0] <= 0.5
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(one.scores, scores.mean(0))
    with open_video(str(path)) as video:
        frames = video.frames([7, 11, 16, 21])  # [T, H, W, C]
    data = classifier.cfg.DATA
    # From 7.5 to 22.5 at 30 frames a second; the central square of 96 x 64 pixels, whose short side is the crop.
    clip = (frames[:, :, 16:80] / 255 - torch.tensor(data.MEAN)) / torch.tensor(data.STD)
    with torch.inference_mode(), classifier.precision.autocast():
        logits = classifier.encoder.model(clip.permute(3, 0, 1, 2)[None])["logits"]
    np.testing.assert_allclose(scores[1], logits.float().softmax(1)[0], atol=1e-5)


@pytest.mark.parametrize(("metric", "taken"), [("val/top1", "best.pyth"), ("val/top5", "checkpoint_epoch_00003.pyth")])
def test_the_best_is_taken_by_the_metric_that_the_run_chooses_by_now(tmp_path, metric, taken):
    cfg = config.dump(config.load(["videorl:toy/mvit"], ["TRAIN.BEST_METRIC", metric]))
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder / "best.pyth", {"cfg": ""}, {"metric": "val/top1"})
    checkpoint.save(folder / checkpoint.name_of(3), {"cfg": cfg})
    assert checkpoint_of(tmp_path) == folder / taken


def test_several_processes_are_refused(place, run, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = run("run", "toy")
    assert code == 2
    assert "in one process, but torchrun has started 2" in err


def test_segments_against_a_plain_reading():
    best = [0, 0, 1, 1, 1, 0]
    times = np.array([[k, k + 2.0] for k in range(6)])
    scores = np.full((6, 3), 0.1)
    scores[np.arange(6), best] = [0.6, 0.8, 0.5, 0.5, 0.8, 0.9]
    found = segments(Curve(times, scores))
    assert [(s.start, s.end, s.label, round(s.score, 6)) for s in found] == [
        (0, 2, 0, 0.7),
        (2, 5, 1, 0.6),
        (5, 7, 0, 0.9),
    ]
    assert srt(found, ["a", "b", "c"]).split("\n\n")[1] == "2\n00:00:02,000 --> 00:00:05,000\nb  60 %"
    late = segments(Curve(np.array([[3661.5, 3662.9996]]), np.array([[1.0]])))
    assert "01:01:01,500 --> 01:01:03,000" in srt(late, ["a"])


def test_table_lines_and_page(place, run):
    """A folder and a list; what stands where."""
    (place / "some.txt").write_text("\n".join(listed(place)[:2]) + "\n")
    one_more = place / "more"
    one_more.mkdir()
    shutil.copy(place / "toy" / listed(place)[3], one_more / "<b>.mp4")
    (one_more / "bad.mp4").write_bytes(b"no video")
    code, out, _ = run("run", "more", "some.txt", "--root", "toy", "--out", "said", "--page", "--top", 2)
    assert code == 1
    assert "more/bad.mp4: " in out
    rows = [json.loads(line) for line in (place / "said/predictions.jsonl").read_text().splitlines()]
    good = ["more/<b>.mp4", *(str(Path("toy") / path) for path in listed(place)[:2])]
    assert [row["path"] for row in rows] == [*good, "more/bad.mp4"]
    assert [len(row.get("top", [])) for row in rows] == [2, 2, 2, 0]
    assert f"{rows[0]['top'][0]['class']} {100 * rows[0]['top'][0]['score']:.1f} %" in out
    page = (place / "said/index.html").read_text()
    assert page.count("data:image/webp") == 6
    assert "<b>.mp4" not in page


def test_over_time_writes_curves_and_subtitles(place, run):
    path = Path("toy") / listed(place)[0]
    shutil.copy(place / path, place / path.name)
    words = ("run", path, path.name, "--out", "long", "--page", "--over-time", "--window", 0.5)
    assert run(*words)[0] == 0
    subtitles = sorted(file.name for file in (place / "long").glob("*.srt"))
    assert subtitles == sorted([f"{path.stem}.srt", f"{path.stem}_2.srt"])
    row = json.loads((place / "long/predictions.jsonl").read_text().splitlines()[0])
    assert row["windows"][0].keys() == {"start", "end", "scores"}
    assert row["segments"][0]["start"] == 0
    assert (place / "long/index.html").read_text().count('class="curve"') == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nix", "toy"], "nix does not exist; name a checkpoint, or the OUTPUT_DIR of a run"),
        (["toy", "toy"], "toy holds no checkpoint that can be read"),
        (["run", "nix"], "nix: expected a video, a folder of videos, or a list of paths"),
        (["run", "empty"], "empty: no videos found"),
        (["run", "nix.mp4"], "nix.mp4"),
        (["run", "frameless.mp4"], "frameless.mp4"),
        (["cut.pyth", "toy"], "cut.pyth"),
        (["bare.pyth", "toy"], "bare.pyth holds no config: name the one of its model with --cfg"),
        (["mae.pyth", "toy"], "tests no classes, so it predicts none"),
        (["run", "toy", "--head", "kinetic"], "--head kinetic; did you mean kinetics?"),
        (["run", "toy", "--page"], "name a folder with --out"),
        (["run", "toy", "--window", "2"], "--window and --stride are for --over-time"),
        (["run", "toy", "--top", "0"], "--top 0: expected 1 or more"),
        (["run", "toy", "--over-time", "--out", "o", "--window", "0"], "expected more than 0 seconds"),
        (["run", "toy", "--set", "TEST.BATCHSIZE", "2"], "did you mean TEST.BATCH_SIZE?"),
        (["run", "parts.csv"], "names parts of videos"),
    ],
)
def test_mistakes_are_told_in_one_line(place, run, words, line):
    (place / "empty").mkdir(exist_ok=True)
    whole = (place / "toy" / listed(place)[0]).read_bytes()
    (place / "frameless.mp4").write_bytes(whole[:200])
    (place / "cut.pyth").write_bytes((place / "run/checkpoints/best.pyth").read_bytes()[:5000])
    torch.save({"model_state": {"a": torch.zeros(1)}}, place / "bare.pyth")
    torch.save(
        {"model_state": {"a": torch.zeros(1)}, "cfg": "MODEL: {MODEL_NAME: VideoMAE}\nMASK: {RATIO: 0.9}\n"},
        place / "mae.pyth",
    )
    (place / "parts.csv").write_text(f"toy/{listed(place)[0]} 0 2 6\n")
    code, _, err = run(*words)
    assert code == 2, err
    assert line in err.splitlines()[-1]
