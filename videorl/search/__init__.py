"""Text-to-video search: the windows of all videos of a folder are embedded once, and ranked for every query."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from videorl.data.text import WordTokenizer, split_words
from videorl.registry import UserError
from videorl.search.cache import Video
from videorl.video.folder import File


@dataclass(frozen=True)
class Hit:
    """A window that was found: path below the folder, seconds, and the dot product with the query."""

    path: str
    start: float
    end: float
    score: float

    @property
    def time(self) -> str:
        """`0:03.2 - 0:06.4`"""
        return f"{clock(self.start)} - {clock(self.end)}"


def words_of(query: str, tokenizer: Callable[[Sequence[str]], torch.Tensor]) -> tuple[torch.Tensor, list[str]]:
    """Numbers of the words or tokens of a query [L], and a line for each reason why words of it do not count.

    A word that the dictionary of a `WordTokenizer` lacks is looked up in lower case, in which the released one is.
    Raises `UserError` if no word counts.
    """
    if not isinstance(tokenizer, WordTokenizer):
        return tokenizer([query])[0], []
    known, words = tokenizer.numbers, split_words(query)
    found = [word if word in known else word.lower() for word in words]
    unknown = [word for word, lower in zip(words, found) if lower not in known]
    if len(unknown) == len(words):
        raise UserError(f"no word of the query {query!r} is in the dictionary (TEXT.DICT); use other words")
    notes = [f"not in the dictionary: {', '.join(unknown)}"] if unknown else []
    if len(words) - len(unknown) > tokenizer.max_words:
        notes.append(f"only its first {tokenizer.max_words} words count (TEXT.MAX_WORDS)")
    return tokenizer([" ".join(found)])[0], notes


def ranked(
    text: np.ndarray, videos: Mapping[File, Video], *, seconds: float, top: int, per_video: int = 1
) -> list[Hit]:
    """The `top` windows of `seconds` by dot product with `text` [D], at most `per_video` of each video, best first.

    Raises `UserError` if an embedding is not finite.
    """
    hits = []
    for file, video in videos.items():
        scores = video.embeds @ text  # [W]
        if not np.isfinite(scores).all():
            raise UserError(f"{file.path}: its score is {scores.sum()}; expected a number: is the checkpoint whole?")
        for w in np.argsort(-scores, kind="stable")[:per_video]:
            start = float(video.starts[w])
            hits.append(Hit(file.path, start, min(start + seconds, video.length), float(scores[w])))
    return sorted(hits, key=lambda hit: (-hit.score, hit.path, hit.start))[:top]


def clock(seconds: float) -> str:
    """`0:03.2`, `1:02:03.4`"""
    minutes, tenths = divmod(round(10 * seconds), 600)
    hours, minutes = divmod(minutes, 60)
    rest = f"{tenths // 10:02d}.{tenths % 10}"
    return f"{hours}:{minutes:02d}:{rest}" if hours else f"{minutes}:{rest}"
