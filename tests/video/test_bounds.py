"""Small files that claim much are refused before FFmpeg believes them."""

import os
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest

from tests.video.clips_on_disk import patch, write_video
from videorl.video import bounds
from videorl.video.errors import VideoError
from videorl.video.reader import open_video
from videorl.video.spans import Spans

N = 30
FRAGMENTED = {"container_options": {"movflags": "frag_keyframe+empty_moov+default_base_moof"}}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", range(N), tone=0.5)


def promised(path: Path) -> int:
    with open(path, "rb") as file:
        return bounds.promised(file.fileno())


def packets(path: Path) -> int:
    with av.open(str(path)) as file:
        return sum(packet.size > 0 for packet in file.demux())


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def with_compressed_header(source: Path, target: Path) -> Path:
    content = source.read_bytes()
    at = content.index(b"moov") - 4
    moov = content[at : at + struct.unpack_from(">I", content, at)[0]]
    packed = box(b"dcom", b"zlib") + box(b"cmvd", struct.pack(">I", len(moov)) + zlib.compress(moov))
    target.write_bytes(content[:at] + box(b"moov", box(b"cmov", packed)))
    return target


def test_promised_samples_are_the_packets_that_ffmpeg_finds(clip, tmp_path):
    for file in (
        clip,
        write_video(tmp_path / "fragmented.mp4", range(N), **FRAGMENTED),
        write_video(tmp_path / "clip.mov", range(N), container="mov"),
        with_compressed_header(clip, tmp_path / "compressed.mov"),
    ):
        assert promised(file) == packets(file) >= N, file.name


@pytest.mark.parametrize("opens", [open_video, Spans])
def test_more_samples_than_bytes_are_refused(clip, tmp_path, opens):
    """As of frames that lie upon each other, each of one byte."""
    liar = patch(clip, tmp_path / "liar.mp4", b"stsz", 4, struct.pack(">II", 1, 3_000_000))
    packed = with_compressed_header(liar, tmp_path / "packed.mov")
    for file in (liar, packed):
        with pytest.raises(VideoError, match=r"promises 30000\d\d samples in \d+ bytes") as error:
            opens(file)
        assert error.value.stage == "open"


def test_fragments_that_promise_too_much_are_refused(tmp_path):
    clip = write_video(tmp_path / "fragmented.mp4", range(N), **FRAGMENTED)
    liar = patch(clip, tmp_path / "liar.mp4", b"trun", 4, struct.pack(">I", 2**31))
    with pytest.raises(VideoError, match="promises 21474836"):
        open_video(liar)


HEADS = {
    "mp4": b"\0\0\0\x14ftypisom\0\0\0\0isom\x7f\xff\xff\xf0moov",
    "h264": b"\0\0\0\1",
    "gif": b"GIF89a",
    "flv": b"FLV\1\1\0\0\0\x09\0\0\0\0\x09\xff\xff\xff",
}


@pytest.mark.parametrize("ending", HEADS)
def test_files_that_were_mostly_never_written_are_refused(tmp_path, ending):
    file = tmp_path / f"sparse.{ending}"
    file.write_bytes(HEADS[ending])
    os.truncate(file, 2**31)
    if file.stat().st_blocks * 512 > 2**26:
        pytest.skip("this file system stores zeros")
    with pytest.raises(VideoError, match="2147 MB were never written: an unfinished download"):
        open_video(file)


def test_a_video_with_a_small_hole_is_read(clip, tmp_path):
    content = clip.read_bytes()
    file = tmp_path / "hole.mp4"
    with open(file, "wb") as out:
        out.write(content)
        out.seek(2**22, os.SEEK_CUR)
        out.write(box(b"free", b""))
    with open_video(file) as video:
        assert video.num_frames == N


def test_no_garbage_keeps_the_count_busy(clip, tmp_path):
    rng, content = np.random.default_rng(0), clip.read_bytes()
    at = content.index(b"moov")
    for trial in range(200):
        damaged = bytearray(content)
        for place in rng.integers(at, len(content), 8):
            damaged[place] = rng.integers(256)
        file = tmp_path / f"{trial}.mp4"
        file.write_bytes(damaged)
        assert promised(file) >= 0
