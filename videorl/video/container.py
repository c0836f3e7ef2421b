"""What may be opened: files that begin like a video, and the one stream of theirs that is read."""

import os
import stat

import av
from av.stream import Disposition

from videorl.video.errors import VideoError, at_stage


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
