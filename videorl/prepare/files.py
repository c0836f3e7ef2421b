"""What there is to know about video files, from one look at each in worker processes.

So a decoder that crashes or hangs costs its file only.
"""

import hashlib
import math
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from videorl.clip import sampling
from videorl.loading.pool import Pool, Workers
from videorl.loading.worker import Each, Fetch, Job, Loaded
from videorl.spec import Reading
from videorl.video.backends import check_backend
from videorl.video.errors import VideoError
from videorl.video.reader import Video, open_video

EDGE = 64 * 1024  # bytes at both ends of a file whose hash tells which files may be equal


@dataclass(frozen=True)
class Look:
    """What is read of a file: `decode` "all" frames, the first, middle and last ("ends"), the list of frames only
    ("none"), or no more than the hashes ("bytes"); `sha256`: the hash of the whole file."""

    decode: str = "ends"
    sha256: bool = False
    reading: Reading = field(default_factory=Reading)


@dataclass
class Facts:
    """What a look at a file found; zeros and empty text where it did not get so far. `size` is in bytes, `gap` the
    longest time between two frames in units of the mean, `uneven` whether dense clips go by time, `keys` the number of
    frames that decoding can start at. Where reading failed, `stage` and `reason` say how."""

    size: int = -1
    ends: str = ""
    sha256: str = ""
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    keys: int = 0
    gap: float = 0.0
    uneven: bool = False
    lost: str = ""
    blank: bool = False
    stage: str = ""
    reason: str = ""

    @property
    def seconds(self) -> float:
        return self.frames / self.fps if self.fps else 0.0


def examine(path: str, look: Look) -> Facts:
    """Facts about one file; a file that cannot be read is a fact, not an error."""
    facts = Facts()
    try:
        _hash(path, look, facts)
        if look.decode != "bytes":
            with open_video(path, look.reading.backend, max_pixels=look.reading.max_pixels) as video:
                _list_frames(video, facts)
                _decode(video, look, facts)
    except VideoError as error:
        facts.stage, facts.reason = error.stage, error.reason
    except OSError as error:
        facts.stage, facts.reason = "open", error.strerror or str(error)
    return facts


def _hash(path: str, look: Look, facts: Facts) -> None:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
        raise VideoError(path, "open", "not a regular file")
    facts.size = status.st_size
    whole, ends = hashlib.sha256(), hashlib.sha256()
    with open(path, "rb") as file:
        ends.update(file.read(EDGE))
        file.seek(max(facts.size - EDGE, 0))
        ends.update(file.read(EDGE))
        file.seek(0)
        while look.sha256 and (chunk := file.read(1 << 20)):
            whole.update(chunk)
    facts.ends, facts.sha256 = ends.hexdigest(), whole.hexdigest() if look.sha256 else ""


def _list_frames(video: Video, facts: Facts) -> None:
    facts.frames, facts.fps = video.num_frames, video.fps
    facts.keys, facts.lost = video.num_keys, video.lost
    if not (math.isfinite(video.fps) and video.fps > 0):
        raise VideoError(video.path, "index", f"frame rate {video.fps}")
    if video.num_frames > 1:
        facts.gap = float(np.diff(video.times).max() * video.fps)
        facts.uneven = sampling.is_uneven(video.times)


def _decode(video: Video, look: Look, facts: Facts) -> None:
    if look.decode == "none":
        return
    last = video.num_frames - 1
    wanted = range(last + 1) if look.decode == "all" else sorted({0, last // 2, last})
    facts.blank = True
    for _, frames in video.parts(wanted):
        pixels = frames.flatten(1)
        facts.blank = facts.blank and bool((pixels.amin(1) == pixels.amax(1)).all())
    facts.height, facts.width = video.size


# ----------------------------------------------------------------------------------------------------------- many files


class Files(Each):
    """What the workers run: item i is the facts about file i."""

    def __init__(self, paths: Sequence[str], look: Look):
        super().__init__(paths, partial(examine, look=look))
        if look.decode != "bytes":
            check_backend(look.reading.backend)  # imports the decoder now: its seconds would count as those of a file

    def __reduce__(self):
        return Files, (self.paths, self.look.keywords["look"])


Progress = Callable[[Iterable, int], Iterable]


def silent(items: Iterable, total: int) -> Iterable:
    """No progress shown."""
    return items


def scan(paths: Sequence[str], look: Look, workers: Workers, progress: Progress = silent) -> list[Facts]:
    """Facts about each file, in order. `progress(items, total)` gives the items on, one for each file."""
    if not paths:
        return []
    pool = Pool(Fetch(Files(paths, look), None), replace(workers, count=min(workers.count, len(paths))))
    try:
        loaded = pool.run([Job(0, i, [i]) for i in range(len(paths))])
        found = [_facts(result, workers.timeout) for result in progress(loaded, len(paths))]
    finally:
        pool.close()
    lost = [i for i, facts in enumerate(found) if facts.stage in ("crash", "hang")]
    if look.decode != "bytes":  # what makes a decoder crash can still be hashed
        hashes = scan([paths[i] for i in lost], replace(look, decode="bytes"), workers)
        for i, facts in zip(lost, hashes, strict=True):
            found[i] = replace(facts, stage=found[i].stage, reason=found[i].reason)
    return found


def _facts(loaded: Loaded, timeout: float) -> Facts:
    if loaded.batch is not None:
        return loaded.batch["found"][0]
    stage = loaded.bad[0].stage
    hung = f"no result after {timeout:g} s: it hangs, or is long (--timeout)"
    return Facts(stage=stage, reason=hung if stage == "hang" else "the decoder takes its process down")


def find_equal(files: dict[str, Facts], workers: Workers) -> None:
    """Sets `sha256` of the files that may be equal to another one: same size, same first and last 64 kB."""
    groups = defaultdict(list)
    for path, facts in files.items():
        if facts.size > 0 and not facts.stage and not facts.sha256:
            groups[facts.size, facts.ends].append(path)
    candidates = [path for group in groups.values() if len(group) > 1 for path in group]
    for path, facts in zip(candidates, scan(candidates, Look("bytes", sha256=True), workers), strict=True):
        files[path].sha256 = facts.sha256
