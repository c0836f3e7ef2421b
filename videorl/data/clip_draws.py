"""Which captions and which seconds of a narrated video make a training clip, as VideoCLIP and Norton draw them.

Samplers of facebookresearch/fairseq (examples/MMPT, mmpt/processors/how2processor.py). All draw from `rng`, which has
the calls of `random.Random`, in the published order. Captions have starts and ends in seconds and numbers of tokens.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from videorl.data.howto100m import draw, nearest_captions

LONGEST = 256.0  # seconds at which a run of captions no longer grows
NEAREST, WIDTH, SECONDS = 4, 5.0, 3.2  # of MIL-NCE: captions of a clip, seconds of their span at least, and of the clip


class Drawn(NamedTuple):
    """Captions [text_start, text_end) and seconds [video_start, video_end) of a clip. Clips are sorted by these."""

    text_start: int
    video_start: int
    text_end: int
    video_end: int


class Captions(NamedTuple):
    """Of a video: when each caption starts and ends, and how many tokens it has; and the seconds of the video."""

    starts: Sequence[float]
    ends: Sequence[float]
    tokens: Sequence[int]
    seconds: int


def grown_captions(captions: Captions, center: int, tokens: int, rng) -> tuple[int, int]:
    """A run [first, end) of captions around one, which grows to random sides until it has so many tokens."""
    first, last, total = center, center, captions.tokens[center]
    while total < tokens and (first > 0 or last < len(captions.tokens) - 1):
        if captions.ends[last] - captions.starts[first] >= LONGEST:
            break
        right = rng.random() > 0.5
        rng.random()  # the published code draws once more
        if first == 0 or (right and last < len(captions.tokens) - 1):
            last += 1
            total += captions.tokens[last]
        else:
            first -= 1
            total += captions.tokens[first]
    return first, last + 1


def grown_seconds(seconds: int, center: int, length: int, rng) -> tuple[int, int]:
    """A run [start, end) of so many of a video's seconds, around one, which grows to random sides."""
    start = end = center
    while end - start < length and (start > 0 or end < seconds):
        right = rng.random() > 0.5 if start > 0 and end < seconds else start == 0
        start, end = (start, end + 1) if right else (start - 1, end)
    return start, end


def spanned(captions: Captions, first: int, end: int) -> tuple[int, int]:
    """The whole seconds [start, end) of the video in which captions [first, end) are spoken."""
    stop = min(math.ceil(captions.ends[end - 1]), captions.seconds)
    return max(min(math.floor(captions.starts[first]), stop), 0), stop


def same_span(captions: Captions, tokens: int, rng, center: int | None = None) -> Drawn:
    """A run of captions around a random one, and the seconds in which they are spoken: FixedLen and VariedLen."""
    center = rng.randint(0, len(captions.tokens) - 1) if center is None else center
    first, end = grown_captions(captions, center, tokens, rng)
    start, stop = spanned(captions, first, end)
    return Drawn(first, start, end, stop)


def varied(captions: Captions, tokens: tuple[int, int], rng) -> Drawn:
    """`same_span` of a random number of tokens, both bounds included. The caption is drawn before that."""
    center = rng.randint(0, len(captions.tokens) - 1)
    return same_span(captions, rng.randint(*tokens), rng, center)


def overlapped(captions: Captions, tokens: tuple[int, int], seconds: tuple[int, int], rng) -> Drawn:
    """A run of captions as `varied`, and a run of seconds around a random one of those in which they are spoken."""
    center = rng.randint(0, len(captions.tokens) - 1)
    first, end = grown_captions(captions, center, rng.randint(*tokens), rng)
    middle = rng.randint(math.floor(captions.starts[first]), math.ceil(captions.ends[end - 1]))
    middle = max(min(middle, captions.seconds - 1), 0)
    start, stop = grown_seconds(captions.seconds, middle, rng.randint(*seconds), rng)
    return Drawn(first, start, end, stop)


def from_start(captions: Captions, tokens: int, rng) -> Drawn:
    """The captions that the video begins with, and their seconds from its start: StartClip."""
    drawn = same_span(captions, tokens, rng, 0)
    return drawn._replace(video_start=0)


def nearest(captions: Captions, rng) -> tuple[list[int], tuple[int, int]]:
    """NEAREST candidate captions and whole seconds [start, end) near a random one: How2MILNCE."""
    found = draw(rng, captions.starts, captions.ends, min_time=WIDTH, seconds=SECONDS, center=True, flip=False)
    near = nearest_captions(captions.starts, captions.ends, found.caption, NEAREST)
    start = min(found.start, captions.seconds - 1)
    return near.tolist(), (start, min(start + int(SECONDS), captions.seconds))


def in_order(sample: Callable[[], Drawn], clips: int) -> list[Drawn]:
    """So many clips of a video, sorted by their captions and seconds."""
    return sorted(sample() for _ in range(clips))
