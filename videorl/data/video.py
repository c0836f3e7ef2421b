"""Frames of video files, exact to the frame: PyAV, torchcodec and decord behind one class.

PyAV has the last word. It lists the packets of every file without decoding (about 1 ms per 300 frames), and that list
says which frames exist, when they are shown and where decoding can start. Another backend reads a file only if it
cannot go wrong there: see `_unfit` for what is known before, `_TorchCodec.read` for what is checked at every call, and
`_same_pixels` for the comparison with PyAV on the first file of each kind. Otherwise, and whenever it raises, PyAV
reads the file instead and the log says so once. So all backends give the same frames, and differ in speed: PyAV opens
a file once, where others open it again, and decodes no frames of H.264 that are not asked for and no other needs.
That holds for whole files. Some damage no decoder notices (a dozen flipped bytes), and none is noticed in frames that
nobody asks for: that takes a checksum of the file. What comes of a damaged one may depend on what was read before.

Decoders run in one thread: the frames of a damaged file depend on the number of threads, and data loading runs in many
worker processes. There, call `torch.set_num_threads(1)`: torchcodec takes four times as long without it.
"""

import functools
import importlib
import logging
import os
import stat
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from videorl.data.h264 import Units
from videorl.registry import UserError, did_you_mean
from videorl.spec import Reading

BACKENDS = ("pyav", "torchcodec", "decord")

_log = logging.getLogger(__name__)


class VideoError(Exception):
    """A video that cannot be read: its path, the stage that failed and the reason. Pickles; its text is one line.

    Stages: "open" (no video that may be read), "index" (no list of frames), "decode" (a frame that was asked for).
    """

    def __init__(self, path: str | Path, stage: str, reason: str):
        super().__init__(str(path), stage, reason)
        self.path, self.stage, self.reason = str(path), stage, reason

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.stage}: {self.reason}")


def printable(text: str) -> str:
    """One line: names of files and what decoders say may hold line breaks and codes that a terminal obeys."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextmanager
def at_stage(path: str, stage: str):
    """Decoders raise a dozen types of errors on damaged files; here each becomes a VideoError."""
    try:
        yield
    except VideoError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise VideoError(path, stage, reason) from error


def open_video(path: str | Path, backend: str = "pyav", *, max_pixels: int = Reading.max_pixels) -> "Video":
    """Opens a video file; use it in a `with` statement.

    `backend`: "pyav", which was the fastest of the three wherever measured, "torchcodec" or "decord". `max_pixels` per
    frame is checked before anything is decoded. Raises VideoError, and UserError for a backend that is unknown or not
    installed.
    """
    return Video(path, backend, max_pixels)


class Video:
    """The frames of the first video stream of a file, in the order in which players show them.

    num_frames: frames that the file holds (of a truncated file: those that are left)
    fps:        average over the whole video
    times:      [N] float64, seconds from the time that players call 0; rising
    size:       (height, width) as shown; needs one decoded frame
    num_keys:   frames that decoding can start at
    lost:       what the header of a truncated file promises, in words, or nothing
    backend:    the one that reads this file, "pyav", "torchcodec" or "decord"

    Pickles as its path and is opened anew by the process that unpickles it; the same after a fork.
    """

    def __init__(self, path: str | Path, backend: str, max_pixels: int):
        self.path = os.path.abspath(path)
        check_backend(backend)
        self._arguments = (self.path, backend, max_pixels)
        self._asked = backend
        self._max_pixels = max_pixels
        self._size = None
        self._open()

    def _open(self) -> None:
        self._process = os.getpid()
        self._reader = _PyAV(self.path, self._max_pixels)
        self.backend = "pyav"
        self._index = self._reader.index
        self.num_frames, self.fps, self.times = len(self._index.times), self._index.fps, self._index.times
        self.num_keys, self.lost = len(self._index.keys), self._index.lost
        if self._asked != "pyav":
            self._try_other()

    def _try_other(self) -> None:
        if reason := _unfit(self._asked, self._index):
            _log_once(f"{self._asked} does not read {reason} exactly: PyAV reads such files")
            return
        try:
            other = _OTHERS[self._asked](self.path, self._index)
            agrees = _same_pixels(self._asked, other, self._reader)
        except Exception as error:
            self._log_failure(self._asked, error)
            return
        if agrees:
            self._reader.close()
            self._reader, self.backend = other, self._asked

    @property
    def size(self) -> tuple[int, int]:
        if self._size is None:
            self.frames([0])
        return self._size

    def frames(self, indices: Sequence[int]) -> torch.Tensor:
        """Frames [T, H, W, 3], uint8 RGB, for T >= 1 frame numbers in any order, also repeated.

        Raises VideoError (stage "decode") if a number is out of range or a frame cannot be decoded.
        """
        numbers = np.asarray(indices).astype(np.int64, casting="safe")
        if numbers.ndim != 1 or not len(numbers):
            raise ValueError(f"expected a list of at least one frame number, got shape {numbers.shape}")
        wanted, places = np.unique(numbers, return_inverse=True)
        if wanted[0] < 0 or wanted[-1] >= self.num_frames:
            outside = wanted[0] if wanted[0] < 0 else wanted[-1]
            raise VideoError(self.path, "decode", f"frame {outside} of {self.num_frames}{self.lost}")
        frames = self._read(wanted.tolist())
        self._size = tuple(frames.shape[1:3])
        return frames if np.array_equal(wanted, numbers) else frames[torch.from_numpy(places)]

    def _read(self, wanted: list[int]) -> torch.Tensor:
        if self._reader is None:
            raise ValueError(f"{self.path} is closed")
        if self._process != os.getpid():  # parent and child would move one file position
            self._open()
        if self.backend != "pyav":
            try:
                return self._reader.read(wanted)
            except Exception as error:
                self._log_failure(self.backend, error)
            self._reader, self.backend = _PyAV(self.path, self._max_pixels), "pyav"
        with at_stage(self.path, "decode"):
            return self._reader.read(wanted)

    def _log_failure(self, backend: str, error: Exception) -> None:
        first_line = str(error).partition("\n")[0]
        _log_once(f"{self.path}: {backend} fails, PyAV reads it: {first_line}")

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __reduce__(self):
        return Video, self._arguments


# ---- what may be opened ----------------------------------------------------------------------------------------------


def container_of(path: str) -> str:
    """FFmpeg's names of the formats that the first bytes of a file allow.

    FFmpeg itself also opens playlists (HLS, ffconcat, SDP), which name other files and hosts, and waits for a writer
    when the path is a pipe: nothing but a regular file that begins like a video may reach it.
    """
    with at_stage(path, "open"):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise VideoError(path, "open", "not a regular file")
        with open(path, "rb") as file:
            head = file.read(1024)
    if not head:
        raise VideoError(path, "open", "empty file")
    container = _sniff(head)
    if not container:
        raise VideoError(path, "open", f"not a video that can be read: it begins with {head[:16]!r}")
    return container


def _sniff(head: bytes) -> str:
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"):
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith((b"\0\0\1", b"\0\0\0\1")):
        return "h264,hevc,mpeg,mpegvideo"
    packets = (head[at : at + 2 * size + 1 : size] for size in (188, 192, 204) for at in range(size))
    return "mpegts" if b"GGG" in packets else ""


def open_stream(path: str, max_pixels: int, container_format: str = ""):
    """The open container of a video file, and its video stream, which decodes in one thread. Close the container.

    `container_format`: what `container_of` says, if it was asked before. Raises VideoError, stage "open".
    """
    # The size may change later in the stream. The decoder counts padding to whole blocks too: hence a looser limit.
    limits = {"max_pixels": str(2 * max_pixels + 2**16)}
    allowed = {"protocol_whitelist": "file", "format_whitelist": container_format or container_of(path)}
    with at_stage(path, "open"):
        container = av.open(f"file:{path}", options={**allowed, **limits}, metadata_errors="replace")
        try:
            stream = _first_stream(path, container, max_pixels)
        except Exception:
            container.close()
            raise
        stream.codec_context.thread_count = 1
        stream.codec_context.options = limits  # `av.open` applies its own while it looks into the file, not to decoding
        return container, stream


def _first_stream(path: str, container, max_pixels: int):
    """The first video stream that is no cover picture, if its frames are within the limit."""
    shown = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not shown:
        raise VideoError(path, "open", "no video stream")
    codec = shown[0].codec_context
    if codec is None:
        raise VideoError(path, "open", "no decoder for its video")
    if codec.width * codec.height > max_pixels:
        size = f"{codec.width}x{codec.height}"
        raise VideoError(path, "open", f"{size} pixels per frame, more than the limit of {max_pixels}")
    return shown[0]


def check_backend(backend: str) -> None:
    """Raises `UserError` for a backend that is unknown or does not load."""
    if backend not in BACKENDS:
        hint = did_you_mean(backend, BACKENDS)
        known = ", ".join(BACKENDS)
        raise UserError(f"unknown decoding backend {backend!r}{hint} (known to DATA.DECODING_BACKEND: {known})")
    if backend != "pyav" and (reason := _missing(backend)):
        raise UserError(f"decoding backend {backend!r} does not load ({reason}); install it or use 'pyav'")


@functools.cache
def _missing(library: str) -> str:
    """Why a decoding library cannot be used, or nothing."""
    try:
        module = importlib.import_module(library)
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).strip().partition("\n")[0]
    if getattr(module, "ffmpeg_major_version", 0) is None:  # torchcodec imports without FFmpeg, to decode images
        return "it finds no FFmpeg libraries"
    return ""


# ---- the list of frames ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Index:
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
    kind: tuple  # container, codec, pixel format and colours: what decides how frames are decoded and converted
    height: int
    trimmed: bool = False
    idr_only: bool = True
    lost: str = ""


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


def _list_packets(container, stream) -> _Packets:
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


def _can_seek(container: str, packets: _Packets) -> bool:
    """Whether time stamps name frames. In AVI, TS and raw streams packets have none, or seeks land anywhere."""
    stamps = packets.pts
    return container in ("mov", "matroska") and None not in stamps and len(set(stamps)) == len(stamps)


def _nonsense(packets: _Packets, stream) -> bool:
    """Damaged clocks (units of a second, all frames at one time) make an edit list hide frames at random."""
    repeated = len(set(packets.pts)) < len(packets.pts)
    slower_than_slides = stream.average_rate is not None and stream.average_rate < Fraction(1, 100)
    return packets.trimmed and (repeated or slower_than_slides)


def _start_of(container, first: Fraction) -> Fraction:
    """The time that players call 0, in seconds: the beginning of whichever comes first, sound or picture."""
    sound = [s.start_time * s.time_base for s in container.streams.audio if s.start_time is not None]
    return min([first, *sound])


def _frame_times(container, stream, pts: list[int | None]) -> tuple[np.ndarray, float]:
    """Seconds of every frame [N], and frames per second; from the nominal rate where time stamps are of no use."""
    rate = float(stream.average_rate or stream.guessed_rate or 1)
    if None in pts or any(a >= b for a, b in zip(pts, pts[1:], strict=False)):
        return np.arange(len(pts)) / rate, rate
    unit = stream.time_base
    start = _start_of(container, pts[0] * unit)
    times = np.array(pts) * unit.numerator / unit.denominator - float(start)
    return times, float((len(pts) - 1) / ((pts[-1] - pts[0]) * unit)) if len(pts) > 1 else rate


# ---- backends --------------------------------------------------------------------------------------------------------


class _Skipped(Exception):
    """Frames were left out of a file that cannot do without them: it is damaged, or marks them wrongly."""


class _PyAV:
    """Reads any file, with the list of its frames: by time stamp, or by counting from the start where none help."""

    # Frames to go back for another start if decoding from the nearest key frame begins only after the wanted frame.
    # Intra refresh does that: its key frames are whole only some frames later.
    STEPS_BACK = (0, 60, 120, 240, 480)

    def __init__(self, path: str, max_pixels: int):
        self.path, self.max_pixels = path, max_pixels
        self._format = container_of(path)
        self._container = None
        self._convert = VideoReformatter()
        try:
            self._open()
            with at_stage(path, "index"):
                self.index = self._make_index()
            self._skips = self.index.pts is not None and Units(self._stream.codec_context).prefix > 0
        except VideoError:
            self.close()
            raise

    def _open(self) -> None:
        self._last = None  # number of the frame that was decoded last
        self._wanted, self._until = frozenset(), 0  # time stamps, and the last of them; none: decode every frame
        self._container, self._stream = open_stream(self.path, self.max_pixels, self._format)
        self._decoder = self._decode()

    def _decode(self):
        """Frames from where the file stands, without the unwanted ones of H.264 that no other is made from."""
        codec, units = self._stream.codec_context, Units(self._stream.codec_context)
        for packet in self._container.demux(self._stream):
            left_out = self._is_unwanted(packet.pts) and not units.is_needed(packet)
            codec.skip_frame = "NONREF" if left_out else "DEFAULT"
            for frame in packet.decode():
                if frame.is_corrupt and self._wanted:  # it is patched from what was decoded before: from all, or others
                    raise _Skipped
                yield frame

    def _is_unwanted(self, pts: int | None) -> bool:
        # Frames after the last wanted one stay: the next call may go on with them.
        return bool(self._wanted) and pts is not None and pts < self._until and pts not in self._wanted

    def _make_index(self) -> _Index:
        packets = _list_packets(self._container, self._stream)
        if not packets.pts:
            raise VideoError(self.path, "index", "no frames")
        if _nonsense(packets, self._stream):
            raise VideoError(self.path, "index", "its time stamps and edit list make no sense together")
        by_time = _can_seek(self._format, packets)
        shown = sorted(packets.pts) if by_time else self._count()
        times, fps = _frame_times(self._container, self._stream, shown)
        keys = {0, *np.flatnonzero(np.array(packets.keys)[np.argsort(packets.pts)])} if by_time else {0}
        promised, codec = self._stream.frames, self._stream.codec_context
        lost = f" (its header promises {promised}: truncated?)" if promised > packets.count else ""
        return _Index(
            times=times,
            fps=fps,
            pts=np.array(shown) if by_time else None,
            keys=np.array(sorted(keys)),
            time_base=self._stream.time_base,
            stream=self._stream.index,
            kind=(self._format, codec.name, codec.pix_fmt, codec.colorspace, codec.color_range),
            height=codec.height,
            trimmed=packets.trimmed,
            idr_only=packets.idr_only,
            lost=lost,
        )

    def _count(self) -> list[int | None]:
        """Decodes everything: packets may hold no frame, or half of one. Returns the frames' time stamps."""
        self._restart()
        stamps = [frame.pts for frame in self._decoder]
        self._last = len(stamps)
        if not stamps:
            raise VideoError(self.path, "index", "no frame can be decoded")
        return stamps

    def _restart(self) -> None:
        self.close()  # a seek to the start is no way: TS lands behind its first key frame, raw streams refuse
        self._open()

    def read(self, wanted: list[int]) -> torch.Tensor:
        """Frames [T, H, W, 3] for rising frame numbers."""
        if self._skips:
            stamps = self.index.pts[wanted].tolist()
            self._wanted, self._until = frozenset(stamps), stamps[-1]
        try:
            return self._pictures(wanted)
        except _Skipped:
            self._skips, self._wanted = False, frozenset()
            return self._pictures(wanted)

    def _pictures(self, wanted: list[int]) -> torch.Tensor:
        find = self._find_by_count if self.index.pts is None else self._find_by_time
        out = None
        for place, number in enumerate(wanted):
            try:
                frame = find(number)
            except Exception:
                self._last = None
                raise
            picture = self._rgb(frame)
            if out is None:
                out = np.empty((len(wanted), *picture.shape), np.uint8)
            if picture.shape != out.shape[1:]:
                raise VideoError(self.path, "decode", f"frame {number} has another size than frame {wanted[0]}")
            out[place] = picture
        return torch.from_numpy(out)

    def _rgb(self, frame) -> np.ndarray:
        # One converter and one thread for all frames: `frame.to_ndarray` makes them anew for each, and reading 300
        # frames of 340x256 took 434 ms instead of 58.
        picture = self._convert.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return np.rot90(picture, round(frame.rotation / 90) % 4)

    def _find_by_time(self, number: int):
        goes_on = self._last is not None and self._key_before(number) <= self._last < number
        if goes_on and (frame := self._decode_to(number)):
            return frame
        for key in dict.fromkeys(self._key_before(max(number - back, 0)) for back in self.STEPS_BACK):
            self._container.seek(int(self.index.pts[key]), stream=self._stream)
            self._decoder = self._decode()
            if frame := self._decode_to(number):
                return frame
            if self._wanted:
                raise _Skipped
        raise VideoError(self.path, "decode", f"frame {number} of {len(self.index.pts)} is not decodable")

    def _key_before(self, number: int) -> int:
        return int(self.index.keys[np.searchsorted(self.index.keys, number, side="right") - 1])

    def _decode_to(self, number: int):
        """Frame `number`, or None if decoding goes past it. Exact: time stamps are compared as whole numbers."""
        target = int(self.index.pts[number])
        for frame in self._decoder:
            if frame.pts == target:
                self._last = number
                return frame
            if frame.pts is None or frame.pts > target:
                break
        self._last = None
        return None

    def _find_by_count(self, number: int):
        if self._last is None or self._last >= number:
            self._restart()
            self._last = -1
        for frame in self._decoder:
            self._last += 1
            if self._last == number:
                return frame
        raise VideoError(self.path, "decode", f"frame {number} of {len(self.index.times)} is not decodable")

    def close(self) -> None:
        if self._container is not None:
            self._container.close()


class _TorchCodec:
    """Frames by torchcodec. At every call the time stamps of what it decoded are compared with those of PyAV's list."""

    def __init__(self, path: str, index: _Index):
        from torchcodec.decoders import VideoDecoder

        self._index = index
        self._decoder = VideoDecoder(
            path,
            stream_index=index.stream,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            device="cpu",
            seek_mode="exact",
        )
        _expect_count(len(self._decoder), index)

    def read(self, wanted: list[int]) -> torch.Tensor:
        batch = self._decoder.get_frames_at(wanted)
        found = np.rint(batch.pts_seconds.numpy() / float(self._index.time_base)).astype(np.int64)
        if not np.array_equal(found, self._index.pts[wanted]):  # intra refresh, lost packets
            raise ValueError("it gives frames of other times than those asked for")
        return batch.data

    def close(self) -> None:
        self._decoder = None


class _Decord:
    """Frames by decord, whose FFmpeg is of 2018. It can neither tell what it decoded nor be stopped in its loops.

    It has an endless loop for files whose frames all have one time, aborts the process for a header that promises 2^32
    frames, and shifts frames after an edit list or an open GOP: such files must not reach it, see `_unfit`.
    """

    def __init__(self, path: str, index: _Index):
        import decord

        self._reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)  # its default threads fail on VP9
        _expect_count(len(self._reader), index)

    def read(self, wanted: list[int]) -> torch.Tensor:
        return torch.from_numpy(self._reader.get_batch(wanted).asnumpy())

    def close(self) -> None:
        self._reader = None


_OTHERS = {"torchcodec": _TorchCodec, "decord": _Decord}


def _expect_count(count: int, index: _Index) -> None:
    if count != len(index.pts):
        raise ValueError(f"it counts {count} frames where the packets hold {len(index.pts)}")


def _unfit(backend: str, index: _Index) -> str:
    """What a backend is known to get wrong, or to decode to other pixels than PyAV, in this file; else nothing."""
    container, codec, pixels = index.kind[:3]
    if index.pts is None:
        return f"{container} files without an index of time stamps"
    if pixels not in ("yuv420p", "yuvj420p"):
        return f"pixel format {pixels}"
    if index.height % 2:
        return "odd heights"
    return _unfit_for_decord(codec, index) if backend == "decord" else ""


def _unfit_for_decord(codec: str, index: _Index) -> str:
    if codec not in ("h264", "vp8", "vp9", "mpeg4"):
        return f"{codec} video"
    if not index.idr_only:
        return "open GOPs and intra refresh"
    if index.trimmed:
        return "edit lists"
    if float(index.pts[-1] * index.time_base) * index.fps > 10**8:  # it makes room for all frames since time 0
        return "time stamps that no video reaches"
    return "truncated files" if index.lost else ""


_agreed: dict[tuple, bool] = {}  # per process: backend and kind of file -> whether its first such file agreed


def _same_pixels(backend: str, other, exact: _PyAV) -> bool:
    """Whether a backend gives PyAV's pixels for this kind of file: first and last frame of the first one of the kind.

    The kind is container, codec, pixel format and colours. The other files of the kind cost nothing. If a damaged file
    is the first, then its kind is read by PyAV in this process: slower, but the same frames.
    """
    kind = (backend, *exact.index.kind)
    if kind not in _agreed:
        ends = sorted({0, len(exact.index.pts) - 1})
        _agreed[kind] = torch.equal(other.read(ends), exact.read(ends))
        if not _agreed[kind]:
            _log_once(f"{backend} and PyAV decode {exact.path} to different pixels: PyAV reads files of its kind")
    return _agreed[kind]


@functools.lru_cache(maxsize=10_000)
def _log_once(line: str) -> None:
    _log.warning(printable(line))
