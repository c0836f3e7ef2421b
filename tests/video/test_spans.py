"""Clips by time hold the frames and the pixels that a filter graph over the whole decoded file gives."""

import gc
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.filter import Graph

from tests.video.clips_on_disk import cut, join, restamp, turn, write_sound, write_video
from tests.video.test_reader import SHOWN, as_shown
from tools.bench import spans as bench
from videorl.video.errors import VideoError
from videorl.video.h264 import Units
from videorl.video.reader import open_video
from videorl.video.spans import Crop, Spans, pick, stacked

N, T, FPS = 100, 8, 5  # frames of a file, at 30 a second; frames of a clip, and how many of them a second
STARTS = (0, 0.9, 1, 1.3333333, 1.966, 2, 2.9, 3.2)
CENTRE = Crop(48)
VARIABLE = np.cumsum(np.random.default_rng(0).integers(5, 60, N)).tolist()  # ms
GAP = [30 * k + 3000 * (k >= 40) for k in range(N)]  # ms

KINDS = {
    "b_frames": ("mp4", {"gop": 40}),
    "one_gop": ("mp4", {"gop": 999}),
    "sound": ("mp4", {"tone": 3.3}),
    "open_gop": ("mp4", {"options": {"x264-params": "open-gop=1:bframes=3:keyint=30:min-keyint=30"}}),
    "intra_refresh": ("mp4", {"options": {"x264-params": "intra-refresh=1:bframes=0:keyint=30"}}),
    "variable_rate": ("mkv", {"pts": VARIABLE, "time_base": Fraction(1, 1000)}),
    "gap": ("mp4", {"pts": GAP, "time_base": Fraction(1, 1000)}),
    "vp9": ("webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}, "gop": 40}),
    "mpeg4_avi": ("avi", {"codec": "mpeg4"}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("spans")
    made = {kind: write_video(folder / f"{kind}.{end}", range(N), **how) for kind, (end, how) in KINDS.items()}
    made["edit_list"] = cut(made["b_frames"], folder / "edit_list.mp4", 45)
    return made


def from_whole_file(path: Path, start: float, crop: Crop) -> torch.Tensor:
    """The slow way: every frame of the file is decoded and goes through ffmpeg's own filters trim, fps, crop, scale."""
    pictures = []
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        offset = f"{start + (file.start_time or 0) / av.time_base:.6f}"
        graph = Graph()
        source = graph.add_buffer(template=stream, time_base=stream.time_base)
        filters = [
            ("trim", f"start={offset}:duration={T / FPS + 0.1}"),
            ("setpts", f"PTS-round({offset}/TB)"),
            ("fps", "5"),
        ]
        filters += [*crop.filters(), ("format", "rgb24"), ("buffersink", "")]
        graph.link_nodes(source, *(graph.add(*f) for f in filters)).configure()
        for frame in [*file.decode(stream), None]:
            try:
                graph.push(frame)
            except av.EOFError:
                break
            pictures += _ready(graph)
        pictures += _ready(graph)
    return stacked(pictures[:T], T, crop.size)


def _ready(graph: Graph) -> list[np.ndarray]:
    found = []
    while True:
        try:
            found.append(graph.pull().to_ndarray())
        except (av.BlockingIOError, av.EOFError):
            return found


def clip_of(path: Path, start: float, crop: Crop = CENTRE, frames: int = T) -> torch.Tensor:
    with Spans(path) as video:
        return video.clip(start, frames=frames, fps=FPS, crop=crop)


@pytest.mark.parametrize("kind", [*KINDS, "edit_list"])
def test_every_kind_of_file_gives_the_frames_of_ffmpeg_s_filters(files, kind):
    for start in STARTS:
        expected = from_whole_file(files[kind], start, CENTRE)
        if not expected.any():
            with pytest.raises(VideoError, match="shows nothing"):
                clip_of(files[kind], start)
        else:
            assert torch.equal(clip_of(files[kind], start), expected), start


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("flip", [True, False])
def test_every_crop_gives_the_pixels_of_ffmpeg_s_filters(files, scaled, flip):
    for across, down in ((0, 0), (1, 1), (0.3, 0.71), (1e-7, 0.5)):
        crop = Crop(40, across, down, scaled, flip)
        assert torch.equal(clip_of(files["b_frames"], 1, crop), from_whole_file(files["b_frames"], 1, crop))


@pytest.mark.parametrize("matrix", SHOWN)
def test_a_turned_or_mirrored_video_is_shown_as_players_do(files, tmp_path, matrix):
    """Crop and scale may round another way, but not by much."""
    upright = clip_of(files["b_frames"], 1).permute(0, 2, 3, 1).numpy()
    turned = clip_of(turn(files["b_frames"], tmp_path / "turned.mp4", matrix), 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(turned.astype(int) - as_shown(upright, matrix)).mean() < 2


def test_stamps_in_decoding_order_are_not_believed(files, tmp_path):
    restamped = restamp(files["b_frames"], tmp_path / "restamped.mp4")
    for start in (0, 1, 2.1):
        assert torch.equal(clip_of(restamped, start), clip_of(files["b_frames"], start))


def test_the_main_stream_is_read(files, tmp_path):
    thumbnails = write_video(tmp_path / "thumbnails.mp4", range(60, 80), size=(64, 48))
    file = join(tmp_path / "two.mp4", [thumbnails, files["b_frames"]], main=1)
    assert torch.equal(clip_of(file, 1), clip_of(files["b_frames"], 1))


def test_what_is_missing_at_the_end_is_black(files):
    clip = clip_of(files["b_frames"], 2, frames=16)
    shown = clip.flatten(1).amax(1) > 0
    assert clip.shape == (16, 3, 48, 48)
    assert shown.tolist() == [True] * 7 + [False] * 9, "4 / 3 seconds are left: 6.67 frames of 5 a second"


def test_a_clip_depends_on_nothing_that_was_read_before(files):
    with Spans(files["open_gop"]) as video:
        forth = [video.clip(start, frames=T, fps=FPS, crop=CENTRE) for start in STARTS]
        back = [video.clip(start, frames=T, fps=FPS, crop=CENTRE) for start in STARTS[::-1]]
    assert all(torch.equal(a, b) for a, b in zip(forth, back[::-1]))


def pick_slowly(times, end, count, step) -> list[int]:
    """Shows frames one by one on a line of steps, the later over the earlier."""
    half_up = lambda t: int(t / step + Fraction(1, 2))  # noqa: E731
    if not times:
        return []
    line, first, stop = {}, half_up(times[0]), half_up(end)
    for place, time in enumerate(times):
        for k in range(half_up(time), max(stop, first)):
            line[k] = place
    return [line[k] for k in range(first, stop)][:count]


def test_picked_frames_against_a_slow_reference():
    random = np.random.default_rng(0)
    for _ in range(300):
        times = np.cumsum(random.integers(1, 40, random.integers(0, 30))).tolist()
        end = (times[-1] if times else 0) + int(random.integers(0, 40))
        step = Fraction(int(random.integers(10, 300)), int(random.integers(1, 8)))
        assert pick(times, end, 10, step) == pick_slowly(times, end, 10, step)


def test_thirty_frames_a_second_to_five():
    """Every sixth frame, the last whose time rounds to the output's: 2, 8, 14 …"""
    assert pick(range(100), 100, 16, Fraction(6)) == list(range(2, 98, 6))


def test_frames_by_number(files):
    with open_video(files["mpeg4_avi"], "pyav") as video:
        expected = video.frames([3, 50])[:, 8:56, 24:72]
    with Spans(files["mpeg4_avi"]) as video:
        found = video.pictures([50, 3, N, 50], Crop(48, scaled=False))
    assert sorted(found) == [3, 50]
    stack = torch.from_numpy(np.stack([found[3], found[50]]))
    assert (stack.int() - expected.int()).abs().max() <= 3, "cut before the colours are turned to RGB, not after"


def error_of(path: Path, start: float = 0, crop: Crop = CENTRE, **options) -> VideoError:
    with pytest.raises(VideoError) as error, Spans(path, **options) as video:
        video.clip(start, frames=T, fps=FPS, crop=crop)
    return error.value


def test_errors_say_what_is_wrong(files, tmp_path):
    path = files["b_frames"]
    assert error_of(tmp_path / "none.mp4").stage == "open"
    assert error_of(write_sound(tmp_path / "sound.mp4")).reason == "no video stream"
    assert error_of(path, 4).reason == "it shows nothing from second 4 on: it ends before"
    assert error_of(path, max_pixels=6000).stage == "open"
    small = error_of(path, crop=Crop(65, scaled=False))
    assert (small.stage, small.reason) == ("decode", "96x64 pixels hold no crop of 65 without scaling")
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\n{path}\n")
    assert "not a video" in error_of(playlist).reason


def test_a_cut_file_ends_where_its_bytes_end(files, tmp_path):
    """A download that broke off: its header comes first and promises more than there is."""
    whole = write_video(tmp_path / "whole.mp4", range(N), container_options={"movflags": "faststart"})
    part = tmp_path / "part.mp4"
    part.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert clip_of(part, 0, frames=2).flatten(1).any(1).all()
    assert error_of(part, 3).stage == "decode"


def test_the_file_is_closed_after_an_error(files):
    gc.collect()  # what other tests have left open
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        error_of(files["b_frames"], 9)
        error_of(files["b_frames"], crop=Crop(99, scaled=False))
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_benchmark_refuses_unknown_ways_before_it_times_any(files, capsys, monkeypatch):
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("timed"))
    with pytest.raises(SystemExit) as end:
        bench.main([str(files["b_frames"]), "--against", "ours,decord"])
    assert end.value.code == 2
    assert "--against 'decord': expected some of ours,graph,torchcodec,ffmpeg" in capsys.readouterr().err


def test_damage_gives_no_other_frames_than_a_decode_that_leaves_nothing_out(tmp_path, monkeypatch):
    """One bit of a unit's header is flipped, in one packet after the other."""
    options = {"x264-params": "b-pyramid=none:scenecut=0"}
    clip, file = write_video(tmp_path / "a.mp4", range(60), gop=999, options=options), tmp_path / "damaged.mp4"
    content, good = clip.read_bytes(), clip_of(clip, 0.2)
    with av.open(str(clip)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    refused = 0
    for number, at in enumerate(places[1:40]):
        damaged = bytearray(content)
        damaged[at + 4] ^= 1 << (0, 1, 3)[number % 3]  # behind the length of the unit
        file.write_bytes(damaged)
        found = clip_or_none(file)
        with monkeypatch.context() as whole:
            whole.setattr(Units, "is_needed", lambda units, packet: True)
            expected = clip_or_none(file)
        refused += expected is None
        assert found is None or torch.equal(found, good if expected is None else expected)
    assert refused >= 3


def clip_or_none(file: Path) -> torch.Tensor | None:
    try:
        return clip_of(file, 0.2)
    except VideoError:
        return None
