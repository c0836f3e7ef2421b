"""Small video files whose frames carry their number in the pixels, written by PyAV."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

BITS = 8
RATE = 30
X264 = "scenecut=0:mbtree=0"


def picture(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """[H, W, 3] uint8: a moving pattern, the bits of `number` as white and black blocks, and below them the inverse."""
    y, x = np.mgrid[:height, :width]
    image = 110 + 60 * np.sin((x + 3 * number) / 9) + 50 * np.cos((y - 2 * number) / 7)
    for bit in range(BITS):
        column = slice(bit * width // BITS, (bit + 1) * width // BITS)
        is_set = number >> bit & 1
        image[: height // 4, column] = 235 if is_set else 16
        image[height // 4 : height // 2, column] = 16 if is_set else 235
    return np.repeat(image[..., None], 3, axis=2).astype(np.uint8)


def number_of(frame: np.ndarray) -> int:
    """The number in a frame [H, W, 3], or -1 if its blocks cannot be told from their inverse."""
    height, width = frame.shape[:2]
    above, below = frame[: height // 4, :, 1].mean(0), frame[height // 4 : height // 2, :, 1].mean(0)
    contrast = [float((above - below)[(2 * bit + 1) * width // (2 * BITS)]) for bit in range(BITS)]
    if min(map(abs, contrast)) < 60:
        return -1
    return sum(1 << bit for bit in range(BITS) if contrast[bit] > 0)


def write_video(
    path: Path,
    numbers: Sequence[int],
    *,
    size: tuple[int, int] = (96, 64),
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    container: str | None = None,
    container_options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, RATE),
    tone: float = 0.0,
) -> Path:
    """Encodes `picture(n)` for each number, shown at pts[k] * time_base (default: k / 30 s), and `tone` s of sound."""
    if codec == "libx264":
        params = ":".join(filter(None, (X264, (options or {}).get("x264-params"))))
        options = {"preset": "fast", **(options or {}), "x264-params": params}
    with av.open(str(path), "w", format=container, options=container_options or {}) as file:
        video = file.add_stream(codec, rate=RATE, options={"threads": "1", **(options or {})})
        video.width, video.height, video.pix_fmt, video.gop_size = *size, pix_fmt, gop
        video.codec_context.time_base = time_base
        audio = file.add_stream("aac", rate=16000) if tone else None
        for k, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = (k if pts is None else pts[k]), time_base
            file.mux(video.encode(frame))
        file.mux(video.encode())
        if audio:
            _write_tone(file, audio, tone)
    return path


def write_sound(path: Path, seconds: float = 1.0) -> Path:
    with av.open(str(path), "w") as file:
        _write_tone(file, file.add_stream("aac", rate=16000), seconds)
    return path


def _write_tone(file, stream, seconds: float) -> None:
    wave = (0.2 * np.sin(np.arange(int(seconds * 16000)) / 6)).astype(np.float32)
    for start in range(0, len(wave), 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        file.mux(stream.encode(frame))
    file.mux(stream.encode())


def cut(source: Path, target: Path, first: int) -> Path:
    """Copies packets so that frame `first` is shown at time 0: an edit list hides what is needed before it."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        offset = int(Fraction(first, RATE) / stream.time_base)
        old.seek(offset, stream=stream)
        for packet in old.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, copy
                new.mux(packet)
    return target


def join(target: Path, sources: Sequence[Path], main: int, cover: int = -1) -> Path:
    """Copies the video streams of files into one, of which number `main` is marked as default, `cover` as a picture."""
    opened = [av.open(str(source)) for source in sources]
    with av.open(str(target), "w") as new:
        copies = [new.add_stream_from_template(old.streams.video[0]) for old in opened]
        for k, copy in enumerate(copies):
            copy.disposition = Disposition.default * (k == main) | Disposition.attached_pic * (k == cover)
        for old, copy in zip(opened, copies, strict=True):
            with old:
                for packet in old.demux(video=0):
                    if packet.dts is not None:
                        packet.stream = copy
                        new.mux(packet)
    return target


def restamp(source: Path, target: Path) -> Path:
    """The same packets with time stamps that rise in decoding order, as some recorders and muxers write them."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.dts is not None]
        for packet, pts in zip(packets, sorted(packet.pts for packet in packets), strict=True):
            packet.pts = packet.dts = pts
            packet.stream = copy
            new.mux(packet)
    return target


def patch(source: Path, target: Path, box: bytes, offset: int, data: bytes) -> Path:
    """Copies an mp4 file and overwrites `data` at `offset` after the name of its first box of that name."""
    content = bytearray(source.read_bytes())
    start = content.index(box) + 4 + offset
    content[start : start + len(data)] = data
    target.write_bytes(content)
    return target


def turn(source: Path, target: Path, matrix: Sequence[float] = (0, 1, -1, 0)) -> Path:
    """The same video with a display matrix (a, b, c, d) in its tkhd box; by default players turn it to the right."""
    a, b, c, d = (int(65536 * value) for value in matrix)
    return patch(source, target, b"tkhd", 40, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))
