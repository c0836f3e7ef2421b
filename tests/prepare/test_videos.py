"""Chunks hold the frames of their video, runs that are killed or shared go on, bad files are listed."""

import json
import os
import signal
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.video.clips_on_disk import number_of, turn, write_sound, write_video
from videorl.data import moments
from videorl.data.labelled import read_csv
from videorl.data.listed import Part
from videorl.loading.quarantine import Bad
from videorl.prepare import chunks, record
from videorl.prepare.cut import TICKS, Encoding, Shot, cut, fitted, timeline
from videorl.registry import UserError
from videorl.spec import Reading
from videorl.video.errors import VideoError
from videorl.video.reader import open_video

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import prepare_videos  # noqa: E402

SECOND = Encoding(seconds=Fraction(1), short_side=64, gop=10, crf=12, preset="ultrafast")
WORDS = ("--seconds", "1", "--short_side", "64", "--preset", "ultrafast", "--workers", "1")


def numbers_in(file: Path) -> list[int]:
    with open_video(file, "pyav") as video:
        return [number_of(frame.numpy()) for frame in video.frames(range(video.num_frames))]


def cut_up(source: Path, folder: Path, encoding: Encoding = SECOND):
    folder.mkdir(parents=True, exist_ok=True)
    return cut(str(source), folder, encoding, lambda: None)


@pytest.fixture
def run(capsys):
    """Runs the tool: (exit code, stdout, stderr)."""

    def run(*words):
        with pytest.raises(SystemExit) as stop:
            prepare_videos.main([*map(str, words), *WORDS])
        told = capsys.readouterr()
        return stop.value.code, told.out, told.err

    return run


@pytest.fixture
def videos(tmp_path):
    """Four good videos of 2 s in a tree."""
    folder = tmp_path / "videos"
    for k, name in enumerate(("a/one.mp4", "a/two.webm", "b/c/three.mp4", "four.mp4")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        codec = "libvpx" if name.endswith("webm") else "libx264"
        write_video(folder / name, range(60 * k % 180, 60 * k % 180 + 60), codec=codec)
    return folder


def files_of(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.mp4")}


# ---------------------------------------------------------------------------------------------------------- arithmetic


def test_chunks_cover_the_video_and_the_last_takes_what_is_left():
    for count, expected in {90: [90], 91: [91], 134: [134], 135: [90, 45], 224: [90, 134], 300: [90, 90, 120]}.items():
        shots = timeline([k * TICKS // 30 for k in range(count)], count * TICKS // 30, Fraction(3), None)
        assert [shot.frame for shot in shots] == list(range(count))
        assert np.bincount([shot.chunk for shot in shots]).tolist() == expected, count


def test_whole_video_is_one_chunk():
    assert timeline([0, 5, 9], 12, Fraction(0), None) == [Shot(0, 0, 0), Shot(0, 1, 5), Shot(0, 2, 9)]
    apart = timeline([k * TICKS for k in range(8)], 8 * TICKS, Fraction(3), None, rest_apart=True)
    assert [shot.chunk for shot in apart] == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("rate", "fps"), [(30, 10), (25, 30), (12, 24), (Fraction(30000, 1001), 5), (1, Fraction(1, 4))]
)
def test_other_rate_shows_at_each_step_the_frame_that_is_due(rate, fps):
    ticks = [round(k * TICKS / rate) for k in range(40)]
    end = round(40 * TICKS / rate)
    shots = timeline(ticks, end, Fraction(0), Fraction(fps))
    steps = [round(k * TICKS / fps) for k in range(len(shots))]
    assert [shot.tick for shot in shots] == steps
    assert abs(len(shots) - 40 * fps / rate) <= 0.5
    for step, shot in enumerate(shots):  # the last frame that begins before the middle of the step
        begun = [k for k, tick in enumerate(ticks) if tick * Fraction(fps) / TICKS < step + Fraction(1, 2)]
        assert shot.frame == begun[-1]


def test_stretch_without_frames_gives_no_chunk():
    ticks = [0, TICKS // 10, 5 * TICKS]
    assert [s.chunk for s in timeline(ticks, 6 * TICKS, Fraction(1), None)] == [0, 0, 5]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 360), (456, 256)),
        ((360, 640), (256, 456)),
        ((320, 240), (320, 240)),
        ((97, 65), (96, 64)),
        ((1, 9), (2, 8)),
    ],
)
def test_sizes_are_even_and_never_larger(size, expected):
    assert fitted(*size, 256) == expected


# ----------------------------------------------------------------------------------------------------------- one video


def test_chunks_hold_the_frames_at_their_times(tmp_path):
    source = write_video(tmp_path / "v.mp4", range(74), tone=2.0)
    made = cut_up(source, tmp_path / "out")
    assert [(c.number, c.start, c.end, c.frames) for c in made] == [(0, 0, 1, 30), (1, 1, 74 / 30, 44)]
    assert [n for c in made for n in numbers_in(c.file)] == list(range(74))
    with av.open(str(made[1].file)) as container:
        assert not container.streams.audio
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].average_rate == 30
        keys = [k for k, p in enumerate(container.demux(video=0)) if p.is_keyframe]
    assert max(np.diff([*keys, 44])) <= SECOND.gop
    with open_video(made[1].file, "pyav") as video:
        np.testing.assert_allclose(video.times, np.arange(44) / 30, atol=1e-9)


def test_same_bytes_every_time(tmp_path):
    source = write_video(tmp_path / "v.mp4", range(20))
    first, second = (cut_up(source, tmp_path / name)[0] for name in "ab")
    assert (first.sha256, first.size) == (second.sha256, second.size)


def test_uneven_frame_rate_is_kept(tmp_path):
    pts = [0, 1, 5, 6, 20, 31, 32, 59]
    source = write_video(tmp_path / "v.mp4", range(8), pts=pts)
    made = cut_up(source, tmp_path / "out")
    assert [numbers_in(c.file) for c in made] == [[0, 1, 2, 3, 4], [5, 6, 7]]
    with open_video(made[0].file, "pyav") as video:
        np.testing.assert_allclose(video.times, np.array(pts[:5]) / 30, atol=1e-6)


def test_other_frame_rate(tmp_path):
    source = write_video(tmp_path / "v.mp4", range(60))
    slow = cut_up(source, tmp_path / "slow", Encoding(Fraction(1), 64, Fraction(10), 10, 12, "ultrafast"))
    assert [len(numbers_in(c.file)) for c in slow] == [10, 10]
    assert set(np.diff([n for c in slow for n in numbers_in(c.file)])) == {3}
    fast = cut_up(source, tmp_path / "fast", Encoding(Fraction(0), 64, Fraction(60), 10, 12, "ultrafast"))
    shown = numbers_in(fast[0].file)
    assert (len(shown), max(np.diff(shown)), shown[-1]) == (120, 1, 59)


@pytest.mark.parametrize(
    "matrix", [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]
)
def test_turned_and_mirrored_videos_are_made_upright(tmp_path, matrix):
    """All eight display matrices: the chunk holds what players show, and no matrix."""
    source = turn(write_video(tmp_path / "v.mp4", range(4)), tmp_path / "turned.mp4", matrix)
    (chunk,) = cut_up(source, tmp_path / "out")
    with open_video(source, "pyav") as old, open_video(chunk.file, "pyav") as new:
        shown, kept = (video.frames([3])[0].numpy().astype(int) for video in (old, new))
    assert shown.shape == kept.shape == ((64, 96, 3) if matrix[0] else (96, 64, 3))
    assert np.abs(shown - kept).mean() < 4
    assert all(np.abs(turned - kept).mean() > 20 for turned in (shown[::-1], shown[:, ::-1], shown[::-1, ::-1]))
    with av.open(str(chunk.file)) as file:
        assert next(file.decode(video=0)).rotation == 0


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size", "ending"),
    [
        ("libx264", "yuv422p10le", (96, 64), "mp4"),
        ("libx264", "yuv444p", (97, 65), "mkv"),
        ("libx264", "yuvj420p", (96, 64), "mp4"),
        ("libvpx-vp9", "yuv420p", (96, 64), "webm"),
        ("mpeg4", "yuv420p", (96, 64), "avi"),
        ("libx264", "yuv420p", (96, 64), "h264"),
        ("libx264", "yuv420p", (96, 64), "ts"),
        ("png", "rgb24", (96, 64), "mov"),
    ],
)
def test_formats_keep_their_frames_and_colours(tmp_path, codec, pix_fmt, size, ending):
    source = write_video(tmp_path / f"v.{ending}", range(12), codec=codec, pix_fmt=pix_fmt, size=size)
    (chunk,) = cut_up(source, tmp_path / "out")
    assert (chunk.frames, chunk.width, chunk.height) == (12, 96, 64)
    assert numbers_in(chunk.file) == list(range(12))
    with open_video(source, "pyav") as old, open_video(chunk.file, "pyav") as new:
        shown, kept = (video.frames([0])[0, :64, :96].float() for video in (old, new))
    if size == (96, 64):
        assert float((shown - kept).abs().mean()) < 4
    with av.open(str(chunk.file)) as file:
        assert file.streams.video[0].codec_context.pix_fmt == ("yuvj420p" if pix_fmt == "yuvj420p" else "yuv420p")


# Parts of red and blue in luma, by FFmpeg's number of the matrix: ITU-R BT.601, BT.709, BT.2020, SMPTE 240M
MATRICES = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
UNTAGGED = 2


def patches_of_colour(seed: int) -> np.ndarray:
    """Y, Cb, Cr [3, 64, 96] in patches of 16x16 whose RGB is within bounds by any matrix and range."""
    levels = np.random.default_rng(seed).integers(100, 156, (3, 4, 6))
    levels[0] += 20
    return np.kron(levels, np.ones((1, 16, 16), int)).astype(np.uint8)


def rgb_of(planes: np.ndarray, matrix: int, full: bool) -> np.ndarray:
    """[H, W, 3] by the definition of the standards."""
    red, blue = MATRICES[6 if matrix == UNTAGGED else matrix]
    luma = planes[0] / 255 if full else (planes[0] - 16.0) / 219
    cb, cr = (planes[1:] - 128.0) / (255 if full else 224)
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    return 255 * np.stack([r, (luma - red * r - blue * b) / (1 - red - blue), b], -1)


def write_colours(path: Path, matrix: int, full: bool, codec: str) -> Path:
    """Three frames with these tags. A matrix is a label on the numbers: nothing converts them here."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=30, options={"crf": "4", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        stream.codec_context.color_primaries = stream.codec_context.color_trc = 1 if matrix != UNTAGGED else 2
        for _ in range(3):
            y, *chroma = patches_of_colour(0)
            planes = [y.ravel(), *(plane[::2, ::2].ravel() for plane in chroma)]
            frame = av.VideoFrame.from_ndarray(np.concatenate(planes).reshape(96, 96), format="yuv420p")
            frame.colorspace, frame.color_range = matrix, 2 if full else 1
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [*MATRICES, UNTAGGED])
def test_chunk_has_the_colours_of_its_source(tmp_path, matrix, full):
    """Matrix x range x tagged or not: red, green and blue by the standard's formula, in source and chunk, and tags."""
    inside = [y for y in range(64) if 4 <= y % 16 < 12], [x for x in range(96) if 4 <= x % 16 < 12]
    expected = rgb_of(patches_of_colour(0).astype(float), matrix, full)[np.ix_(*inside)]
    for codec, ending in (("libx264", "mp4"), ("libvpx-vp9", "webm"), ("ffv1", "mkv")):
        source = write_colours(tmp_path / f"{codec}.{ending}", matrix, full, codec)
        (chunk,) = cut_up(source, tmp_path / codec, Encoding(short_side=64, crf=4, preset="ultrafast"))
        for file in (source, chunk.file):
            with open_video(file, "pyav") as video:
                shown = video.frames([1])[0].numpy()[np.ix_(*inside)]
            assert np.abs(shown - expected).max() < 4, (codec, file.name)
        with av.open(str(chunk.file)) as file:
            frame = next(file.decode(video=0))
            assert (frame.colorspace, frame.format.name == "yuvj420p") == (matrix, full)


@pytest.mark.parametrize(("matrix", "name"), [(8, "YCgCo"), (14, "ICtCp")])
def test_colours_without_rgb_are_refused_by_name(tmp_path, matrix, name):
    source = write_colours(tmp_path / "v.mkv", matrix, False, "ffv1")
    said = rf"decode: FFmpeg makes no RGB of its colours \({name}\); convert them to BT.709"
    with open_video(source, "pyav") as video, pytest.raises(VideoError, match=said):
        video.frames([0])
    with pytest.raises(VideoError, match=said):
        cut_up(source, tmp_path / "out", Encoding(short_side=64))


def test_chunk_has_the_colours_of_rgb(tmp_path):
    """It becomes BT.601 and says so: untagged, players would take a large picture for BT.709."""
    colours = np.kron(np.random.default_rng(0).integers(60, 200, (4, 6, 3)), np.ones((16, 16, 1), int)).astype(np.uint8)
    with av.open(str(tmp_path / "v.mov"), "w") as file:
        stream = file.add_stream("png", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "rgb24"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(colours, format="rgb24")))
        file.mux(stream.encode(None))
    (chunk,) = cut_up(tmp_path / "v.mov", tmp_path / "out", Encoding(short_side=64, crf=4))
    with open_video(chunk.file, "pyav") as video:
        assert np.abs(video.frames([0])[0].numpy().astype(int) - colours)[8::16, 8::16].max() < 8
    with av.open(str(chunk.file)) as file:
        assert next(file.decode(video=0)).colorspace == 6


def test_damaged_video_raises(tmp_path):
    source = write_video(tmp_path / "v.mp4", range(60), container_options={"movflags": "faststart"})
    content = source.read_bytes()
    source.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(VideoError):
        cut_up(source, tmp_path / "out")


def test_wrong_file_is_noticed(tmp_path, monkeypatch):
    """A frame that the encoder loses is found when the chunk is read again."""
    source = write_video(tmp_path / "v.mp4", range(20))
    from videorl.prepare import cut as module

    write = module._write
    monkeypatch.setattr(module, "_write", lambda p, f, pictures, shots, *rest: write(p, f, pictures, shots[:-1], *rest))
    with pytest.raises(VideoError, match="19 frames written, 20 meant; first wrong: 19"):
        cut_up(source, tmp_path / "out")


# ---------------------------------------------------------------------------------------------------------------- runs


def test_folder_is_mirrored_and_every_chunk_listed(videos, tmp_path, run):
    out = tmp_path / "out"
    code, told, _ = run(videos, "--out", out)
    assert code == 0
    assert "4 videos cut" in told
    names = sorted(files_of(out))
    assert names == sorted(f"{stem}_0000{k}.mp4" for stem in ("a/one", "a/two", "b/c/three", "four") for k in (0, 1))
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert sorted(row["path"] for row in rows) == names
    assert {row["source"] for row in rows} == {"a/one.mp4", "a/two.webm", "b/c/three.mp4", "four.mp4"}
    assert all(row["frames"] == 30 and row["size"] == (out / row["path"]).stat().st_size for row in rows)
    assert (out / "videos.csv").read_text() == "".join(f"{row['path']} 0\n" for row in rows)
    assert [p.name for p in (out / record.PARTS).iterdir()] == ["0-of-1.lock"]


def test_lists_get_the_labels_of_their_chunks(videos, tmp_path, run):
    (tmp_path / "train.csv").write_text("a/one.mp4 3\nfour.mp4 1,2\n")
    (tmp_path / "val.csv").write_text("a/two.webm 0\ngone.mp4 5\n")
    out = tmp_path / "out"
    code, told, _ = run(tmp_path / "train.csv", tmp_path / "val.csv", "--root", videos, "--out", out)
    assert code == 1
    assert "gone.mp4: open: No such file or directory" in told
    expected = "a/one_00000.mp4 3\na/one_00001.mp4 3\nfour_00000.mp4 1,2\nfour_00001.mp4 1,2\n"
    assert (out / "train.csv").read_text() == expected
    assert (out / "val.csv").read_text() == "a/two_00000.mp4 0\na/two_00001.mp4 0\n"


def test_of_a_part_only_its_frames_are_cut(videos, tmp_path, run):
    """The list is of make_lists' kind for InternVid, where one video has several parts."""
    (tmp_path / "train.csv").write_text("a/one.mp4 0 7 40\na/one.mp4 0 40 60\nfour.mp4 0 50 90\nfour.mp4 0 60 70\n")
    out = tmp_path / "out"
    code, told, _ = run(tmp_path / "train.csv", "--root", videos, "--out", out)
    assert code == 1
    assert "four.mp4[60:70]: index: the list names frame 60 of 60" in told
    expected = {"a/one_7-40_00000.mp4": range(7, 40), "a/one_40-60_00000.mp4": range(40, 60)}
    expected["four_50-90_00000.mp4"] = range(50, 60)  # the video ends before
    assert {path: numbers_in(out / path) for path in files_of(out)} == {p: list(span) for p, span in expected.items()}
    assert (out / "train.csv").read_text() == "".join(f"{path} 0\n" for path in expected)
    rows = {row["path"]: row for row in map(json.loads, (out / "manifest.jsonl").read_text().splitlines())}
    part = rows["a/one_7-40_00000.mp4"]
    assert (part["source"], part["start"], part["frames"]) == ("a/one.mp4[7:40]", 0, 33)
    assert part["end"] == pytest.approx(33 / 30)
    told = run(tmp_path / "train.csv", "--root", videos, "--out", out)[1]
    assert "0 videos cut, 3 were finished before, 1 bad" in told


@pytest.mark.parametrize(
    ("text", "part", "label"),
    [
        ("a b.mp4 3\n", Part("a b.mp4"), " 3"),
        ("a b.mp4,3\n", Part("a b.mp4"), ",3"),
        ("a.mp4, 3\n", Part("a.mp4"), ",3"),
        ("a.mp4\n", Part("a.mp4"), " 0"),
        ("a.mp4 1,2\n", Part("a.mp4"), " 1,2"),
        ("a.mp4 0 -1\n", Part("a.mp4"), " 0"),
        ("a.mp4 3 0 9\n", Part("a.mp4", 0, 9), " 3"),
        ("a.mp4,3,0,9\n", Part("a.mp4", 0, 9), ",3"),
        ("a.mp4, 3,0,9\n", Part("a.mp4", 0, 9), ",3"),
        ("K400 a b.mp4 3 0 9 30\n", Part("a b.mp4", 0, 9), " 3"),
        ("K400,a b.mp4,-1,0,9,30\n", Part("a b.mp4", 0, 9), ",-1"),
        ('"a b.mp4" 3\n', Part("a b.mp4"), " 3"),
        ('"a, b.mp4","3"\n', Part("a, b.mp4"), ",3"),
        ('"a b.mp4"\n', Part("a b.mp4"), " 0"),
        ('a.mp4,"1,2"\n', Part("a.mp4"), ',"1,2"'),
        ('"a b.mp4" "3" 0 9\n', Part("a b.mp4", 0, 9), " 3"),
        ("a\\b.mp4 3\n", Part("a/b.mp4"), " 3"),
    ],
)
def test_layouts_of_lists(tmp_path, text, part, label):
    (tmp_path / "l.csv").write_text(text)
    sources = chunks.read_sources([tmp_path / "l.csv"], "", "", tmp_path / "out")
    (name,) = sources.parts
    assert sources.parts[name] == part
    assert sources.lists == {"l.csv": [(name, label)]}


def test_a_separator_says_that_lines_are_path_and_label(tmp_path):
    (tmp_path / "l.csv").write_text("clips 1/2,3\nclips 1/2 4,5\n")
    sources = chunks.read_sources([tmp_path / "l.csv"], "", ",", tmp_path / "out")
    assert sources.lists == {"l.csv": [("clips 1/2", ",3"), ("clips 1/2 4", ",5")]}


def test_shards_are_disjoint_and_complete(videos, tmp_path, run):
    out, alone = tmp_path / "out", tmp_path / "alone"
    code, told, _ = run(videos, "--out", out, "--num_shards", 2, "--shard_id", 0)
    assert code == 0
    assert "2 videos are left to other shards" in told
    assert not (out / "videos.csv").exists()
    run(videos, "--out", out, "--num_shards", 2, "--shard_id", 1)
    run(videos, "--out", alone)
    parts = [out / f"manifest.{k}-of-2.jsonl" for k in range(2)]
    done = [{json.loads(line)["source"] for line in part.read_text().splitlines()} for part in parts]
    assert not done[0] & done[1]
    assert len(done[0]) == len(done[1]) == 2
    assert files_of(out) == files_of(alone)
    for name in ("manifest.jsonl", "videos.csv"):
        assert (out / name).read_text() == (alone / name).read_text()


def test_bad_files_are_listed_and_tried_again(videos, tmp_path, run):
    (videos / "text.mp4").write_text("no video")
    (videos / "empty.mp4").touch()
    write_sound(videos / "sound.mp4")
    whole = (videos / "four.mp4").read_bytes()
    (videos / "half.mp4").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    code, told, _ = run(videos, "--out", out)
    assert code == 1
    assert "4 videos cut, 0 were finished before, 4 bad" in told
    bad = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]
    assert {row["source"] for row in bad} == {"text.mp4", "empty.mp4", "sound.mp4", "half.mp4"}
    assert all(row["stage"] and row["reason"] for row in bad)
    assert len(files_of(out)) == 8
    (videos / "text.mp4").write_bytes(whole)
    code, told, _ = run(videos, "--out", out)
    assert "1 videos cut, 4 were finished before, 3 bad" in told
    assert "(in place of 8)" in told


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"four\n.mp4 4\nx.mp4", "its name holds a line break"),
        (b"four\r.mp4", "its name holds a line break"),
        (b"four\xff.mp4", "its name is no UTF-8 text"),
        (b" four.mp4", "a list would name another file"),
    ],
)
def test_a_name_that_no_list_can_hold_is_bad(videos, tmp_path, run, name, reason):
    """One with a line break would add a row of its choice to videos.csv."""
    os.rename(videos / "four.mp4", os.fsencode(videos) + b"/" + name)
    out = tmp_path / "out"
    code, told, _ = run(videos, "--out", out)
    assert code == 1
    assert f": open: {reason}" in told
    assert len(told.splitlines()) == 6
    (bad,) = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]
    assert os.fsencode(bad["source"]) == name
    rows = [line.rsplit(" ", 1) for line in (out / "videos.csv").read_text().splitlines()]
    assert [label for _, label in rows] == ["0"] * 6
    assert {path for path, _ in rows} == set(files_of(out))


def test_names_that_lists_hold_are_read_back_from_them(videos, tmp_path, run):
    for old, name in (("four.mp4", 'a "b" \\n, 3.mp4'), ("a/one.mp4", "é日本\u2028 .mp4")):
        os.rename(videos / old, videos / name)
    out = tmp_path / "out"
    assert run(videos, "--out", out)[0] == 0
    read = read_csv(out / "videos.csv", str(out), " ", 1, False, False)
    assert sorted(path for path, _ in read) == sorted(files_of(out))


def test_killed_run_goes_on(videos, tmp_path, run, monkeypatch):
    """kill -9 after the first finished video: what is listed is whole, and the rest is done by the next run."""
    out, alone = tmp_path / "out", tmp_path / "alone"
    add = record.Record.add
    monkeypatch.setattr(record.Record, "add", lambda self, rows: (add(self, rows), os.kill(os.getpid(), 9)))
    if not (child := os.fork()):
        prepare_videos.main([str(videos), "--out", str(out), *WORDS])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.undo()
    with open(out / "manifest.0-of-1.jsonl", "a") as file:
        file.write('{"path": "four_00000.mp4", "sou')  # as if killed while writing
    (done,) = record.finished(out).values()
    before = {row["path"]: (out / row["path"]).stat().st_mtime_ns for row in done}
    code, told, _ = run(videos, "--out", out)
    assert code == 0
    assert "3 videos cut, 1 were finished before" in told
    assert {path: (out / path).stat().st_mtime_ns for path in before} == before
    run(videos, "--out", alone)
    assert files_of(out) == files_of(alone)
    assert (out / "manifest.jsonl").read_text() == (alone / "manifest.jsonl").read_text()


def test_file_that_is_gone_or_cut_off_is_made_again(videos, tmp_path, run):
    out = tmp_path / "out"
    run(videos, "--out", out)
    before = files_of(out)
    (out / "four_00001.mp4").unlink()
    (out / "a/one_00000.mp4").write_bytes(b"half")
    assert "2 videos cut, 2 were finished before" in run(videos, "--out", out)[1]
    assert files_of(out) == before
    assert "0 videos cut, 4 were finished before" in run(videos, "--out", out)[1]


def crash_or_hang(source: str, pulse):
    if source == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    while source == "hang":
        signal.pause()
    for _ in range(3):
        pulse()
    return source.upper()


def test_crash_and_hang_cost_their_file_only():
    from videorl.loading.pool import Workers
    from videorl.prepare.crew import each

    paths = ["a", "crash", "b", "hang", "c", "d"]
    found = dict(each(paths, crash_or_hang, Workers(2, timeout=0.7), lambda items, total: items))
    assert [found[k] for k in (0, 2, 4, 5)] == ["A", "B", "C", "D"]
    assert (found[1].stage, found[3].stage) == ("crash", "hang")


def test_workers_that_cannot_live_name_the_key_of_the_command(monkeypatch):
    from videorl.loading import pool
    from videorl.loading.pool import Workers
    from videorl.prepare.crew import each

    monkeypatch.setattr(pool, "work", lambda *_: os._exit(9))
    with pytest.raises(UserError, match=r"keep dying before any video \(exit code 9; .*lower --workers"):
        list(each(["a"], crash_or_hang, Workers(1), lambda items, total: items))


def test_chunks_named_by_seconds_are_what_a_moment_is_read_from(tmp_path, run):
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in/v.mp4", range(75))  # 2.5 s
    out = tmp_path / "out"
    code, _, _ = run(tmp_path / "in", "--out", out, "--names", "seconds")
    assert code == 0
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.mp4") if p.is_file()) == [
        f"v.mp4/{second}.mp4" for second in range(3)
    ]
    with moments.Shot(str(out / "v.mp4"), 1, 0.5, 2.5, "parts", Reading()) as shot:
        numbers = shot.numbers(4).tolist()
        assert [number_of(frame.numpy()) for frame in shot.frames(numbers)] == numbers
        assert numbers[-1] > 60  # of the third chunk
    with pytest.raises(UserError, match="--names seconds, --seconds 5/2: expected whole seconds, 1 or more"):
        Encoding(Fraction(5, 2), by_second=True)


# ------------------------------------------------------------------------------------------------------------ mistakes


def test_other_settings_and_foreign_folders_are_refused(videos, tmp_path, run):
    out, mine = tmp_path / "out", tmp_path / "mine"
    run(videos, "--out", out)
    before = files_of(out)
    code, _, told = run(videos, "--out", out, "--crf", 30)
    assert (code, told.count("\n")) == (2, 1)
    assert "holds chunks with crf 23 (asked for " in told
    assert files_of(out) == before
    mine.mkdir()
    (mine / "thesis.tex").touch()
    code, _, told = run(videos, "--out", mine)
    assert (code, told.count("\n")) == (2, 1)
    assert "not from this tool" in told


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--shard_id", 2, "--num_shards", 2), "--shard_id 2: expected 0 … 1"),
        (("--short_side", 255), "expected an even number"),
        (("--gop", 0), "--gop 0"),
        (("--timeout", 0), "--timeout"),
        (("--root", "x"), "--root is for csv files"),
    ],
)
def test_wrong_command_is_one_line(tmp_path, capsys, words, expected):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/v.mp4", range(2))
    with pytest.raises(SystemExit) as stop:
        prepare_videos.main([*map(str, (tmp_path / "videos", "--out", tmp_path / "out", *words))])
    told = capsys.readouterr().err
    assert (stop.value.code, told.count("\n")) == (2, 1)
    assert expected in told
    assert not (tmp_path / "out").exists()


def test_names_that_meet_are_refused(videos, tmp_path):
    (videos / "four.webm").touch()
    with pytest.raises(UserError, match=r"four\.mp4 and four\.webm would become files of the same name"):
        chunks.read_sources([videos], "", " ", tmp_path / "out")


def test_output_inside_the_input_is_refused(videos):
    with pytest.raises(UserError, match="lies in"):
        chunks.read_sources([videos], "", " ", videos / "out")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.mp4 1\nb.mp4\n", "line 2: expected `path label`"),
        ("../a.mp4 1\n", "line 1: .* leaves --root"),
        ("", "no rows"),
        ("a.mp4\nb.mp4 1\n", "line 2: expected `path label` in all lines or in none"),
        ("a.mp4 0 -1\nframes/1 0 48\n", "line 2: expected a video file, found a folder of frames: 'frames/1 0 48'"),
        ("frames/1 48 4\n", "line 1: expected a video file, found a folder of frames"),
        ("a.mp4 1 9 3\n", "line 1: frames 9 to 3"),
        ("a.mp4 1 0 3\nb.mp4 1\n", "line 2: expected `path label sframe eframe` as on the first line"),
    ],
)
def test_wrong_list_names_file_and_line(tmp_path, text, expected):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(UserError, match=expected):
        chunks.read_sources([tmp_path / "l.csv"], "", "", tmp_path / "out")


def test_two_processes_of_one_shard_are_refused(tmp_path):
    shard = record.Shard(0, 1)
    with record.Record(tmp_path, shard) as first:
        first.add_bad("v.mp4", Bad(0, "v.mp4", "why", "open"))
        if not (child := os.fork()):
            try:
                record.Record(tmp_path, shard)
            except UserError:
                os._exit(3)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert list(record.unreadable(tmp_path)) == ["v.mp4"]


def test_full_disk_ends_the_run_in_one_line(videos, tmp_path, monkeypatch):
    def full(*_):
        raise VideoError("v.mp4", "encode", "No space left on device") from OSError(28, "No space left on device")

    monkeypatch.setattr(chunks, "cut", full)
    cutter = chunks.Cutter(videos, tmp_path, tmp_path, SECOND, {"four.mp4": Part("four.mp4")})
    with pytest.raises(UserError, match="No space left on device; make room"):
        cutter("four.mp4", lambda: None)
