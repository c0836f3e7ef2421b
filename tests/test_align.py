"""Lines and seconds: a narration that is late and speaks of other things is put right; the tool, its files and page."""

import json

import numpy as np
import pytest
import torch

from videorl.align import Plan, align, divide, subtitles
from videorl.cli import align as tool
from videorl.data.deduplicate import Caption
from videorl.registry import UserError
from videorl.report.subtitles import srt, vtt

LINES = [Caption(4.0 * k + 3.5, 4.0 * k + 5.0, f"line {k}") for k in range(5)]


def similarity(seconds: int = 20) -> np.ndarray:
    """Line k fits seconds 4k … 4k + 3; line 2 fits nothing."""
    scores = np.random.default_rng(0).normal(0, 0.02, (5, seconds))
    for k in (0, 1, 3, 4):
        scores[k, 4 * k : 4 * k + 4] += 0.8
    return scores


def test_lines_come_when_they_are_shown_and_the_bucket_takes_what_is_not():
    found = align(similarity(), LINES, Plan())
    assert [line.shown for line in found.lines] == [True, True, False, True, True]
    shown = [(line.start, line.end) for line in found.lines if line.shown]
    assert shown == [(0, 4), (4, 8), (12, 16), (16, 20)]
    assert found.plan.shape == (5, 20)
    assert all(line.score == pytest.approx(0.8, abs=0.1) for line in found.lines if line.shown)


def test_scores_fall_into_two_groups():
    assert 0.3 < divide(np.array([0.8, 0.1, 0.9, 0.3, 0.7, 0.2])) < 0.7
    assert divide(np.array([0.5, 0.5])) < 0.5
    assert divide(np.array([0.5])) < 0.5
    assert not any(line.shown for line in align(similarity(), LINES, Plan(threshold=2.0)).lines)


def test_a_line_is_not_looked_for_far_from_when_it_is_spoken():
    scores = similarity()
    scores[0, 19] = 2.0
    assert align(scores, LINES, Plan(within=0)).lines[0].start == 19
    near = align(scores, LINES, Plan(within=8))
    assert near.lines[0].end <= 13
    assert (near.plan[0, 14:] == 0).all()


SUBTITLES = {
    "a.srt": "\ufeff1\n00:00:03,500 --> 00:00:05,000\n<i>line</i>\n0\n\n2\n01:00:07,5 --> 01:00:09,0\n \n",
    "a.vtt": "WEBVTT\n\nNOTE no --> line\n\n00:03.500 --> 00:05.000 align:start\nline 0\n",
    "a.csv": "start,end,text\n3.5,5,line 0\n4,5,\n",
}


@pytest.mark.parametrize("name", SUBTITLES)
def test_subtitles_are_read(tmp_path, name):
    (tmp_path / name).write_text(SUBTITLES[name])
    assert subtitles.read(tmp_path / name) == [(3.5, 5.0, "line 0")]


@pytest.mark.parametrize("written", [srt, vtt])
def test_written_subtitles_read_back(tmp_path, written):
    file, text = (
        tmp_path / f"b.{written.__name__}",
        {srt: "salt & pepper", vtt: "a < b, b > c & <i>d</i> &amp;"}[written],
    )
    file.write_text(written([Caption(3599.9996, 3661.25, text), *LINES]))
    assert subtitles.read(file) == [*LINES, (3600.0, 3661.25, text)]


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no line of text"), ("1\n00:00:99,x --> 00:00:05,000\na", "no line of text"),
     ("0:1:0:0.5 --> 00:00:05,000\na", "'0:1:0:0.5' is no time"), (None, "No such file")],
)  # fmt: skip
def test_subtitles_that_are_none_are_told_in_one_line(tmp_path, text, said):
    file = tmp_path / "a.srt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        subtitles.read(file)
    assert "\n" not in str(error.value)


CONFIG = """
TEXT: {{TOKENIZER: {0}/vocab.txt, MAX_WORDS: 9}}
MODEL: {{MODEL_NAME: VideoCLIP}}
VIDEOCLIP: {{FEATURES: 8, VIDEO_LAYERS: 1, TEXT_LAYERS: 1, WIDTH: 8, HEADS: 2, HIDDEN: 8, VOCABULARY: 13, POSITIONS: 40,
            CLS_TOKEN: 2, SEP_TOKEN: 3}}
NUM_GPUS: 0
"""


@pytest.fixture
def words(tmp_path):
    """The command for a video of 40 seconds whose features are stored."""
    from videorl import config
    from videorl.engine import build

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]))
    (tmp_path / "model.yaml").write_text(CONFIG.format(tmp_path))
    model = build.model(config.load([tmp_path / "model.yaml"]))
    torch.save({"model_state": model.state_dict()}, tmp_path / "model.pyth")
    np.save(tmp_path / "video.npy", np.random.default_rng(1).normal(size=(40, 8)).astype(np.float16))
    lines = [Caption(5.0 * k, 5.0 * k + 2, f'{"abcdefgh"[k]} & "c"') for k in range(8)]
    (tmp_path / "said.srt").write_text(srt([*lines, Caption(50, 51, "a")]))
    return [str(tmp_path / "video.mp4"), str(tmp_path / "said.srt"), "--cfg", str(tmp_path / "model.yaml"),
            "--checkpoint", str(tmp_path / "model.pyth"), "--features", str(tmp_path / "video.npy"),
            "--out", str(tmp_path / "out")]  # fmt: skip


def test_the_tool_writes_subtitles_lines_and_a_page(tmp_path, words, capsys):
    tool.main(words)
    rows = [json.loads(line) for line in (tmp_path / "out/aligned.jsonl").read_text().splitlines()]
    assert [row["spoken"] for row in rows] == [[5.0 * k, 5.0 * k + 2] for k in range(8)]
    shown = [row for row in rows if row["shown"]]
    assert 0 < len(shown) < 8
    assert all((row["start"] is None) != row["shown"] for row in rows)
    retimed = subtitles.read(tmp_path / "out/aligned.srt")
    assert sorted((c.start, c.end) for c in retimed) == sorted((row["start"], row["end"]) for row in shown)
    page = (tmp_path / "out/aligned.html").read_text()
    assert page.count('class="spoken"') == 8
    assert page.count('class="found"') == len(shown)
    assert "http" not in page.replace("http-equiv", "")
    assert "a &amp; &#34;c&#34;" in page
    said = capsys.readouterr().out
    assert f"{len(shown)} of 8 lines are shown (score above" in said
    assert "1 lines begin after the video has ended" in said


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("features", np.full((40, 8), np.nan), "features that are no finite numbers"),
        ("features", np.ones((40, 7)), "VIDEOCLIP.FEATURES 8: the data set's have 7"),
        ("features", np.ones(40), "expected floats [seconds, F]"),
        ("said.srt", srt([Caption(50, 51, "a")]), "all 1 lines begin after the 40 s"),
        ("model.yaml", "MODEL: {MODEL_NAME: MViT}\nTEXT: {TOKENIZER: VOCAB}\nNUM_GPUS: 0", "one of stored features"),
    ],
)
def test_mistakes_are_one_line(tmp_path, words, file, content, said, capsys):
    if file == "features":
        np.save(tmp_path / "video.npy", content.astype(np.float16))
    else:
        (tmp_path / file).write_text(content.replace("VOCAB", str(tmp_path / "vocab.txt")))
    with pytest.raises(SystemExit) as code:
        tool.main(words)
    assert code.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_without_features_or_a_model_that_makes_them(words, capsys):
    with pytest.raises(SystemExit):
        tool.main([word for k, word in enumerate(words) if k not in (6, 7)])
    assert "give --video_cfg and --video_checkpoint" in capsys.readouterr().err
