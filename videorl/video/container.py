"""What may be opened: files that begin like a video, and the one stream of theirs that is read."""

import os
import stat

import av
from av.stream import Disposition

from videorl.video import bounds
from videorl.video.errors import VideoError, at_stage, log_once

# Formats by their first bytes. They are counted from the start: to read them often, cut them with `prepare_videos`.
OLDER = {
    b"GIF8": "gif",
    b"FLV\1": "flv",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",  # wmv
    b"OggS": "ogg",  # ogv
}


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
            container = _sniff(head)
            if not head:
                raise VideoError(path, "open", "empty file")
            if not container:
                raise VideoError(path, "open", f"not a video that can be read: it begins with {head[:16]!r}")
            _expect_bounds(path, file.fileno(), container, status.st_size)
    return container


def _expect_bounds(path: str, file: int, container: str, size: int) -> None:
    if (missing := bounds.holes(file)) > bounds.MOST_HOLES:
        megabytes = f"{missing / 1e6:.0f} MB or more of its {size / 1e6:.0f} MB"
        raise VideoError(path, "open", f"{megabytes} were never written: an unfinished download?")
    if container == "mov" and (samples := bounds.promised(file)) > size:
        raise VideoError(path, "open", f"its header promises {samples} samples in {size} bytes")


def _sniff(head: bytes) -> str:
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"):
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith((b"\0\0\1", b"\0\0\0\1")):
        return "h264,hevc,mpeg,mpegvideo"
    for start, container in OLDER.items():
        if head.startswith(start):
            return container
    packets = (head[at : at + 2 * size + 1 : size] for size in (188, 192, 204) for at in range(size))
    return "mpegts" if b"GGG" in packets else ""


def open_stream(path: str, max_pixels: int, container_format: str = ""):
    """The open container of a video file, and its video stream, which decodes in one thread. Close the container.

    `container_format`: what `container_of` says, if it was asked before. Raises VideoError, stage "open".
    """
    # The size may change later in the stream. The decoder counts padding to whole blocks too: hence a looser limit.
    limits = {"max_pixels": str(2 * max_pixels + 2**16)}
    container_format = container_format or container_of(path)
    allowed = {"protocol_whitelist": "file", "format_whitelist": container_format}
    with at_stage(path, "open"):
        container = av.open(f"file:{path}", options={**allowed, **limits}, metadata_errors="replace")
        try:
            stream = _main_stream(path, container, container_format, max_pixels)
        except Exception:
            container.close()
            raise
        stream.codec_context.thread_count = 1
        stream.codec_context.options = limits  # `av.open` applies its own while it looks into the file, not to decoding
        return container, stream


def _main_stream(path: str, container, container_format: str, max_pixels: int):
    """The video stream that players show (FFmpeg's av_find_best_stream), if its frames are within the limit.

    One marked as default comes before others, then one of several frames, of a higher bit rate, the first. That rule
    may take a cover picture: here none is a video.
    """
    shown = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not shown:
        raise VideoError(path, "open", "no video stream")
    best = container.streams.best("video")
    main = best if best in shown else shown[0]
    if len(shown) > 1:
        kind = f"{container_format} files with {len(shown)} video streams"
        log_once(f"{kind}: stream {main.index} is read where players take it for the main one", f", as in {path}")
    codec = main.codec_context
    if codec is None:
        raise VideoError(path, "open", "no decoder for its video")
    if codec.width * codec.height > max_pixels:
        size = f"{codec.width}x{codec.height}"
        raise VideoError(path, "open", f"{size} pixels per frame, more than the limit of {max_pixels}")
    return main
