"""Files as a data set of the world holds them: right frames, or a VideoError that names the stage; never a hang.

All files of a backend are read in child processes with a limit of time and memory (`guard.py`), which crash in a test's
stead. More on frames and errors of single kinds of files stands in tests/video/test_reader.py.
"""

import functools
import io
import os
import socket
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from PIL import Image

from tests.faults.guard import guarded, read
from tests.video.clips_on_disk import number_of, patch, write_sound, write_video
from videorl.data.dataset import ClipDataset, Records
from videorl.spec import Augment, Clip, Reading, Spec, Views
from videorl.video.backends import _missing
from videorl.video.errors import VideoError
from videorl.video.reader import open_video

N = 40
FRONT = {"container_options": {"movflags": "faststart"}}
YUV444 = {"pix_fmt": "yuv444p"}
VP9 = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}
SIZES = {(2, 2): {}, (1, 1): YUV444, (3, 5): YUV444, (17, 9): VP9, (97, 65): YUV444, (4096, 2): {}, (2, 4096): {}}
NAMES = [
    "a b.mp4",
    "日本é.mp4",
    "a\nb.mp4",
    'it\'s "a" `b` $HOME.mp4',
    "clip%03d.mp4",
    "[a-z]*?.mp4",
    "-i.mp4",
    "2020:01:02.mp4",
]


ALL = list(range(N))

# Name of the file: what reading every frame must give. A list: the numbers in its frames. A str: stage of the error.
# "part": each frame is right or an error, and some are of each kind.
EXPECTED = {
    "empty": "open",
    "random": "open",
    "html": "open",
    "csv": "open",
    "only_ftyp": "open",
    "no_moov": "open",
    "half_without_moov": "open",
    "half": "part",
    "most": "part",
    "no_media": "index",
    "sound_only": "open",
    "cover_picture": "open",
    "png": "open",
    "jpeg": "open",
    "gif": [-1],  # one frame, without a number
    "no_frames": "open",
    "one_frame": [7],
    "bomb": "open",
    "stts_count_huge": ALL,
    "stts_delta_0": "index",
    "stsz_count_huge": "open",
    "stsz_size_huge": "index",
    "stco_past_end": "index",
    "timescale_0": "index",
    "timescale_1": "index",
    "durations_0": ALL,
    "durations_huge": ALL,
    "size_65535": ALL,
    "unknown_codec": ALL,
    "no_key_table": ALL,
    "late": ALL,
    "smashed_avcc": "decode",
    "nested_5000": "open",
    "doubled": ALL,
    "trailing_junk": ALL,
    "leading_junk": "open",
    "webm.mp4": ALL,
    "mp4.avi": ALL,
    "mp4.txt": ALL,
    "mp4": ALL,
    "grows.h264": "part",
    "hls": "open",
    "hls_http": "open",
    "ffconcat": "open",
    "sdp": "open",
    "pipe": "open",
    "device": "open",
    "folder": "open",
    "dangling": "open",
    "link": ALL,
    **dict.fromkeys(NAMES, ALL),
}


@pytest.fixture(scope="module")
def listener():
    """A port that playlists name. Nobody may knock."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.fixture(scope="module")
def files(tmp_path_factory, listener) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("media")
    front = write_video(folder / "_front.mp4", ALL, **FRONT)
    paths = {name: folder / name for name in EXPECTED}
    for name, content in _contents(front, folder, listener.getsockname()[1]).items():
        paths[name].write_bytes(content)
    _headers(front, paths)
    _not_files(front, paths)
    write_sound(folder / "_sound.m4a").rename(paths["sound_only"])
    return paths


def _contents(front: Path, folder: Path, port: int) -> dict[str, bytes]:
    good, url = front.read_bytes(), f"http://127.0.0.1:{port}/clip.ts"
    back = write_video(folder / "_back.mp4", ALL).read_bytes()  # its header stands behind its frames
    media = good.index(b"mdat") + 4
    noise = np.random.default_rng(0).bytes(5000)
    boxes = b""
    for _ in range(5000):
        boxes = struct.pack(">I4s", len(boxes) + 8, b"moov") + boxes
    raw = write_video(folder / "_raw.h264", range(20), container="h264").read_bytes()
    larger = write_video(folder / "_larger.h264", range(20, N), size=(192, 128), container="h264").read_bytes()
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n"
    return {
        "empty": b"",
        "random": noise,
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 20,
        "csv": b"a.mp4 0\nb.mp4 1\n" * 100,
        "only_ftyp": good[: good.index(b"moov") - 4],
        "no_moov": back.replace(b"moov", b"zzzz"),
        "half_without_moov": back[: len(back) // 2],
        "half": good[: media + (len(good) - media) // 2],
        "most": good[: media + (len(good) - media) * 9 // 10],
        "no_media": good[:media],
        "no_frames": _no_frames(folder),
        "cover_picture": _cover_picture(folder),
        **{kind: _picture(kind) for kind in ("png", "jpeg", "gif")},
        "one_frame": write_video(folder / "_one.mp4", [7]).read_bytes(),
        "bomb": write_video(folder / "_bomb.mp4", [0], size=(4096, 2304)).read_bytes(),
        "nested_5000": good[: good.index(b"moov") - 4] + boxes,
        "doubled": back + back,
        "trailing_junk": back + noise,
        "leading_junk": noise[:1000] + back,
        "webm.mp4": write_video(folder / "_vp9.webm", ALL, **VP9).read_bytes(),
        **dict.fromkeys(["mp4.avi", "mp4.txt", "mp4", *NAMES], good),
        "grows.h264": raw + larger,
        "late": _late(folder),
        "hls": hls.format(front).encode(),
        "hls_http": hls.format(url).encode(),
        "ffconcat": f"ffconcat version 1.0\nfile '{front}'\nfile '{url}'\n".encode(),
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }


def _picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (96, 64), "red").save(out, kind.upper())
    return out.getvalue()


def _no_frames(folder: Path) -> bytes:
    with av.open(str(folder / "_none.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        file.start_encoding()
    return (folder / "_none.mp4").read_bytes()


def _cover_picture(folder: Path) -> bytes:
    """Sound, and a picture that is marked as its cover."""
    write_sound(folder / "_song.m4a")
    with av.open(str(folder / "_song.m4a")) as song, av.open(str(folder / "_cover.mp4"), "w") as file:
        sound = file.add_stream_from_template(song.streams.audio[0])
        cover = file.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 64, "rgb24", Disposition.attached_pic
        file.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        file.mux(cover.encode())
        for packet in song.demux(audio=0):
            if packet.dts is not None:
                packet.stream = sound
                file.mux(packet)
    return (folder / "_cover.mp4").read_bytes()


def _headers(front: Path, paths: dict[str, Path]) -> None:
    """Headers that lie. Offsets are counted from the end of a box's name."""
    most, zero = struct.pack(">I", 2**32 - 1), bytes(4)
    lies = {
        "stts_count_huge": (b"stts", 8, most),
        "stts_delta_0": (b"stts", 12, zero),
        "stsz_count_huge": (b"stsz", 8, struct.pack(">I", 2**31 - 1)),
        "stsz_size_huge": (b"stsz", 12, struct.pack(">I", 2**31 - 1)),
        "stco_past_end": (b"stco", 8, struct.pack(">I", 0x7FFFFFF0)),
        "timescale_0": (b"mdhd", 12, zero),
        "timescale_1": (b"mdhd", 12, struct.pack(">I", 1)),
        "durations_0": (b"mdhd", 16, zero),
        "durations_huge": (b"mdhd", 16, struct.pack(">I", 2**32 - 2)),
        "size_65535": (b"avc1", 24, struct.pack(">HH", 65535, 65535)),
        "unknown_codec": (b"avc1", -4, b"zzzz"),
        "no_key_table": (b"stss", -4, b"free"),
        "smashed_avcc": (b"avcC", 0, bytes(36)),
    }
    for name, (box, offset, data) in lies.items():
        patch(front, paths[name], box, offset, data)
    for name, value in (("durations_0", zero), ("durations_huge", struct.pack(">I", 2**32 - 2))):
        patch(paths[name], paths[name], b"mvhd", 16, value)


def _late(folder: Path) -> bytes:
    """A video that begins after some 70 years, for which decord would make room."""
    movflags = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    fragment = write_video(folder / "_fragment.mp4", ALL, gop=999, container_options=movflags)
    return patch(fragment, folder / "_late_fragment.mp4", b"tfdt", 4, struct.pack(">Q", 2**45)).read_bytes()


def _not_files(front: Path, paths: dict[str, Path]) -> None:
    os.mkfifo(paths["pipe"])
    paths["device"].symlink_to("/dev/zero")
    paths["folder"].mkdir()
    paths["dangling"].symlink_to("nowhere.mp4")
    paths["link"].symlink_to(front)


def outcome(path: Path, backend: str) -> str | list[int | str]:
    """The stage of the error, or for each frame the number in it or the stage of its error."""
    found = read(path, backend, lambda count: [[i] for i in range(count)])
    return found if isinstance(found, str) else [f if isinstance(f, str) else number_of(f[0]) for f in found]


@pytest.fixture(scope="module", params=["pyav", "torchcodec", "decord"])
def outcomes(request, files) -> dict:
    if request.param != "pyav" and (reason := _missing(request.param)):
        pytest.skip(f"{request.param}: {reason}")
    found = guarded(functools.partial(outcome, backend=request.param), list(files.values()))
    return dict(zip(files, found, strict=True))


def _is_as_expected(found, expected) -> bool:
    if expected == "part":
        right = [k for k, number in enumerate(found) if number == k]
        return len(right) > 5 and all(number in (k, "decode") for k, number in enumerate(found))
    if expected == "decode":
        return set(found) == {"decode"}
    return found == expected


def test_each_file_gives_its_frames_or_the_stage_that_failed(outcomes):
    different = {name: outcomes[name] for name in EXPECTED if not _is_as_expected(outcomes[name], EXPECTED[name])}
    assert different == {}


def test_playlists_open_no_connection(outcomes, listener):
    assert outcomes["hls_http"] == "open"
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_frames_beyond_the_end_of_a_truncated_file_are_an_error(files):
    with open_video(files["half"]) as video, pytest.raises(VideoError, match=f"its header promises {N}") as caught:
        video.frames([N - 1])
    assert caught.value.stage == "decode"


# ------------------------------------------------------------------------------------------- through the transforms


def dataset(paths: list[Path], split: str, backend: str) -> ClipDataset:
    spec = Spec(
        Clip(frames=4, rate=2, train_size=32, test_size=32),
        augment=Augment(scales=(32, 40), rand_augment="rand-m9-n2-mstd0.5-inc1", erase_prob=1.0),
        views=Views(clips=2, crops=3),
        reading=Reading(backend=backend),
    )
    encoded = np.array([os.fsencode(path) for path in paths])
    return ClipDataset(spec, split, Records("", encoded, np.zeros(len(paths), np.int64)))


def shapes_of(index: int, sets: list[ClipDataset]) -> list:
    return [{(tuple(item["video"].shape), item["video"].dtype) for item in data[index]} for data in sets]


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_tiny_narrow_and_short_videos_go_through_training_and_testing(tmp_path, backend):
    if reason := backend != "pyav" and _missing(backend):
        pytest.skip(f"{backend}: {reason}")
    made = [
        write_video(tmp_path / f"{w}x{h}.{'webm' if 'codec' in keys else 'mp4'}", range(6), size=(w, h), **keys)
        for (w, h), keys in SIZES.items()
    ]
    made.append(write_video(tmp_path / "one.mp4", [3]))
    sets = [dataset(made, split, backend) for split in ("train", "val")]
    found = guarded(functools.partial(shapes_of, sets=sets), range(len(made)))
    assert found == [[{((4, 3, 32, 32), torch.uint8)}] * 2] * len(made)
