"""Frames are exact, on every kind of file and from every backend, or a VideoError says why not."""

import gc
import logging
import multiprocessing
import os
import pickle
import random
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.sidedata.sidedata import Type

from tests.video.clips_on_disk import cut, join, number_of, patch, restamp, turn, write_sound, write_video
from videorl.registry import UserError
from videorl.video import backends, errors, orientation
from videorl.video.errors import VideoError
from videorl.video.reader import open_video

N = 50
HEVC = "log-level=error:pools=none:frame-threads=1:bframes=3:keyint=12:min-keyint=12:scenecut=0"
VARIABLE = [k * 3000 + (k // 10) * 7000 + (k * k % 5) * 500 for k in range(N)]  # in 1/90000 s

KINDS = {
    "h264": ("mp4", {}),
    "one_gop": ("mp4", {"gop": 999}),
    "open_gop": ("mp4", {"options": {"x264-params": "open-gop=1:bframes=3:keyint=10:min-keyint=10"}}),
    "intra_refresh": ("mp4", {"options": {"x264-params": "intra-refresh=1:bframes=0:keyint=10"}}),
    "mbaff": ("mp4", {"options": {"x264-params": "tff=1:bframes=3:b-pyramid=normal:keyint=24"}}),
    "fragmented": ("mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov+default_base_moof"}}),
    "variable_rate": ("mp4", {"pts": VARIABLE, "time_base": Fraction(1, 90000)}),
    "matroska": ("mkv", {}),
    "vp9": (
        "webm",
        {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "8"}},
    ),
    "vp9_odd": ("webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}, "size": (97, 65)}),
    "h264_cropped": ("mp4", {"size": (98, 66)}),
    "hevc": ("mp4", {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": HEVC + ":open-gop=0"}}),
    "hevc_open_gop": ("mp4", {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": HEVC}}),
    "ten_bit": ("mp4", {"pix_fmt": "yuv420p10le"}),
    "ts": ("ts", {"container": "mpegts"}),
    "mpeg4_avi": ("avi", {"codec": "mpeg4", "options": {"qscale": "2", "bf": "2"}}),
    "h264_avi": ("avi", {}),
    "raw": ("h264", {"container": "h264"}),
    "flv": ("flv", {}),
    "wmv": ("wmv", {"codec": "wmv2", "options": {"qscale": "2"}}),
    "ogg": ("ogv", {"codec": "libvpx", "container": "ogg"}),
    "gif": ("gif", {"codec": "gif", "pix_fmt": "rgb8"}),
}
DERIVED = ("edit_list", "turned", "one_frame", "with_sound")
ALL_KINDS = (*KINDS, *DERIVED)

# What each backend hands over to PyAV. Everything else it must read itself.
NOT_BY_TORCHCODEC = {"intra_refresh", "vp9_odd", "ten_bit", "ts", "mpeg4_avi", "h264_avi", "raw"}
NOT_BY_TORCHCODEC |= {"flv", "wmv", "ogg", "gif"}
HANDED_OVER = {
    "pyav": set(),
    "torchcodec": NOT_BY_TORCHCODEC,
    "decord": NOT_BY_TORCHCODEC | {"open_gop", "hevc", "hevc_open_gop", "edit_list"},
}

PLANS = {
    "random": [31, 2, 47, 12, 11, 13, 48, 0, 25, 24, 36, 35, 49],
    "sparse": [1, 9, 17, 25, 33, 41, 49],
    "dense": list(range(20, 36)),
    "backwards": list(range(40, 24, -1)),
    "repeated": [7, 7, 30, 7, 30, 49, 49, 49],
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    made = {name: write_video(folder / f"{name}.{end}", range(N), **keys) for name, (end, keys) in KINDS.items()}
    made["edit_list"] = cut(made["h264"], folder / "edit_list.mp4", first=17)
    made["turned"] = turn(made["h264"], folder / "turned.mp4")
    made["one_frame"] = write_video(folder / "one_frame.mp4", [5])
    made["with_sound"] = write_video(folder / "with_sound.mp4", range(N), pts=range(15, 15 + N), tone=2.0)
    return made


@pytest.fixture(scope="module", params=["pyav", "torchcodec", "decord"])
def backend(request) -> str:
    if request.param != "pyav" and (reason := backends._missing(request.param)):
        pytest.skip(f"{request.param}: {reason}")
    return request.param


def decode_all(path: Path) -> np.ndarray:
    """[N, H, W, 3] uint8, as players show them: the slow reference, every frame in turn from the start."""
    with av.open(str(path)) as file:
        file.streams.video[0].codec_context.thread_count = 1
        frames = [frame.to_ndarray(format="rgb24", threads=1) for frame in file.decode(video=0)]
    return np.stack([np.rot90(f, -1) for f in frames] if path.stem == "turned" else frames)


def numbers_in(frames) -> list[int]:
    return [number_of(np.asarray(frame)) for frame in frames]


def moved_up(source: Path, target: Path) -> Path:
    """The same file with its header in front, as files for the web have it: what is cut off then is frames."""
    options = {"movflags": "faststart"}
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                new.mux(packet)
    return target


# ---- right frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_backend_gives_the_frames_of_a_full_decode(clips, backend, kind):
    reference = decode_all(clips[kind])
    with open_video(clips[kind], backend) as video:
        assert video.num_frames == len(video.times) == len(reference)
        for name, plan in PLANS.items():
            plan = [min(i, len(reference) - 1) for i in plan]
            assert np.array_equal(video.frames(plan), reference[plan]), name
        for i in random.Random(0).sample(range(len(reference)), len(reference)):
            assert np.array_equal(video.frames([i])[0], reference[i]), i
        assert video.size == reference.shape[1:3]
        assert video.backend == ("pyav" if kind in HANDED_OVER[backend] else backend)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_frames_carry_the_number_that_was_asked_for(clips, kind):
    expected = {"edit_list": list(range(17, N)), "one_frame": [5]}.get(kind, list(range(N)))
    with open_video(clips[kind]) as video:
        frames = video.frames(range(video.num_frames)).numpy()
    assert numbers_in(np.rot90(frames, 1, axes=(1, 2)) if kind == "turned" else frames) == expected


def test_the_files_are_what_their_names_say(clips):
    with av.open(str(clips["open_gop"])) as file:
        keys_and_pts = [(p.is_keyframe, p.pts) for p in file.demux(video=0) if p.size]
    leading = [
        pts for (_, pts), (is_key, key) in zip(keys_and_pts[1:], keys_and_pts, strict=False) if is_key and pts < key
    ]
    with av.open(str(clips["edit_list"])) as file:
        hidden = sum(p.is_discard for p in file.demux(video=0))
    with av.open(str(clips["raw"])) as file:
        stamps = {p.pts for p in file.demux(video=0)}
    assert leading
    assert hidden == 17 - 12
    assert stamps == {None}


def test_frames_are_uint8_rows_by_columns_by_rgb(clips):
    with open_video(clips["h264"]) as video:
        frames = video.frames(np.array([3, 1]))
    assert frames.dtype == torch.uint8
    assert frames.shape == (2, 64, 96, 3)
    assert frames.is_contiguous()


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_stamps_in_decoding_order_name_no_frames_so_these_are_counted(clips, backend, tmp_path, ending):
    file, reference = restamp(clips["h264"], tmp_path / f"restamped.{ending}"), decode_all(clips["h264"])
    with open_video(file, backend) as video:
        assert video.num_frames == N
        assert np.array_equal(video.frames(range(N)), reference)
        assert np.array_equal(video.frames([17, 3, 44]), reference[[17, 3, 44]])
        assert np.allclose(video.times, np.arange(N) / 30, atol=1e-3)


def test_rising_stamps_without_reordering_are_believed(tmp_path, decoded):
    """The headers allow B frames, and none is there: the stamps are right, and seeks go to the nearest key frame."""
    clip = write_video(tmp_path / "a.mp4", range(N), options={"x264-params": "bframes=0"})
    with av.open(str(clip)) as file:
        assert not file.streams.video[0].codec_context.has_b_frames
    with open_video(clip) as video:
        assert not decoded
        assert numbers_in(video.frames([40])) == [40]
    assert len(decoded) < 12


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_the_stream_that_is_marked_as_default_is_read(clips, tmp_path, backend, ending, caplog):
    errors._logged.clear()
    thumbnails = write_video(tmp_path / "thumbnails.mp4", range(60, 80), size=(64, 48))
    for k in range(2):
        file = join(tmp_path / f"{k}.{ending}", [thumbnails, clips["h264"]], main=1)
        with open_video(file, backend) as video:
            assert numbers_in(video.frames([0, 49])) == [0, 49]
            assert video.backend == ("torchcodec" if backend == "torchcodec" else "pyav"), "decord reads its own choice"
    assert sum("stream 1 is read where players take it" in line for line in caplog.messages) == 1


def test_a_cover_picture_is_no_video(clips, tmp_path, backend):
    picture = write_video(tmp_path / "picture.mov", [99], codec="mjpeg", pix_fmt="yuvj420p", size=(320, 240))
    file = join(tmp_path / "cover.mp4", [picture, clips["one_frame"]], main=1, cover=0)
    with open_video(file, backend) as video:
        assert numbers_in(video.frames([0])) == [5]


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Time stamps of the frames that PyAV decodes during the test."""
    stamps, real = [], backends.PyAV._decode
    monkeypatch.setattr(backends.PyAV, "_decode", lambda reader: (stamps.append(f.pts) or f for f in real(reader)))
    return stamps


@pytest.mark.parametrize(
    ("plan", "most"),
    [
        ([0], 4),
        ([23, 24], 12 + 4),
        ([0, 49], 4 + 2),
        (range(12, 24), 12 + 4),
        ([13, 14, 13, 14], 7),
        ([30, 40, 1], 20 + 8),
    ],
)
def test_no_more_is_decoded_than_needed(clips, decoded, plan, most):
    """From the nearest key frame (one in 12), and on from the last frame where no key frame lies between."""
    with open_video(clips["h264"], "pyav") as video:
        assert numbers_in(video.frames(plan)) == list(plan)
    assert len(decoded) <= most


@pytest.mark.parametrize("kind", ["one_gop", "matroska", "mbaff", "variable_rate"])
def test_frames_of_h264_that_nobody_needs_are_not_decoded(clips, decoded, kind):
    with open_video(clips[kind], "pyav") as video:
        assert numbers_in(video.frames([1, 47])) == [1, 47]
    assert len(set(decoded)) < 0.75 * N


def test_reading_goes_on_where_it_stopped_and_decodes_nothing_twice(clips, decoded):
    with open_video(clips["one_gop"], "pyav") as video:
        found = [number for i in ([3, 9], *([i] for i in range(10, N))) for number in numbers_in(video.frames(i))]
    assert found == [3, 9, *range(10, N)]
    assert len(decoded) == len(set(decoded))


def test_frames_that_were_left_out_wrongly_are_decoded_after_all(clips, monkeypatch):
    """As if a file marked frames as needed by no other which are: no wanted frame comes out then."""
    monkeypatch.setattr(backends._Wanted, "leaves_out", lambda wanted, pts: bool(wanted.stamps))
    reference = decode_all(clips["h264"])
    with open_video(clips["h264"], "pyav") as video:
        for plan in PLANS.values():
            assert np.array_equal(video.frames(plan), reference[plan])


@pytest.mark.parametrize("kind", ["one_gop", "mbaff"])
def test_frames_of_a_damaged_file_are_those_of_a_full_decode_whichever_are_asked_for(clips, tmp_path, kind):
    """One bit is flipped. What a decoder does not notice in the frames it decodes differs in a few such files."""
    content = clips[kind].read_bytes()
    first = content.index(b"mdat") + 4
    rng, compared, different = random.Random(0), 0, 0
    for trial in range(30):
        damaged, at = bytearray(content), rng.randrange(first + 2000, len(content) - 2000)
        damaged[at] ^= 1 << rng.randrange(8)
        file = tmp_path / f"{trial}.mp4"
        file.write_bytes(damaged)
        plan = sorted(rng.sample(range(N), 8))
        found, expected = frames_or_none(file, plan), frames_or_none(file, range(N))
        if expected is not None:
            compared += 1
            different += found is None or not torch.equal(found, expected[plan])
    assert compared > 15
    assert different <= 0.1 * compared


def frames_or_none(file: Path, plan) -> torch.Tensor | None:
    try:
        with open_video(file) as video:
            return video.frames(plan)
    except VideoError:
        return None


def test_a_frame_that_others_need_is_never_left_out_for_a_damaged_mark(tmp_path):
    """One bit of a unit's header is flipped. What a whole decode refuses is refused, or the damage is not met."""
    clip = write_video(tmp_path / "a.mp4", range(N), gop=999, options={"x264-params": "b-pyramid=none:scenecut=0"})
    content, good, file = clip.read_bytes(), decode_all(clip), tmp_path / "damaged.mp4"
    with av.open(str(clip)) as container:
        places = [(packet.pos, packet.pts) for packet in container.demux(video=0) if packet.size]
    shown, refused = sorted(pts for _, pts in places), 0
    for number, (at, pts) in enumerate(places[1:]):
        damaged = bytearray(content)
        damaged[at + 4] ^= 1 << (0, 1, 2, 3, 5, 6)[number % 6]  # behind the length of the unit
        file.write_bytes(damaged)
        if frames_or_none(file, range(N)) is None:
            refused += 1
            others = [i for i in range(3, N, 6) if shown[i] != pts]
            found = frames_or_none(file, others)
            assert found is None or np.array_equal(found, good[others])
    assert refused >= 5


def test_a_turned_video_has_the_size_that_players_show(clips, backend):
    with open_video(clips["turned"], backend) as video:
        assert video.size == (96, 64)


# Display matrix (a, b, c, d): where `ffmpeg -i FILE` (5.1) shows the quarters AB/CD of a picture.
SHOWN = {
    (1, 0, 0, 1): "AB/CD",
    (-1, 0, 0, 1): "BA/DC",
    (1, 0, 0, -1): "CD/AB",
    (-1, 0, 0, -1): "DC/BA",
    (0, 1, 1, 0): "AC/BD",
    (0, 1, -1, 0): "CA/DB",
    (0, -1, 1, 0): "BD/AC",
    (0, -1, -1, 0): "DB/CA",
}


def as_shown(pictures: np.ndarray, matrix) -> np.ndarray:
    """[N, H, W, 3] as that matrix turns and mirrors them, among the eight ways by what becomes of the quarters."""
    ways = [(turn, mirror) for turn in range(4) for mirror in (False, True)]
    show = lambda array, axes, turn, mirror: np.rot90(np.flip(array, axes[1]) if mirror else array, turn, axes)  # noqa: E731
    quarters = np.array([["A", "B"], ["C", "D"]])
    (way,) = [w for w in ways if "/".join(map("".join, show(quarters, (0, 1), *w))) == SHOWN[matrix]]
    return show(pictures, (1, 2), *way)


@pytest.mark.parametrize("matrix", SHOWN)
def test_every_display_matrix_is_obeyed_as_by_ffmpeg(clips, backend, tmp_path, matrix):
    expected = as_shown(decode_all(clips["h264"])[[3, 40]], matrix)
    file = turn(clips["h264"], tmp_path / "turned.mp4", matrix)
    with open_video(file, backend) as video:
        assert np.array_equal(video.frames([3, 40]), expected)
        assert video.backend == ("pyav" if np.linalg.det(np.reshape(matrix, (2, 2))) < 0 else backend)
    for angle, nearest in ((0.1, 0), (1.5, 1), (-0.7, 0)):
        c, s = np.cos(angle), np.sin(angle)
        oblique = tuple((np.reshape(matrix, (2, 2)) @ [[c, s], [-s, c]]).ravel())
        quarter = np.reshape(matrix, (2, 2)) @ np.linalg.matrix_power([[0, 1], [-1, 0]], nearest)
        with open_video(turn(clips["h264"], file, oblique)) as video:
            assert np.array_equal(
                video.frames([3])[0], as_shown(decode_all(clips["h264"])[[3]], tuple(quarter.ravel()))[0]
            )


def test_a_picture_with_unknown_side_data_is_turned_all_the_same(clips, monkeypatch):
    """FFmpeg has kinds of it that a PyAV of the same age does not name."""
    monkeypatch.setattr(orientation, "SideDataContainer", lambda frame: Type(10**6))
    with open_video(clips["turned"]) as video:
        assert np.array_equal(video.frames([3])[0], decode_all(clips["turned"])[3])


# ---- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["h264", "open_gop", "fragmented", "ts", "mpeg4_avi", "edit_list", "turned"])
def test_times_of_a_constant_rate(clips, kind):
    with open_video(clips[kind]) as video:
        assert video.fps == pytest.approx(30, rel=1e-9)
        assert np.allclose(video.times, np.arange(video.num_frames) / 30, atol=1e-9)


def test_times_of_a_variable_rate_are_those_written(clips):
    with open_video(clips["variable_rate"]) as video:
        assert np.allclose(video.times, np.array(VARIABLE) / 90000, atol=1e-12)
        assert video.fps == pytest.approx((N - 1) * 90000 / VARIABLE[-1])


def test_time_zero_is_where_the_sound_begins(clips):
    with open_video(clips["with_sound"]) as video:
        assert np.allclose(video.times, (15 + np.arange(N)) / 30, atol=1e-9)


def test_one_frame_has_the_nominal_rate(clips):
    with open_video(clips["one_frame"]) as video:
        assert (video.num_frames, video.fps, video.times.tolist()) == (1, 30.0, [0.0])


# ---- files that cannot be read ---------------------------------------------------------------------------------------

BAD = {  # name: what makes it, stage, what the error says
    "missing": (lambda p: None, "open", "No such file"),
    "empty": (lambda p: p.write_bytes(b""), "open", "empty file"),
    "random": (lambda p: p.write_bytes(np.random.default_rng(0).bytes(4096)), "open", "not a video"),
    "html": (lambda p: p.write_text("<!DOCTYPE html><html>404 Not Found</html>" * 20), "open", "<!DOCTYPE html>"),
    "hls": (lambda p: p.write_text("#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n"), "open", "not a video"),
    "ffconcat": (lambda p: p.write_text("ffconcat version 1.0\nfile 'h264.mp4'\n"), "open", "not a video"),
    "png": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "open", "not a video"),
    "pipe": (os.mkfifo, "open", "not a regular file"),
    "folder": (Path.mkdir, "open", "not a regular file"),
    "device": (lambda p: p.symlink_to("/dev/zero"), "open", "not a regular file"),
    "only_ftyp": (lambda p: p.write_bytes(struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 512)), "open", "Invalid data"),
    "only_sound": (write_sound, "open", "no video stream"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_video_is_refused_with_stage_and_reason(tmp_path, backend, name):
    make, stage, reason = BAD[name]
    make(tmp_path / "bad.mp4")
    with pytest.raises(VideoError, match=reason) as caught:
        open_video(tmp_path / "bad.mp4", backend)
    assert caught.value.stage == stage
    assert caught.value.path == str(tmp_path / "bad.mp4")


def test_frames_above_the_pixel_limit_are_refused_before_decoding(clips):
    with pytest.raises(VideoError, match="96x64 pixels per frame, more than the limit of 6143") as caught:
        open_video(clips["h264"], max_pixels=6143)
    assert caught.value.stage == "open"
    with open_video(clips["h264"], max_pixels=6144) as video:
        assert video.num_frames == N


def test_a_header_that_lies_about_the_size_does_not_pass_the_limit(clips, backend, tmp_path):
    liar = patch(clips["h264"], tmp_path / "liar.mp4", b"avc1", 24, struct.pack(">HH", 16, 16))
    with pytest.raises(VideoError, match="limit of 6143"):
        open_video(liar, backend, max_pixels=6143)


def test_a_stream_that_grows_does_not_pass_the_limit(clips, tmp_path):
    large = write_video(tmp_path / "large.h264", range(2), size=(640, 480), container="h264")
    grows = tmp_path / "grows.h264"
    grows.write_bytes(clips["raw"].read_bytes() + large.read_bytes())
    with pytest.raises(VideoError, match="Invalid data") as caught:
        open_video(grows, max_pixels=96 * 64)
    assert caught.value.stage == "index"
    with open_video(grows) as video, pytest.raises(VideoError, match="frame 50 has another size than frame 49"):
        video.frames([49, 50])


def test_a_file_without_its_media_bytes_has_no_index(clips, backend, tmp_path):
    whole = moved_up(clips["h264"], tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "headless.mp4").write_bytes(whole[: whole.index(b"mdat") + 4])
    with pytest.raises(VideoError, match="no frames") as caught:
        open_video(tmp_path / "headless.mp4", backend)
    assert caught.value.stage == "index"


def test_one_time_for_all_frames_is_refused_and_not_an_endless_loop(clips, backend, tmp_path):
    frozen = patch(clips["h264"], tmp_path / "frozen.mp4", b"stts", 12, struct.pack(">I", 0))
    with pytest.raises(VideoError, match="make no sense") as caught:
        open_video(frozen, backend)
    assert caught.value.stage == "index"


def test_a_truncated_file_has_the_frames_that_are_left(clips, backend, tmp_path):
    whole = moved_up(clips["h264"], tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    with open_video(tmp_path / "half.mp4", backend) as video:
        left = video.num_frames
        read = {i: frame for i in range(left) if (frame := frame_or_error(video, i)) is not None}
        with pytest.raises(VideoError, match=f"frame {N - 1} of {left} .its header promises {N}") as caught:
            video.frames([0, N - 1])
    assert caught.value.stage == "decode"
    assert 10 < len(read) <= left < N
    assert numbers_in(read.values()) == list(read)


def test_after_a_hole_frames_are_right_or_an_error(clips, backend, tmp_path):
    content = bytearray(moved_up(clips["h264"], tmp_path / "whole.mp4").read_bytes())
    media = content.index(b"mdat") + 4
    tenth = (len(content) - media) // 10
    content[media + 4 * tenth : media + 5 * tenth] = bytes(tenth)
    (tmp_path / "hole.mp4").write_bytes(content)
    reference = decode_all(clips["h264"])
    with open_video(tmp_path / "hole.mp4", backend) as video:
        read = {i: frame for i in range(N) if (frame := frame_or_error(video, i)) is not None}
    assert 10 < len(read) < N
    assert max(read) == N - 1
    assert all(np.array_equal(frame, reference[i]) for i, frame in read.items())


def frame_or_error(video, i: int) -> np.ndarray | None:
    try:
        return video.frames([i])[0].numpy()
    except VideoError:
        return None


@pytest.mark.parametrize("indices", [[-1], [0, N], [10**6]])
def test_a_frame_number_out_of_range_is_an_error(clips, backend, indices):
    with open_video(clips["h264"], backend) as video, pytest.raises(VideoError, match=f"of {N}") as caught:
        video.frames(indices)
    assert caught.value.stage == "decode"


@pytest.mark.parametrize("indices", [[], [[1, 2]], [0.5]])
def test_frame_numbers_are_a_list_of_whole_numbers(clips, indices):
    with open_video(clips["h264"]) as video, pytest.raises((TypeError, ValueError)):
        video.frames(indices)


def test_a_closed_video_gives_no_frames(clips):
    with open_video(clips["h264"]) as video:
        pass
    with pytest.raises(ValueError, match="closed"):
        video.frames([0])


@pytest.mark.parametrize(
    "name", ["2020:01:02.mp4", 'a b\'s "c".mp4', "clip%03d.mp4", "-i.mp4", "a\nb.mp4", "日本é.txt"]
)
def test_names_mean_files_and_nothing_else(clips, tmp_path, monkeypatch, backend, name):
    (tmp_path / name).write_bytes(clips["h264"].read_bytes())
    monkeypatch.chdir(tmp_path)
    with open_video(name, backend) as video:
        assert numbers_in(video.frames([9])) == [9]


def test_errors_pickle_and_fill_one_line():
    error = VideoError("a\nb\x1b[2J.mp4", "open", "first\nsecond")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == r"a\nb\x1b[2J.mp4: open: first\nsecond"
    assert (again.path, again.stage, again.reason) == ("a\nb\x1b[2J.mp4", "open", "first\nsecond")


# ---- choice of the backend -------------------------------------------------------------------------------------------


def test_an_unknown_or_missing_backend_is_the_users_error(clips, monkeypatch):
    with pytest.raises(UserError, match="unknown decoding backend 'torchcodecs'; did you mean torchcodec"):
        open_video(clips["h264"], "torchcodecs")
    monkeypatch.setattr(backends, "_missing", lambda library: "no such library")
    with pytest.raises(UserError, match="'decord' does not load .no such library.; install it or use 'pyav'"):
        open_video(clips["h264"], "decord")


class Shifted:
    """A backend that gives each frame's successor."""

    def __init__(self, path, index):
        self.exact, self.last = backends.PyAV(path, 10**9), len(index.times) - 1

    def read(self, wanted):
        return torch.cat([self.exact.read([min(i + 1, self.last)]) for i in wanted])

    def close(self):
        self.exact.close()


class Failing(Shifted):
    """A backend that reads the ends of a file, which are compared, and nothing between."""

    def read(self, wanted):
        if set(wanted) - {0, self.last}:
            raise RuntimeError("lost\nits way")
        return self.exact.read(wanted)


@pytest.fixture
def replace_decord(monkeypatch, caplog):
    """Puts another class in decord's place, with no memory of other files."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(backends, "_missing", lambda library: "")
    monkeypatch.setattr(backends, "_agreed", {})
    errors._logged.clear()
    return lambda backend: monkeypatch.setitem(backends.OTHERS, "decord", backend)


def test_a_backend_with_other_pixels_is_not_used(clips, replace_decord, caplog):
    replace_decord(Shifted)
    for _ in range(2):
        with open_video(clips["h264"], "decord") as video:
            assert video.backend == "pyav"
            assert numbers_in(video.frames([20])) == [20]
    assert len(caplog.messages) == 1
    assert "different pixels" in caplog.messages[0]


def test_a_backend_that_fails_later_is_replaced(clips, replace_decord, caplog):
    replace_decord(Failing)
    with open_video(clips["h264"], "decord") as video:
        assert video.backend == "decord"
        assert numbers_in(video.frames([20])) == [20]
        assert video.backend == "pyav"
    assert [line.partition(": ")[2] for line in caplog.messages] == ["decord fails, PyAV reads it: lost"]


def test_what_a_backend_gets_wrong_never_reaches_it(clips, replace_decord, caplog):
    reached = []
    replace_decord(lambda path, index: reached.append(Path(path).stem))
    for _ in range(2):
        for kind in HANDED_OVER["decord"]:
            open_video(clips[kind], "decord").close()
    assert reached == []
    assert len(caplog.messages) == len(set(caplog.messages))
    assert "decord does not read hevc video exactly: PyAV reads such files" in caplog.messages


# ---- processes and resources -----------------------------------------------------------------------------------------


def test_a_video_pickles_as_its_path(clips, backend):
    with open_video(clips["h264"], backend) as video, pickle.loads(pickle.dumps(video)) as again:
        assert again.backend == video.backend
        assert torch.equal(again.frames([30, 2]), video.frames([30, 2]))


def test_an_open_video_goes_through_a_fork(tmp_path):
    """The child must not move the parent's place in the file, nor wait for threads that only the parent has."""
    large = write_video(tmp_path / "large.mkv", range(N), codec="ffv1", size=(192, 128), gop=999)
    assert large.stat().st_size > 4 * 32768  # FFmpeg reads so much ahead, which would hide a moved place
    video = open_video(large, "pyav")
    video.frames([3])
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(numbers_in(video.frames([31, 44, 22]))))
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0
    assert queue.get() == [31, 44, 22]
    assert numbers_in(video.frames(range(4, N))) == list(range(4, N))
    video.close()


def test_two_hundred_files_leave_nothing_open(clips, backend, tmp_path):
    whole = clips["h264"].read_bytes()
    (tmp_path / "bad.mp4").write_bytes(whole[: len(whole) // 2])

    def read_and_fail():
        with open_video(clips["h264"], backend) as video:
            video.frames([0, 15])
        with pytest.raises(VideoError):
            open_video(tmp_path / "bad.mp4", backend)

    for _ in range(10):
        read_and_fail()
    gc.collect()  # what other tests have left open
    before = files_and_megabytes()
    for _ in range(200):
        read_and_fail()
    after = files_and_megabytes()
    assert after[0] == before[0]
    assert after[1] - before[1] < 16


def files_and_megabytes() -> tuple[int, float]:
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    return len(os.listdir("/proc/self/fd")), resident * os.sysconf("SC_PAGESIZE") / 2**20


def test_three_hundred_readers_leave_nothing_to_the_garbage_collector(clips):
    """A reader that holds itself is freed when the collector comes, and with it megabytes that it does not count."""

    def read():
        with open_video(clips["h264"]) as video:
            video.frames([0, 15])

    read()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(300):
            read()
        assert len(gc.get_objects()) - before < 300
    finally:
        gc.enable()
