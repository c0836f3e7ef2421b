"""Videos narrated from end to end: the windows of a list's moments, subtitles as ffmpeg reads them, pages."""

import base64
import hashlib
import html
import json
import pickle
import re
import shutil

import av
import pytest

from tests.narrate.world import code, content
from videorl.cli.narrate import main
from videorl.narrate import dense
from videorl.report.subtitles import srt, vtt

LENGTH = 12  # shots of a toy video, about two seconds each


@pytest.fixture
def videos(world, tmp_path):
    """A folder with a video of about 25 s, a short one in a folder, and one that is none."""
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    shutil.copy(world / "videos/epic/P00/P00_00.MP4", folder / "day & night.mp4")
    shutil.copy(next((world / "videos/ego4d").glob("*/0.mp4")), folder / "more/short.mp4")
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def read(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_windows_are_read_and_narrated_as_the_moments_of_a_list(model, videos, tmp_path):
    video = videos / "day & night.mp4"
    assert code(main, [video, *model, "--every", 2, "--window", 4, "--out", tmp_path / "out"]) == 0
    found = read(tmp_path / "out/day & night.jsonl")
    assert [row["start"] for row in found] == [2.0 * k for k in range(len(found))]
    with av.open(str(video)) as file:
        seconds = file.streams.video[0].frames / 10
    assert found[-2]["end"] < seconds == found[-1]["end"] <= found[-1]["start"] + 4
    (tmp_path / "rows.pkl").write_bytes(pickle.dumps([("day & night", r["start"], r["end"], "") for r in found]))
    words = ["--metadata", tmp_path / "rows.pkl", "--returns", 1, "--out", tmp_path / "list"]
    assert code(main, [*model, *words, "EGO4D.ROOT", videos, "EGO4D.CHUNK_SECONDS", 0]) == 0
    listed = read(tmp_path / "list/narrations.jsonl")
    assert [row["texts"] for row in listed] == [row["texts"] for row in found]
    assert [row["log_likelihoods"] for row in listed] == [row["log_likelihoods"] for row in found]
    assert len({row["texts"][0] for row in found}) > 3


def test_a_folder_with_several_texts_of_a_window(model, videos, tmp_path, capsys):
    command = [videos, *model, "--returns", 2, "--every", 3, "--window", 3, "--out", tmp_path / "out"]
    assert code(main, [*command, "--num_shards", 2, "--shard_id", 1]) == 0
    assert "other shards are not yet" in capsys.readouterr().out
    assert code(main, command) == 1
    assert [row["video"] for row in read(tmp_path / "out/quarantine.jsonl")] == ["broken.mp4"]
    names = {f"{stem}.{end}" for stem in ("day & night", "more/short") for end in ("jsonl", "srt", "vtt", "html")}
    assert content(tmp_path / "out").keys() == names | {"quarantine.jsonl", "narrate.json"}
    rows = read(tmp_path / "out/more/short.jsonl")
    page = (tmp_path / "out/more/short.html").read_text()
    assert all(page.count(text) for row in rows for text in row["texts"])
    assert 'src="../../videos/more/short.mp4"' in page
    # The first texts of a window are on the screen, the likelier one of the two.
    best = [max(zip(row["log_likelihoods"], row["texts"]))[1] for row in rows]
    assert [text for _, _, text in subtitles(tmp_path / "out/more/short.srt")] == best


def subtitles(file) -> list[tuple[float, float, str]]:
    """Start, end and text of each, by ffmpeg."""
    with av.open(str(file)) as opened:
        packets = [packet for packet in opened.demux() if packet.size]
        scale = float(packets[0].time_base)
        return [(p.pts * scale, (p.pts + p.duration) * scale, bytes(p).decode()) for p in packets]


ROWS = [
    {"start": 0.0, "end": 4.0, "texts": ["#C C opens <b>\nthe door", "no"], "log_likelihoods": [-1.0, -2.0]},
    {"start": 2.0, "end": 6.0, "texts": ["first", "#C C --> & cuts"], "log_likelihoods": [-3.0, -2.0]},
    {"start": 3600.0, "end": 3601.5, "texts": ["late"], "log_likelihoods": [-1.0]},
]


def test_subtitles_come_one_at_a_time_and_ffmpeg_reads_them(tmp_path):
    cues = [(*span, dense.likeliest(row)) for span, row in zip(dense.shown(ROWS), ROWS)]
    (tmp_path / "a.srt").write_text(srt(cues))
    (tmp_path / "a.vtt").write_text(vtt(cues))
    expected = [(0.0, 3.0, "#C C opens <b> the door"), (3.0, 6.0, "#C C --> & cuts"), (3600.0, 3601.5, "late")]
    assert subtitles(tmp_path / "a.srt") == expected
    found = [(*span, html.unescape(text)) for *span, text in subtitles(tmp_path / "a.vtt")]
    assert found == expected
    assert "<b>" not in (tmp_path / "a.vtt").read_text()


def test_the_page_loads_nothing_and_runs_its_own_script_alone(tmp_path):
    rows = [{**row, "picture": "data:image/webp;base64,AA"} for row in ROWS]
    dense._write_video(tmp_path / "a", rows, str(tmp_path / "a b.mp4"), "<a>.mp4", "notes")
    page = (tmp_path / "a.html").read_text()
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    assert f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}" in page
    assert "opens &lt;b&gt;\nthe door" not in page
    assert "opens &lt;b&gt; the door" in page
    assert "<a>" not in page
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {"a%20b.mp4", "data:image/webp;base64,AA"}


def test_a_video_called_as_the_list_of_bad_ones_is_refused(model, videos, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    shutil.copy(videos / "more/short.mp4", tmp_path / "in/quarantine.mp4")
    assert code(main, [tmp_path / "in", *model, "--out", tmp_path / "out"]) == 2
    assert "quarantine.mp4 would have its texts in quarantine.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--every", 0], "expected more than 0 seconds"),
        (["--pickle", "--format", "parquet"], "--format and --pickle: of no effect where videos are narrated"),
        (["--every", 3], "stride 4.0 (asked for 3.0)"),
        (["NARRATOR.CONTEXT", 8], "places for 8 tokens"),
    ],
)
def test_mistakes_are_one_line(model, videos, tmp_path, capsys, words, said):
    command = [videos / "more/short.mp4", *model, "--every", 4, "--out", tmp_path / "out"]
    if "--every" in words:
        assert code(main, command) == 0
    assert code(main, [*command, *words]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
