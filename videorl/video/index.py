"""The list of a file's frames, from its packets alone: which, shown when, where to start from."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from videorl.video.h264 import Units


@dataclass(frozen=True)
class Index:
    """What the packets of a stream say about its frames.

    `pts` [N] are the time stamps of the frames, rising, in units of `time_base`, and `keys` [K] the numbers of key
    frames, of which 0 counts as one. `pts` is None where frames can only be counted from the start.
    """

    times: np.ndarray
    fps: float
    pts: np.ndarray | None
    keys: np.ndarray
    time_base: Fraction
    stream: int
    streams: int  # of video in the file, with cover pictures
    kind: tuple  # container, codec, pixel format and colours: what decides how frames are decoded and converted
    width: int
    height: int
    trimmed: bool = False
    idr_only: bool = True
    lost: str = ""

    @property
    def pixels(self) -> int:
        """Of a frame, as the header says."""
        return self.width * self.height


@dataclass(frozen=True)
class _Packets:
    """Time stamps and key-frame marks of the packets that are shown, in decoding order."""

    pts: list
    keys: list
    count: int  # with those that an edit list hides
    idr_only: bool

    @property
    def trimmed(self) -> bool:
        return self.count > len(self.pts)


def list_packets(container, stream) -> _Packets:
    units = Units(stream.codec_context)
    pts, keys, count, idr_only = [], [], 0, True
    for packet in container.demux(stream):
        if not packet.size:
            continue
        count += 1
        if packet.is_keyframe and units.h264:
            idr_only = idr_only and units.has_idr(packet)
        if not packet.is_discard:
            pts.append(packet.pts)
            keys.append(packet.is_keyframe)
    return _Packets(pts, keys, count, idr_only)


def can_seek(container: str, packets: _Packets) -> bool:
    """Whether time stamps name frames. In AVI, TS and raw streams packets have none, or seeks land anywhere."""
    stamps = packets.pts
    return container in ("mov", "matroska") and None not in stamps and len(set(stamps)) == len(stamps)


def nonsense(packets: _Packets, stream) -> bool:
    """Damaged clocks (units of a second, all frames at one time) make an edit list hide frames at random."""
    repeated = len(set(packets.pts)) < len(packets.pts)
    slower_than_slides = stream.average_rate is not None and stream.average_rate < Fraction(1, 100)
    return packets.trimmed and (repeated or slower_than_slides)


def _start_of(container, first: Fraction) -> Fraction:
    """The time that players call 0, in seconds: the beginning of whichever comes first, sound or picture."""
    sound = [s.start_time * s.time_base for s in container.streams.audio if s.start_time is not None]
    return min([first, *sound])


def frame_times(container, stream, pts: list[int | None]) -> tuple[np.ndarray, float]:
    """Seconds of every frame [N], and frames per second; from the nominal rate where time stamps are of no use."""
    rate = float(stream.average_rate or stream.guessed_rate or 1)
    if None in pts or any(a >= b for a, b in zip(pts, pts[1:], strict=False)):
        return np.arange(len(pts)) / rate, rate
    unit = stream.time_base
    start = _start_of(container, pts[0] * unit)
    times = np.array(pts) * unit.numerator / unit.denominator - float(start)
    return times, float((len(pts) - 1) / ((pts[-1] - pts[0]) * unit)) if len(pts) > 1 else rate
