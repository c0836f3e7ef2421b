"""Captions that say again what the one before has said, as those of automatic subtitles that roll up.

By characters as in facebookresearch/fairseq (examples/MMPT, mmpt/processors/dedupprocessor.py), and by words.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Caption(NamedTuple):
    start: float
    end: float
    text: str


def deduplicate(captions: Sequence[Caption]) -> list[Caption]:
    """Captions of which none begins with words that the one before ends with.

    A caption that is the end of the one before, or has it as its beginning, makes one with it. Of another, the words
    that repeat the end of the one before (as many as there are) are left out, and it starts when that has ended.
    """
    found: list[Caption] = []
    for caption in captions:
        words = caption.text.split()
        before = found[-1].text.split() if found else []
        if not words:
            continue
        if found and before[-len(words) :] == words:
            found[-1] = found[-1]._replace(end=max(found[-1].end, caption.end))
        elif found and words[: len(before)] == before:
            found[-1] = _together(found[-1], caption, " ".join(words))
        else:
            shared = next(
                k for k in range(min(len(words), len(before)), -1, -1) if before[len(before) - k :] == words[:k]
            )
            found.append(_after(found[-1], caption, " ".join(words[shared:])) if shared else caption)
    return found


def deduplicate_characters(captions: Sequence[Caption], rng) -> list[Caption]:
    """The same by characters, as published, which cuts words: the shortest repetition counts ("to" of "tomato").

    It is left out of either caption at random, by `rng.random()`.
    """
    found: list[Caption] = []
    for caption in captions:
        text = caption.text.replace("\n", " ").strip()
        caption = caption._replace(text=text)
        before = found[-1].text if found else ""
        if not text:
            continue
        if found and before.endswith(text):
            found[-1] = found[-1]._replace(end=max(found[-1].end, caption.end))
        elif found and text.startswith(before):
            found[-1] = _together(found[-1], caption, text)
        else:
            shared = next((k for k in range(1, len(text) + 1) if before.endswith(text[:k])), 0)
            found += _parted(found, caption, shared, rng) if shared else [caption]
    return found


def _together(before: Caption, caption: Caption, text: str) -> Caption:
    return Caption(before.start, max(before.end, caption.end), text)


def _after(before: Caption, caption: Caption, text: str) -> Caption:
    start = max(before.end, caption.start)
    return Caption(start, max(caption.end, start), text)


def _parted(found: list[Caption], caption: Caption, shared: int, rng) -> list[Caption]:
    """What to add to `found`, the last of which, or `caption`, loses the characters that they share."""
    if rng.random() > 0.5:
        rest = caption.text[shared:].strip()
        return [_after(found[-1], caption, rest)] if rest else []
    before = found.pop()
    rest = before.text[:-shared].strip()
    kept = [Caption(before.start, min(before.end, caption.start), rest)] if rest else []
    return [*kept, caption]
