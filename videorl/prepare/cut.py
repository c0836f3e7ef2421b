"""Cuts a video into chunks: decodes, turns upright, scales, encodes as H.264, and reads every file again.

`timeline` is the arithmetic: which frame is shown when, in which chunk. `cut` does the work.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from av.filter import Graph
from av.video.frame import PictureType

from videorl.registry import UserError
from videorl.spec import Reading
from videorl.video.container import open_stream
from videorl.video.errors import VideoError, at_stage, check_colours
from videorl.video.orientation import orientation_of
from videorl.video.reader import open_video
from videorl.video.spans import pick

TICKS = 360_000  # a second; frames of all usual rates last a whole number of them, those of NTSC (24000/1001 …) too
SLOWEST = Fraction(1, 60)  # frames a second of a source that may get another rate: each would be repeated for minutes
LIMITED, FULL = 1, 2  # FFmpeg's numbers of colour ranges
RGB, UNSPECIFIED, BT601 = 0, 2, 6  # and of colour spaces
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")


@dataclass(frozen=True)
class Encoding:
    """How chunks are made.

    seconds:    length of a chunk; 0: one file for the whole video
    short_side: pixels that the short side is reduced to; smaller videos keep their size
    fps:        frames per second; None: those of the source, with their own times
    gop:        frames from one key frame to the next, at most
    crf:        quality of x264: 0 is lossless, +6 halves the size, about
    preset:     effort of x264
    by_second:  a chunk is named by its first second, a/b.mp4/300.mp4, and none is longer than `seconds`
    """

    seconds: Fraction = Fraction(3)
    short_side: int = 256
    fps: Fraction | None = None
    gop: int = 30
    crf: int = 23
    preset: str = "veryfast"
    by_second: bool = False

    def __post_init__(self):
        if self.seconds < 0 or (self.fps is not None and self.fps <= 0):
            raise UserError("--seconds: expected 0 (whole videos) or more; --fps: expected more than 0")
        if self.by_second and (self.seconds < 1 or self.seconds.denominator != 1):
            raise UserError(f"--names seconds, --seconds {self.seconds}: expected whole seconds, 1 or more")
        if self.short_side < 2 or self.short_side % 2:
            raise UserError(f"--short_side {self.short_side}: expected an even number; H.264 has no odd sizes")
        if self.gop < 1 or not 0 <= self.crf <= 51:
            raise UserError(f"--gop {self.gop}, --crf {self.crf}: expected 1 or more, and 0 to 51")
        if self.preset not in PRESETS:
            raise UserError(f"--preset {self.preset!r}: expected one of {', '.join(PRESETS)}")

    def name(self, number: int) -> str:
        """What the name of a source without its ending is followed by in that of its chunk of that number."""
        if self.by_second:
            return f".mp4/{number * int(self.seconds)}.mp4"
        return f"_{number:05d}.mp4" if self.seconds else ".mp4"

    def as_dict(self) -> dict:
        """For json; numbers that may be fractions as text."""
        return {**asdict(self), "seconds": str(self.seconds), "fps": str(self.fps) if self.fps else None}


@dataclass(frozen=True)
class Chunk:
    """A finished file: the number of its stretch of the source, seconds from its first frame on, and what it holds."""

    file: Path
    number: int
    start: float
    end: float
    frames: int
    width: int
    height: int
    size: int
    sha256: str


# ---------------------------------------------------------------------------------------------------------- arithmetic


@dataclass(frozen=True)
class Shot:
    """One frame of a chunk: number of the chunk, number of the source's frame, time in ticks from its first frame."""

    chunk: int
    frame: int
    tick: int


def timeline(
    ticks: Sequence[int], end: int, seconds: Fraction, fps: Fraction | None, rest_apart: bool = False
) -> list[Shot]:
    """All shots of a video, in order.

    `ticks` of the source's frames rise from 0; at `end` the last one is taken away. Chunk c begins at c * `seconds`;
    the last one takes what is left, so that it lasts from a half to one and a half of `seconds`, or less where the
    whole video does; with `rest_apart` what is left is a chunk of its own, however short. `fps` picks frames by the
    rule of FFmpeg's filter of that name. A stretch without frames, which uneven rates can have, gives no chunk.
    """
    shown, times = range(len(ticks)), ticks
    if fps is not None:
        shown = pick(ticks, end, end, TICKS / fps) or [0]
        times = [round(k * TICKS / fps) for k in range(len(shown))]
    if not seconds:
        return [Shot(0, frame, tick) for frame, tick in zip(shown, times)]
    length = end / (seconds * TICKS)
    last = max(1, math.ceil(length) if rest_apart else math.floor(length + Fraction(1, 2))) - 1
    return [Shot(min(int(t / (seconds * TICKS)), last), frame, t) for frame, t in zip(shown, times)]


def fitted(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Even width and height with that short side, or smaller; the same shape but for what rounding takes."""
    short = min(width, height)
    if short <= short_side:
        return max(2, width // 2 * 2), max(2, height // 2 * 2)
    return tuple(max(2, 2 * round(Fraction(side * short_side, 2 * short))) for side in (width, height))


# ---------------------------------------------------------------------------------------------------------------- work


def cut(
    path: str, folder: Path, encoding: Encoding, pulse: Callable[[], None], first: int = 0, stop: int = -1
) -> list[Chunk]:
    """Writes the chunks of a video to `folder`, checks each, and says what they are: all, or it raises `VideoError`.

    The source is the whole video, or its frames `first` … `stop` - 1; what lies behind them is not decoded. A video
    that ends before `stop` ends them. `pulse` is called for every frame that is decoded.
    """
    ticks, end, rate = _listed(path, encoding.fps)
    count = len(ticks)
    ticks, end = _part(path, ticks, end, first, stop)
    shots = timeline(ticks, end, encoding.seconds, encoding.fps, encoding.by_second)
    ends = [*[shot.tick for shot, before in zip(shots[1:], shots) if shot.chunk > before.chunk], end]
    chunks = []
    pictures = _Pictures(path, count, encoding.short_side, pulse)
    try:
        for (number, group), stop in zip(itertools.groupby(shots, key=lambda shot: shot.chunk), ends):
            group = list(group)
            file, start = folder / f"{number:05d}.mp4", group[0].tick
            _write(path, file, pictures, [(first + s.frame, s.tick - start) for s in group], rate, encoding)
            _verify(path, file, [s.tick - start for s in group], pictures.size, pulse)
            length, sha256 = _hash(file)
            span = start / TICKS, stop / TICKS
            chunks.append(Chunk(file, number, *span, len(group), *pictures.size, length, sha256))
        if stop < 0:
            pictures.finish()
    finally:
        pictures.close()
    return chunks


def _listed(path: str, fps: Fraction | None) -> tuple[list[int], int, Fraction]:
    """Times of all frames from the first one on and of the end, in ticks, and frames per second of what is written."""
    with open_video(path, "pyav") as video:
        times, rate = video.times, video.fps
    if not (math.isfinite(rate) and rate > 0):
        raise VideoError(path, "index", f"frame rate {rate}")
    if fps is not None and rate < SLOWEST:
        raise VideoError(path, "index", f"one frame in {1 / rate:.0f} s: no video to give {float(fps):g} a second")
    ticks = np.rint((times - times[0]) * TICKS).astype(np.int64).tolist()
    shown = fps or max(Fraction(rate).limit_denominator(1001), Fraction(1, 1001))
    return ticks, ticks[-1] + max(1, round(TICKS / rate)), shown


def _part(path: str, ticks: list[int], end: int, first: int, stop: int) -> tuple[list[int], int]:
    """Times of frames `first` … `stop` - 1 and of their end, from the first of them on."""
    stop = len(ticks) if stop < 0 else min(stop, len(ticks))
    if first >= stop:
        raise VideoError(path, "index", f"the list names frame {first} of {len(ticks)}")
    end = ticks[stop] if stop < len(ticks) else end
    return [tick - ticks[first] for tick in ticks[first:stop]], end - ticks[first]


@dataclass(frozen=True)
class Colours:
    """How RGB is made of a picture's numbers: FFmpeg's codes of matrix, primaries, transfer and range."""

    space: int
    primaries: int
    transfer: int
    range: int

    @classmethod
    def of(cls, frame: av.VideoFrame) -> "Colours":
        """Those that a frame keeps as yuv420p: its own. RGB becomes BT.601, as swscale does unless told otherwise."""
        kind, space, full = frame.format, frame.colorspace, frame.color_range == FULL
        if kind.is_rgb or kind.has_palette:
            space, full = BT601, False
        elif space == RGB:  # of YUV: a tag that cannot be true, and that no decoder heeds
            space = UNSPECIFIED
        return cls(space, frame.color_primaries, frame.color_trc, FULL if full or "yuvj" in kind.name else LIMITED)


class _Pictures:
    """The frames of a video by rising number, upright, scaled, as yuv420p."""

    def __init__(self, path: str, count: int, short_side: int, pulse: Callable[[], None]):
        self.path, self.count, self.short_side, self.pulse = path, count, short_side, pulse
        self.container, self.stream = open_stream(path, Reading.max_pixels)
        self.frames = enumerate(self.container.decode(self.stream))
        self.number, self.picture = -1, None
        self.graph, self.shape, self.size, self.colours = None, (), (0, 0), None

    def __getitem__(self, wanted: int) -> av.VideoFrame:
        if wanted > self.number:
            self.picture = self._upright(self._decode_to(wanted))
        return self.picture

    def _decode_to(self, wanted: int) -> av.VideoFrame:
        with at_stage(self.path, "decode"):
            for number, frame in self.frames:
                self.number = number
                self.pulse()
                if number == wanted:
                    return frame
        raise VideoError(self.path, "decode", f"{self.number + 1} of {self.count} frames can be decoded")

    def _upright(self, frame: av.VideoFrame) -> av.VideoFrame:
        shape = (frame.width, frame.height, frame.format.name, orientation_of(frame), Colours.of(frame))
        if self.graph is None:
            self.shape, self.graph = shape, self._make_graph(frame)
        if shape != self.shape:
            raise VideoError(self.path, "decode", f"frame {self.number} has another size or format than the first")
        with at_stage(self.path, "decode"):
            check_colours(frame)
            frame.colorspace = UNSPECIFIED  # libavfilter would convert what it is told to what it takes for usual
            self.graph.push(frame)
            return self.graph.pull()

    def _make_graph(self, frame: av.VideoFrame) -> Graph:
        upright = orientation_of(frame)
        self.size = fitted(*upright.size(frame.width, frame.height), self.short_side)
        graph = Graph()
        graph.threads = 1
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=self.stream.time_base
        )
        self.colours = Colours.of(frame)
        kept = "full" if self.colours.range == FULL else "limited"
        scale = ("scale", f"{self.size[0]}:{self.size[1]}:flags=bicubic:out_range={kept}")
        filters = [*upright.filters(), scale, ("format", "yuv420p"), ("buffersink", "")]
        graph.link_nodes(source, *(graph.add(*name_and_arguments) for name_and_arguments in filters)).configure()
        return graph

    def finish(self) -> None:
        """Raises `VideoError` unless the video holds the frames that its packets promise, and no more."""
        with at_stage(self.path, "decode"):
            for number, _ in self.frames:
                self.number = number
                self.pulse()
        if self.number + 1 != self.count:
            raise VideoError(self.path, "decode", f"{self.number + 1} frames decoded, its packets list {self.count}")

    def close(self) -> None:
        self.container.close()


def _write(
    path: str, file: Path, pictures: _Pictures, shots: Sequence[tuple[int, int]], rate: Fraction, encoding: Encoding
) -> None:
    """Encodes (frame number, tick) to an mp4 file. The same input gives the same bytes."""
    muxing = {"movflags": "+faststart", "fflags": "+bitexact"}
    first = pictures[shots[0][0]]
    with at_stage(path, "encode"), av.open(str(file), "w", format="mp4", container_options=muxing) as out:
        stream = out.add_stream("libx264", rate=rate, options=_x264(encoding))
        codec, colours = stream.codec_context, pictures.colours
        codec.width, codec.height, codec.pix_fmt, codec.gop_size = first.width, first.height, "yuv420p", encoding.gop
        codec.time_base = Fraction(1, TICKS)
        codec.flags |= Flags.bitexact
        codec.color_range, codec.colorspace = colours.range, colours.space
        codec.color_primaries, codec.color_trc = colours.primaries, colours.transfer
        for number, tick in shots:
            picture = pictures[number]
            picture.pts, picture.time_base = tick, Fraction(1, TICKS)
            picture.pict_type = PictureType.NONE  # or x264 repeats the source's key frames
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))


def _x264(encoding: Encoding) -> dict[str, str]:
    # One thread: the workers are the parallelism, and the bytes depend on the number of threads.
    return {"preset": encoding.preset, "crf": str(encoding.crf), "threads": "1", "a53cc": "0"}


def _verify(path: str, file: Path, ticks: list[int], size: tuple[int, int], pulse: Callable[[], None]) -> None:
    """Decodes a file that was written. Raises `VideoError` of the source if a frame, its time or size is not right."""
    container, stream = open_stream(str(file), Reading.max_pixels)
    with container, at_stage(path, "verify"):
        found = [(frame.pts * frame.time_base * TICKS, *_size(frame, pulse)) for frame in container.decode(stream)]
    meant = [(tick, *size) for tick in ticks]
    if found != meant:
        wrong = next((k for k, (a, b) in enumerate(zip(found, meant)) if a != b), min(len(found), len(meant)))
        raise VideoError(
            path, "verify", f"chunk {file.stem}: {len(found)} frames written, {len(meant)} meant; first wrong: {wrong}"
        )


def _size(frame: av.VideoFrame, pulse: Callable[[], None]) -> tuple[int, int]:
    pulse()
    return frame.width, frame.height


def _hash(file: Path) -> tuple[int, str]:
    """Bytes and SHA-256."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
        return stream.tell(), digest.hexdigest()
