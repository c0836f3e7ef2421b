"""Captions of a split as numbers of tokens, in the shards that `data/features.py` reads beside those of features.

As facebookresearch/fairseq (examples/MMPT, scripts/text_token_extractor/pretokenization.py) makes them.
"""

import io
import json
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videorl import atomic
from videorl.data import columns
from videorl.data.captions import CaptionFiles, CaptionIndex, Captions
from videorl.data.deduplicate import Caption, deduplicate, deduplicate_characters
from videorl.data.features import KINDS, Texts, checked_meta
from videorl.data.pickles import load_plain
from videorl.data.shards import read_meta, starts_of
from videorl.registry import UserError
from videorl.video.errors import VideoError

log = logging.getLogger("videorl")

AT_ONCE = 4096  # texts
DEDUPLICATE: dict[str, Callable] = {
    "none": lambda captions, rng: captions,
    "words": lambda captions, rng: deduplicate(captions),
    "characters": deduplicate_characters,
}

Progress = Callable[[Iterable, int], Iterable]


@dataclass(frozen=True)
class Cut:
    """What becomes of a caption: its first `characters`, of these the first `tokens`, after what `repeated` says of
    captions that repeat the one before (see `data/deduplicate.py`)."""

    characters: int = 96
    tokens: int = 32
    repeated: str = "none"


class Sentences:
    """Captions by video of one file: json, {video: {start: [...], end: [...], text: [...]}}, or a pickle of such texts.

    The first is sentencified HowTo100M (Han et al., CVPR 2022), the second what MMPT makes of it.
    """

    def __init__(self, file: Path):
        self.file = file
        try:
            found = load_plain(file) if file.suffix == ".pkl" else json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; name the file of the captions") from None
        except ValueError as error:
            raise UserError(f"{file} is no json ({str(error)[:80]})") from None
        if not isinstance(found, dict):
            raise UserError(f"{file}: expected {{video: {{start, end, text}}}}, found a {type(found).__name__}")
        self.entries: Mapping[str, object] = found

    def of(self, name: str) -> Captions:
        """Raises `VideoError`: not in the file, lists of different length, a time or text that is none."""
        if name not in self.entries:
            raise VideoError(name, "index", f"not in {self.file.name}")
        try:
            entry = self.entries[name]
            entry = json.loads(entry) if isinstance(entry, str) else entry
            starts, ends = (np.array(entry[key], np.float64).reshape(-1) for key in ("start", "end"))
            texts = list(entry["text"])
        except (TypeError, KeyError, ValueError) as error:
            raise VideoError(name, "index", f"expected start, end and text ({type(error).__name__} {error})") from None
        if not len(starts) == len(ends) == len(texts):
            raise VideoError(name, "index", f"{len(starts)} starts, {len(ends)} ends and {len(texts)} texts")
        if not (np.isfinite(starts).all() and np.isfinite(ends).all() and all(isinstance(t, str) for t in texts)):
            raise VideoError(name, "index", "a time that is no number, or a text that is none")
        return Captions(starts, ends, texts)


def source_of(path: Path):
    """What gives the captions of a video by its name: a folder of csv files, their index, json or pickle."""
    if path.is_dir():
        return CaptionFiles(str(path), "captions")
    if columns.head_of(path).exists():
        return CaptionIndex(path)
    return Sentences(path)


def write_split(root: str, split: str, source, prefix: str, texts: Texts, cut: Cut, progress: Progress) -> str:
    """Writes `PREFIXSPLIT_K.caps_ids` and `.startends` for each shard of the features in `root`; what there is to tell.

    Videos without captions have none in them, and are counted and the first is named. Raises `UserError` where that is
    so of all.
    """
    meta = read_meta(checked_meta(root, split))
    lost: list[VideoError] = []
    captions = sum(
        _write_shard(f"{prefix}{split}_{k}", meta[k], source, texts, cut, lost)
        for k in progress(sorted(meta), len(meta))
    )
    videos = sum(map(len, meta.values()))
    if len(lost) == videos:
        raise UserError(f"none of {videos} videos has captions; first: {lost[0].path}: {lost[0].reason}")
    if lost:
        log.warning("%d of %d videos have no captions; first: %s: %s", len(lost), videos, lost[0].path, lost[0].reason)
    return f"{prefix}{split}: {captions} captions of {videos - len(lost)} videos in {len(meta)} shards"


def _write_shard(prefix: str, names: Sequence[str], source, texts: Texts, cut: Cut, lost: list[VideoError]) -> int:
    """The number of captions; what goes wrong with a video is added to `lost`."""
    found = [_captions(source, name, cut, lost) for name in names]
    counts = [len(own) for own in found]
    said = [caption.text[: cut.characters] for own in found for caption in own]
    rows = np.full((len(said), cut.tokens), -1, np.int32)
    for first in range(0, len(said), AT_ONCE):
        for row, numbers in zip(rows[first:], texts.bare(said[first : first + AT_ONCE])):
            row[: len(numbers)] = numbers
    times = np.array([caption[:2] for own in found for caption in own], np.float32).reshape(-1, 2)
    for kind, data in (("tokens", rows), ("times", times)):
        _save(f"{prefix}{KINDS[kind]}_data.npy", data)
        _save(f"{prefix}{KINDS[kind]}_starts.npy", starts_of(counts))
    return len(said)


def _captions(source, name: str, cut: Cut, lost: list[VideoError]) -> list[Caption]:
    try:
        found = source.of(name)
        if not found.texts:
            raise VideoError(name, "index", "no captions")
    except VideoError as error:
        lost.append(error)
        return []
    rows = [Caption(*row) for row in zip(found.starts.tolist(), found.ends.tolist(), found.texts)]
    return DEDUPLICATE[cut.repeated](rows, random.Random(name))


def _save(file: str, data: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, data)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    atomic.write(Path(file), content.getvalue())
