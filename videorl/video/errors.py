"""What is said of videos that cannot be read, or not as asked: in one printable line."""

import errno
import logging
from contextlib import contextmanager
from pathlib import Path

from videorl.registry import printable

_log = logging.getLogger(__name__)
_logged: set[str] = set()


class VideoError(Exception):
    """A video that cannot be read: its path, the stage that failed and the reason. Pickles; its text is one line.

    Stages: "open" (no video that may be read), "index" (no list of frames), "decode" (a frame that was asked for).
    """

    def __init__(self, path: str | Path, stage: str, reason: str):
        super().__init__(str(path), stage, reason)
        self.path, self.stage, self.reason = str(path), stage, reason

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.stage}: {self.reason}")


def another_size(path: str, frame: int, first: int) -> VideoError:
    return VideoError(path, "decode", f"frame {frame} has another size than frame {first}")


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


# FFmpeg's codes of the matrices of which it makes no RGB.
WITHOUT_RGB = {
    **{8: "YCgCo", 10: "BT.2020 with constant luminance", 11: "YDzDx"},
    **{12: "derived from primaries", 13: "derived from primaries, constant luminance", 14: "ICtCp"},
}


def check_colours(frame) -> None:
    """Raises an error that names the colours of a frame of which no RGB is made."""
    if name := WITHOUT_RGB.get(frame.colorspace):
        why = f"FFmpeg makes no RGB of its colours ({name}); convert them to BT.709"
        raise OSError(errno.EOPNOTSUPP, why)


def log_once(line: str, example: str = "") -> None:
    """A warning, unless this process gave it before, with another `example` perhaps."""
    if line not in _logged:
        _logged.add(line)
        _log.warning("%s", line + example)
