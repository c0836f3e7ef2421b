"""Clips by time: so many frames a second from a second of a video on, cropped and scaled, as the ffmpeg command does.

MIL-NCE reads HowTo100M with `ffmpeg -ss START -t SECONDS -i FILE -vf fps=…,crop=…,scale=…,hflip -pix_fmt rgb24`, one
process for each clip. Here arithmetic on the time stamps of the packets says which frames that command shows, these are
decoded in process, and libavfilter crops and scales them: the bytes are the same. What makes it fast: no process is
started, only the packets from the last key frame before START are read, and of an H.264 video those frames are not
decoded which nobody asked for and no other frame is made from. Other decoders do not crop and scale to these pixels:
DATA.DECODING_BACKEND and DATA.CACHE_FOLDER have no effect here.
"""

import math
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import av
import numpy as np
import torch
from av.filter import Graph

from videorl.spec import Reading
from videorl.video.container import container_of, open_stream
from videorl.video.errors import VideoError, at_stage, check_colours
from videorl.video.h264 import Units
from videorl.video.orientation import orientation_of
from videorl.video.reader import open_video

SLACK = 0.1  # seconds read beyond the length of a clip, as published
SEEKABLE = ("mov", "matroska")  # containers whose packets have time stamps that name frames
# Seconds to start earlier if decoding from the nearest key frame does not give the frames: open GOPs, intra refresh.
STEPS_BACK = (0, 2, 8, 30)


@dataclass(frozen=True)
class Crop:
    """Which square of the frames a clip shows, `size` pixels wide.

    `across` and `down` (0..1) place it in the width and height that are left over: 0.5 is the centre. `scaled`: the
    largest square, scaled (bicubic); else size x size pixels as they are. `flip`: mirrored.
    """

    size: int
    across: float = 0.5
    down: float = 0.5
    scaled: bool = True
    flip: bool = False

    def filters(self) -> list[tuple[str, str]]:
        """Names and arguments of the libavfilter filters."""
        side = "min(iw,ih)" if self.scaled else str(self.size)
        filters = [("crop", f"{side}:{side}:(iw-{side})*{self.across}:(ih-{side})*{self.down}")]
        if self.scaled:
            filters.append(("scale", f"{self.size}:{self.size}:flags=bicubic"))
        return filters + [("hflip", "")] * self.flip


class _Misstamped(Exception):
    """Frames come out in another order than their time stamps say."""


class PastEnd(VideoError):
    """A clip that begins where the video has no picture any more, stage "decode"."""


def pick(times: Sequence[int], end: int, count: int, step: Fraction) -> list[int]:
    """Which frame, by its place in `times`, each of up to `count` outputs shows: the rule of ffmpeg's filter `fps`.

    `times` of the frames, rising from 0, and `end` of the last one, are whole ticks; `step` ticks lie between two
    outputs. Step k shows the last frame whose time in steps rounds to k or less, halves up. The outputs are the steps
    from that of the first frame on, up to `end` in steps, rounded.
    """
    due = [_rounded(t / step) for t in times]
    steps = range(due[0], _rounded(end / step)) if due else ()
    return [bisect_right(due, k) - 1 for k in steps[:count]]


def _rounded(value: Fraction) -> int:
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


class Spans:
    """A video file that is read by time; use it in a `with` statement. Raises VideoError.

    Files other than mp4/mov and webm/mkv are read from their start, with the times that `Video` gives their frames.
    """

    def __init__(self, path: str | os.PathLike, *, max_pixels: int = Reading.max_pixels):
        self.path, self.max_pixels = os.path.abspath(path), max_pixels
        self._format = container_of(self.path)
        self._container, self._stream = open_stream(self.path, max_pixels, self._format)

    def __enter__(self) -> "Spans":
        return self

    def __exit__(self, *_) -> None:
        self._container.close()

    @property
    def seconds(self) -> float:
        """Length of the file as its header gives it."""
        if not self._container.duration:
            raise VideoError(self.path, "index", "its header gives no duration")
        return self._container.duration / av.time_base

    def clip(self, start: float, *, frames: int, fps: float, crop: Crop) -> torch.Tensor:
        """uint8 [frames, 3, size, size] from second `start` on, `fps` frames a second; black past the end of the video.

        Raises PastEnd if the video has no frame there at all.
        """
        if self._format not in SEEKABLE:
            return self._clip_by_count(start, frames, fps, crop)
        begin, length = self._ticks(start, self._container.start_time or 0), self._ticks(frames / fps + SLACK)
        with at_stage(self.path, "decode"):
            stamps, end = self._times(begin, length)
            times = sorted(stamps)
            chosen = pick([t - begin for t in times], end - begin, frames, 1 / (_exact(fps) * self._stream.time_base))
            self._expect_some(chosen, start)
            numbers = [times[place] for place in chosen]
            # Stamps that rise though the decoder holds frames back may be those of decoding: it shows behind the last.
            doubtful = self._stream.codec_context.has_b_frames and stamps == times
            try:
                found = self._pictures(begin, set(numbers), crop, times[-1] if doubtful else None)
            except _Misstamped:
                return self._clip_by_count(start, frames, fps, crop)
        return stacked([found[n] for n in numbers], frames, crop.size)

    def _expect_some(self, chosen: list, start: float) -> None:
        if not chosen:
            raise PastEnd(self.path, "decode", f"it shows nothing from second {start:g} on: it ends before")

    def _ticks(self, seconds: float, offset: int = 0) -> int:
        """Seconds, cut to microseconds as ffmpeg reads them, and `offset` microseconds, in units of the time base."""
        micro = int(Decimal(str(float(seconds))) * av.time_base) + offset
        return _rounded(Fraction(micro, av.time_base) / self._stream.time_base)

    def _times(self, begin: int, length: int) -> tuple[list[int], int]:
        """Time stamps, in decoding order, of the frames shown in `length` ticks from the first one at or after `begin`
        on, and the time at which the last one is taken away."""
        ends, limit = {}, None
        for packet in self._packets(begin):
            if packet.pts is not None and packet.pts >= begin and not packet.is_discard:
                ends[packet.pts] = packet.pts + (packet.duration or 0)
                limit = min(ends) + length
            if None not in (packet.dts, limit) and packet.dts >= limit:  # no time stamp comes before its packet's dts
                break
        return [t for t in ends if t < limit], min(ends[max(ends)], limit) if ends else begin

    def _packets(self, begin: int) -> Iterator[av.Packet]:
        """Packets in decoding order from the last key frame before `begin` on; at the end of the file, an empty one."""
        self._container.seek(max(begin, 0), stream=self._stream)
        return self._container.demux(self._stream)

    def _pictures(self, begin: int, wanted: set[int], crop: Crop, until: int | None) -> dict[int, np.ndarray]:
        """Pictures [size, size, 3] by time stamp. `until`: every frame up to there is decoded, wanted or not."""
        for back in STEPS_BACK:
            found = self._decode(begin - self._ticks(back), wanted, crop, back == 0 and until is None, until)
            if len(found) == len(wanted):
                return found
        lost = min(wanted - found.keys())
        raise VideoError(self.path, "decode", f"the frame at {float(lost * self._stream.time_base):.2f} s is damaged")

    def _decode(self, begin: int, wanted: set[int], crop: Crop, skip: bool, until: int | None) -> dict[int, np.ndarray]:
        found, cut, codec, last = {}, Cutter(self.path, crop), self._stream.codec_context, -math.inf
        units = Units(codec)
        for packet in self._packets(begin):
            left_out = skip and packet.pts not in wanted and not units.is_needed(packet)
            codec.skip_frame = "NONREF" if left_out else "DEFAULT"
            for frame in packet.decode():
                if skip and frame.is_corrupt:  # it is patched from what was decoded before: the next try decodes all
                    return {}
                before, last = last, last if frame.pts is None else frame.pts
                if last < before:
                    raise _Misstamped
                if frame.pts in wanted and frame.pts not in found:
                    found[frame.pts] = cut(frame)
            if len(found) == len(wanted) and (until is None or last > until):
                break
        return found

    def _clip_by_count(self, start: float, frames: int, fps: float, crop: Crop) -> torch.Tensor:
        with open_video(self.path, "pyav", max_pixels=self.max_pixels) as video:
            micro = np.rint((video.times - start) * av.time_base).astype(np.int64)
            end = int(micro[-1] + av.time_base / video.fps)
        shown = np.flatnonzero(micro >= 0)
        shown = shown[micro[shown] < micro[shown[:1]] + (frames / fps + SLACK) * av.time_base]
        chosen = pick(micro[shown].tolist(), end, frames, av.time_base / _exact(fps))
        self._expect_some(chosen, start)
        numbers = shown[chosen].tolist()
        found = self.pictures(numbers, crop)
        return stacked([found.get(n) for n in numbers], frames, crop.size)

    def pictures(self, numbers: Sequence[int], crop: Crop) -> dict[int, np.ndarray]:
        """Pictures [size, size, 3] of frames by number, those that exist. Decodes from the start: for short videos."""
        wanted, found = set(numbers), {}
        container, stream = open_stream(self.path, self.max_pixels, self._format)
        with container, at_stage(self.path, "decode"):
            cut = Cutter(self.path, crop)
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    found[number] = cut(frame)
                if len(found) == len(wanted):
                    break
        return found


def stacked(pictures: Sequence[np.ndarray | None], frames: int, size: int) -> torch.Tensor:
    """Pictures [size, size, 3] as a clip uint8 [frames, 3, size, size]; what there is none for is black."""
    clip = np.zeros((frames, size, size, 3), np.uint8)
    for k, picture in enumerate(pictures):
        if picture is not None:
            clip[k] = picture
    return torch.from_numpy(clip).permute(0, 3, 1, 2)


class Cutter:
    """Cuts the square out of frames, with one filter graph for all."""

    def __init__(self, path: str, crop: Crop):
        self.path, self.crop = path, crop
        self._graph = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """[size, size, 3] uint8 RGB."""
        if self._graph is None:
            self._graph = self._make(frame)
        check_colours(frame)
        self._graph.push(frame)
        return self._graph.pull().to_ndarray()

    def _make(self, frame: av.VideoFrame) -> Graph:
        if not self.crop.scaled and min(frame.width, frame.height) < self.crop.size:
            size = f"{frame.width}x{frame.height}"
            raise VideoError(self.path, "decode", f"{size} pixels hold no crop of {self.crop.size} without scaling")
        graph = Graph()
        graph.threads = 1
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        filters = [*orientation_of(frame).filters(), *self.crop.filters(), ("format", "rgb24"), ("buffersink", "")]
        graph.link_nodes(source, *(graph.add(*name_and_arguments) for name_and_arguments in filters)).configure()
        return graph


def _exact(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1_001_000)
