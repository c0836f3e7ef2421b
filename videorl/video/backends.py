"""PyAV, torchcodec and decord: each reads frames by their numbers in the list that PyAV made of a file's packets."""

import functools
import importlib
import math
from collections.abc import Callable, Iterator

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from videorl.registry import UserError, did_you_mean
from videorl.video.container import container_of, open_stream
from videorl.video.errors import VideoError, another_size, at_stage, check_colours, log_once
from videorl.video.h264 import Units
from videorl.video.index import Index, can_seek, frame_times, list_packets, nonsense
from videorl.video.orientation import Orientation, orientation_of

BACKENDS = ("pyav", "torchcodec", "decord")


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


class _Skipped(Exception):
    """Frames were left out of a file that cannot do without them: it is damaged, or marks them wrongly."""


class _Wanted:
    """The time stamps of the frames that are asked for, and the last of them; none: every frame is."""

    def __init__(self):
        self.stamps, self.last = frozenset(), 0

    def leaves_out(self, pts: int | None) -> bool:
        # Frames after the last wanted one stay: the next call may go on with them.
        return bool(self.stamps) and pts is not None and pts < self.last and pts not in self.stamps


def _decoded(container, stream, wanted: _Wanted) -> Iterator[av.VideoFrame]:
    """Frames from where the file stands, without the unwanted ones of H.264 that no other is made from.

    No method: a reader that held this, which held the reader, would wait for the garbage collector.
    """
    codec, units = stream.codec_context, Units(stream.codec_context)
    for packet in container.demux(stream):
        left_out = wanted.leaves_out(packet.pts) and not units.is_needed(packet)
        codec.skip_frame = "NONREF" if left_out else "DEFAULT"
        for frame in packet.decode():
            if frame.is_corrupt and wanted.stamps:  # it is patched from what was decoded before: from all, or others
                raise _Skipped
            yield frame


Picture = Callable[[av.VideoFrame], np.ndarray]  # to [H, W, 3] uint8 RGB


class Shown:
    """The whole picture as it is shown: the `Picture` that is made where no other is asked for."""

    def __init__(self):
        # One converter and one thread for all frames: `frame.to_ndarray` makes them anew for each, and reading 300
        # frames of 340x256 took 434 ms instead of 58.
        self._convert = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        check_colours(frame)
        return orientation_of(frame).show(self._convert.reformat(frame, format="rgb24", threads=1).to_ndarray())


class PyAV:
    """Reads any file, with the list of its frames: by time stamp, or by counting from the start where none help."""

    # Frames to go back for another start if decoding from the nearest key frame begins only after the wanted frame.
    # Intra refresh does that: its key frames are whole only some frames later.
    STEPS_BACK = (0, 60, 120, 240, 480)

    def __init__(self, path: str, max_pixels: int, cut: Callable[[str], Picture] | None = None):
        self.path, self.max_pixels = path, max_pixels
        self._format = container_of(path)
        self._container = None
        self._picture = cut(path) if cut else Shown()
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
        self._wanted = _Wanted()
        self._container, self._stream = open_stream(self.path, self.max_pixels, self._format)
        self._decoder = self._decode()

    def _decode(self) -> Iterator[av.VideoFrame]:
        return _decoded(self._container, self._stream, self._wanted)

    def _make_index(self) -> Index:
        packets = list_packets(self._container, self._stream)
        if not packets.pts:
            raise VideoError(self.path, "index", "no frames")
        if nonsense(packets, self._stream):
            raise VideoError(self.path, "index", "its time stamps and edit list make no sense together")
        by_time = can_seek(self._format, packets) and not self._is_stamped_as_decoded(packets.pts)
        shown = sorted(packets.pts) if by_time else self._count()
        times, fps = frame_times(self._container, self._stream, shown)
        keys = {0, *np.flatnonzero(np.array(packets.keys)[np.argsort(packets.pts)])} if by_time else {0}
        promised, codec = self._stream.frames, self._stream.codec_context
        lost = f" (its header promises {promised}: truncated?)" if promised > packets.count else ""
        return Index(
            times=times,
            fps=fps,
            pts=np.array(shown) if by_time else None,
            keys=np.array(sorted(keys)),
            time_base=self._stream.time_base,
            stream=self._stream.index,
            streams=len(self._container.streams.video),
            kind=(self._format, codec.name, codec.pix_fmt, codec.colorspace, codec.color_range),
            width=codec.width,
            height=codec.height,
            trimmed=packets.trimmed,
            idr_only=packets.idr_only,
            lost=lost,
        )

    def _is_stamped_as_decoded(self, pts: list[int]) -> bool:
        """Whether frames come out in another order than their time stamps say.

        That can be only if packets lie in the order of their stamps though the decoder holds frames back. Few files
        are such; these are decoded up to the first frame that comes too late.
        """
        if not self._stream.codec_context.has_b_frames or any(a > b for a, b in zip(pts, pts[1:])):
            return False
        self._restart()
        last = pts[0]
        try:
            for frame in self._decoder:
                if frame.pts is None or frame.pts < last:
                    return True
                last = frame.pts
        except av.FFmpegError:  # what is damaged is said when it is asked for
            pass
        return False

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

    def read(self, wanted: list[int], most: float = math.inf) -> torch.Tensor:
        """Frames [T, H, W, 3] for rising frame numbers, or for the first of them: of `most` pixels, or one frame."""
        if self._skips:
            stamps = self.index.pts[wanted].tolist()
            self._wanted.stamps, self._wanted.last = frozenset(stamps), stamps[-1]
        try:
            return self._pictures(wanted, most)
        except _Skipped:
            self._skips, self._wanted.stamps = False, frozenset()
            return self._pictures(wanted, most)

    def _pictures(self, wanted: list[int], most: float) -> torch.Tensor:
        first = self._picture(self._frame(wanted[0]))  # not the header tells what a picture takes
        height, width = first.shape[:2]
        out = np.empty((int(min(len(wanted), max(1, most / (height * width)))), height, width, 3), np.uint8)
        out[0] = first
        for place in range(1, len(out)):
            picture = self._picture(self._frame(wanted[place]))
            if picture.shape != first.shape:
                raise another_size(self.path, wanted[place], wanted[0])
            out[place] = picture
        return torch.from_numpy(out)

    @functools.cached_property
    def orientation(self) -> Orientation:
        """That of the first frame, which is decoded for it: packets do not tell."""
        with at_stage(self.path, "decode"):
            return orientation_of(self._frame(0))

    def _frame(self, number: int):
        try:
            return self._find_by_count(number) if self.index.pts is None else self._find_by_time(number)
        except Exception:
            self._last = None
            raise

    def _find_by_time(self, number: int):
        goes_on = self._last is not None and self._key_before(number) <= self._last < number
        if goes_on and (frame := self._decode_to(number)):
            return frame
        for key in dict.fromkeys(self._key_before(max(number - back, 0)) for back in self.STEPS_BACK):
            self._container.seek(int(self.index.pts[key]), stream=self._stream)
            self._decoder = self._decode()
            if frame := self._decode_to(number):
                return frame
            if self._wanted.stamps:
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

    def __init__(self, path: str, index: Index):
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
    frames, and shifts frames after an edit list or an open GOP: such files must not reach it, see `unfit`.
    """

    def __init__(self, path: str, index: Index):
        import decord

        self._reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)  # its default threads fail on VP9
        _expect_count(len(self._reader), index)

    def read(self, wanted: list[int]) -> torch.Tensor:
        return torch.from_numpy(self._reader.get_batch(wanted).asnumpy())

    def close(self) -> None:
        self._reader = None


OTHERS = {"torchcodec": _TorchCodec, "decord": _Decord}


def _expect_count(count: int, index: Index) -> None:
    if count != len(index.pts):
        raise ValueError(f"it counts {count} frames where the packets hold {len(index.pts)}")


def unfit(backend: str, exact: PyAV) -> str:
    """What a backend is known to get wrong, or to decode to other pixels than PyAV, in this file; else nothing."""
    index = exact.index
    container, codec, pixels = index.kind[:3]
    if index.pts is None:
        return f"{container} files whose time stamps name no frames"
    if pixels not in ("yuv420p", "yuvj420p"):
        return f"pixel format {pixels}"
    if index.height % 2:
        return "odd heights"
    if backend == "decord" and (reason := _unfit_for_decord(codec, index)):
        return reason
    return "mirrored pictures" if exact.orientation.is_mirror else ""


def _unfit_for_decord(codec: str, index: Index) -> str:
    if codec not in ("h264", "vp8", "vp9", "mpeg4"):
        return f"{codec} video"
    if not index.idr_only:
        return "open GOPs and intra refresh"
    if index.trimmed:
        return "edit lists"
    if index.streams > 1:  # it takes the one that its FFmpeg prefers
        return "files with several video streams"
    if float(index.pts[-1] * index.time_base) * index.fps > 10**8:  # it makes room for all frames since time 0
        return "time stamps that no video reaches"
    return "truncated files" if index.lost else ""


_agreed: dict[tuple, bool] = {}  # per process: backend and kind of file -> whether its first such file agreed


def same_pixels(backend: str, other, exact: PyAV) -> bool:
    """Whether a backend gives PyAV's pixels for this kind of file: first and last frame of the first one of the kind.

    The kind is container, codec, pixel format, colours and orientation. The other files of the kind cost one frame. If
    a damaged file is the first, then its kind is read by PyAV in this process: slower, but the same frames.
    """
    kind = (backend, *exact.index.kind, exact.orientation)
    if kind not in _agreed:
        ends = sorted({0, len(exact.index.pts) - 1})
        _agreed[kind] = torch.equal(other.read(ends), exact.read(ends))
        if not _agreed[kind]:
            log_once(f"{backend} and PyAV decode {exact.path} to different pixels: PyAV reads files of its kind")
    return _agreed[kind]
