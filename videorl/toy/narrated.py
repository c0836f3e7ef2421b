"""Narrated videos in the toy world, and what to evaluate on: HowTo100M, YouCook2, MSR-VTT and HMDB-51 in small.

A narrated video shows shapes one after the other, each with a colour and a motion of its own. A narrator says of each
what it does, in words of his choice and up to LAG seconds too early or too late, and other things in between. So the
caption spoken at a moment often does not fit what is seen, but among the few nearest one mostly does. The other sets
are exactly described: in YouCook2 and MSR-VTT each pair of colour and motion is there once, so a sentence names its
clip, and a guess finds one in 64.
"""

import csv
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from videorl.toy import scenes
from videorl.toy.scenes import COLOURS, LABEL_SPACES, SHAPES, Event, Scene

VERSION = 1  # raise it, or scenes.VERSION, whenever the same seed gives other files
SETS = ("howto100m", "youcook2", "msrvtt", "hmdb51")
MOTIONS = LABEL_SPACES["speed_direction"]  # the easiest to learn: four directions, slow and fast
PAIRS = [(colour, motion) for colour in COLOURS for motion in MOTIONS]
VIDEOS = 512  # narrated, to train on
CLIPS_PER_CLASS = 48  # of HMDB-51
FRAME_SIZES = ((32, 32), (40, 32), (32, 40))  # width, height
FPS = 10
FPS_HMDB = 5  # its windows are frames in a row at the video's own rate: here the 5 a second of the other sets' clips
EVENTS = (5, 8)  # of a narrated video
SECONDS = (3, 5)  # of an event
LAG = 2.5  # seconds
SPOKEN = (1.5, 3.0)  # seconds that a caption takes
ASIDES = 0.7  # of them to one event, on average
TAIL = 2.5  # seconds at the end of a video in which no caption has its middle: MIN_TIME 5 widens none beyond the end

COLOUR_WORDS = {
    "red": ("red", "scarlet"),
    "orange": ("orange", "amber"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue", "azure"),
    "magenta": ("magenta", "pink"),
    "white": ("white", "pale"),
}
SHAPE_WORDS = {
    "disc": ("disc", "circle"),
    "ring": ("ring", "hoop"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "star": ("star",),
    "cross": ("cross", "plus"),
}
DIRECTION_WORDS = {
    "left": ("left", "leftwards"),
    "right": ("right", "rightwards"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}
CLASSES = list(DIRECTION_WORDS)  # of HMDB-51: where things go, slow or fast
PACE_WORDS = {"slow": ("slowly", "calmly"), "fast": ("quickly", "swiftly")}
VERBS = ("goes", "moves", "slides", "drifts")
OPENINGS = ("the", "this", "now the", "here the", "see the", "and the")
OFF_TOPIC = (
    "hello and welcome back everybody",
    "today I want to show you something",
    "please subscribe to my channel",
    "I learned this from my grandmother",
    "let me know what you think",
    "okay so we go on",
    "it is really not that hard",
    "do not worry about it",
    "this is my favourite part",
    "take your time with it",
    "thanks for watching",
    "my dog is barking again",
)
SYNONYMS = (*COLOUR_WORDS.values(), *SHAPE_WORDS.values(), *DIRECTION_WORDS.values(), *PACE_WORDS.values())
WORD_DIM = 64
WORD_SCALE = 0.15  # deviation of the word vectors, about that of published word2vec
SYNONYM_NOISE = 0.5  # deviation among words that mean the same, as a part of WORD_SCALE


@dataclass(frozen=True)
class Shot:
    """A scene in which one thing happens, `motion` of MOTIONS, from 0 to `event.end` seconds."""

    scene: Scene
    motion: str
    event: Event

    @property
    def seconds(self) -> float:
        return self.event.end


@dataclass(frozen=True)
class Caption:
    """A text spoken from `start` to `end` seconds."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Video:
    """The shots of a video, one after the other, and what is said about it, by time."""

    shots: tuple[Shot, ...]
    captions: tuple[Caption, ...]


def sentence(rng: np.random.Generator, shot: Shot) -> str:
    """What a narrator may say of a shot: "now the golden ring slowly drifts upwards"."""
    pace, direction = shot.motion.split("_")
    doing = [any_of(rng, VERBS), any_of(rng, DIRECTION_WORDS[direction])]
    doing.insert(2 * rng.integers(2), any_of(rng, PACE_WORDS[pace]))
    what = [any_of(rng, COLOUR_WORDS[shot.scene.colour]), any_of(rng, SHAPE_WORDS[shot.scene.shape])]
    return " ".join([any_of(rng, OPENINGS), *what, *doing])


def any_of(rng: np.random.Generator, values: Sequence):
    """One of them, each with the same chance."""
    return values[rng.integers(len(values))]


def words() -> list[str]:
    """Every word that a caption can hold."""
    texts = (*OPENINGS, *OFF_TOPIC, *VERBS, *(word for group in SYNONYMS for word in group))
    return sorted({word for text in texts for word in text.split()})


def word_vectors(seed: int) -> np.ndarray:
    """float32 [words + 1, WORD_DIM]: padding, then each word of `words()`; those of synonyms are near each other."""
    rng, dictionary = np.random.default_rng([seed, len(SETS)]), words()
    vectors = rng.standard_normal((len(dictionary), WORD_DIM))
    for group in SYNONYMS:
        numbers = [dictionary.index(word) for word in group]
        vectors[numbers] = rng.standard_normal(WORD_DIM) + SYNONYM_NOISE * vectors[numbers]
    return np.concatenate([np.zeros((1, WORD_DIM)), WORD_SCALE * vectors]).astype(np.float32)


def video(seed: int, name: str, index: int) -> Video:
    """The video of that number of a set. Depends on the arguments only."""
    rng = np.random.default_rng([seed, SETS.index(name), index])
    size = any_of(rng, FRAME_SIZES)
    if name == "howto100m":
        return _narrated(rng, size)
    if name == "hmdb51":
        motion = f"{any_of(rng, list(PACE_WORDS))}_{class_of(index)}"
        return Video((shot_of(rng, size, any_of(rng, list(COLOURS)), motion, FPS_HMDB),), ())
    shots = tuple(shot_of(rng, size, *pair) for pair in _pairs(seed, name, index))
    spans = np.cumsum([0, *(shot.seconds for shot in shots)]).round(2).tolist()
    texts = [sentence(rng, shot) for shot in shots]
    return Video(shots, tuple(map(Caption, spans, spans[1:], texts)))


def class_of(index: int) -> str:
    """The class of a video of HMDB-51."""
    return CLASSES[index % len(CLASSES)]


def _pairs(seed: int, name: str, index: int) -> list[tuple[str, str]]:
    """Colours and motions of a test video: one pair in MSR-VTT, as many as there are motions in YouCook2."""
    order = np.random.default_rng([seed, SETS.index(name)]).permutation(len(PAIRS))
    count = {"msrvtt": 1, "youcook2": len(MOTIONS)}[name]
    return [PAIRS[k] for k in order[count * index : count * (index + 1)]]


def _narrated(rng: np.random.Generator, size: tuple[int, int]) -> Video:
    count = int(rng.integers(EVENTS[0], EVENTS[1] + 1))
    colours, motions = (rng.permutation(list(names))[:count].tolist() for names in (COLOURS, MOTIONS))
    shots = tuple(shot_of(rng, size, *pair) for pair in zip(colours, motions, strict=True))
    ends = np.cumsum([shot.seconds for shot in shots]).tolist()
    said = [(end - shot.seconds / 2 + rng.uniform(-LAG, LAG), sentence(rng, shot)) for end, shot in zip(ends, shots)]
    said += [(rng.uniform(0, ends[-1]), any_of(rng, OFF_TOPIC)) for _ in range(round(ASIDES * count))]
    return Video(shots, tuple(sorted((spoken(rng, ends[-1], *one) for one in said), key=lambda c: c.start)))


def spoken(rng: np.random.Generator, seconds: float, middle: float, text: str) -> Caption:
    """A caption around a moment of a video of that length, moved into the video where it would stand out."""
    half = rng.uniform(*SPOKEN) / 2
    middle = min(max(middle, half), seconds - TAIL)
    return Caption(round(middle - half, 2), round(middle + half, 2), text)


def shot_of(
    rng: np.random.Generator,
    size: tuple[int, int],
    colour: str,
    motion: str,
    fps: int = FPS,
    seconds: tuple[int, int] = SECONDS,
) -> Shot:
    """A shape of that colour with a motion of MOTIONS, for so many seconds at least and at most."""
    heading, pace = rng.uniform(0, 2 * math.pi), rng.uniform(0.03, 0.1)
    scene = Scene(
        width=size[0],
        height=size[1],
        fps=fps,
        shape=any_of(rng, SHAPES),
        colour=colour,
        start=tuple(rng.uniform(size=len(scenes.AXES))),
        drift=(pace * math.cos(heading), pace * math.sin(heading)),
        texture=int(rng.integers(2**32)),
    )
    frames = rng.integers(*np.multiply(seconds, FPS_HMDB), endpoint=True)  # whole numbers of frames at both rates
    shown = MOTIONS[motion]
    return Shot(scene, motion, Event(shown.motion, 0.0, float(frames) / FPS_HMDB, float(rng.uniform(*shown.speed))))


def render(shots: Sequence[Shot]) -> np.ndarray:
    """The frames of a video: uint8 [T, H, W, 3]."""
    parts = [scenes.render(shot.scene, [shot.event], round(shot.seconds * shot.scene.fps)) for shot in shots]
    return np.concatenate(parts)


def make_set(
    out: Path,
    *,
    seed: int = 0,
    videos: int = VIDEOS,
    workers: int = 1,
    progress: Callable[[Iterable, int], Iterable] = lambda steps, total: steps,
) -> str:
    """Writes narrated videos and the test sets to the folder `out`; returns one line that says what was done.

    Layout, as published: `videos/<set>/*`, `howto100m.csv` and `captions/*.csv`, `youcook2.csv`, `msrvtt.csv`,
    `hmdb51.csv`, `dict.npy` and `word2vec.pth`. `toy.json`, resuming, errors: see `scenes.make_set`.
    """
    counts = {"howto100m": videos, "youcook2": len(COLOURS), "msrvtt": len(PAIRS)}
    counts["hmdb51"] = CLIPS_PER_CLASS * len(CLASSES)
    settings = {"version": f"{scenes.VERSION}.{VERSION}", "kind": "narrated", "seed": seed, "counts": counts}
    write, write_lists = partial(_write_video, out, seed), partial(_write_lists, out, seed, counts)
    return scenes.fill(out, settings, write, write_lists, workers, progress)


def file_name(name: str, index: int) -> str:
    """Path of a video below the folder of its set."""
    folder = {"youcook2": f"validation/task_{index % 2}/", "hmdb51": f"{class_of(index)}/"}.get(name, "")
    return f"{folder}{name}_{index:05d}.mp4"


def _write_video(out: Path, seed: int, job: tuple[str, int]) -> None:
    name, index = job
    path = out / "videos" / name / file_name(name, index)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shots = video(seed, name, index).shots
        scenes.write_video(path, render(shots), shots[0].scene.fps)


def _write_lists(out: Path, seed: int, counts: dict[str, int]) -> None:
    import torch  # here, as toy sets are made without it

    files = {name: [file_name(name, i) for i in range(count)] for name, count in counts.items()}
    captions = {name: [video(seed, name, i).captions for i in range(counts[name])] for name in SETS}
    stems = {name: [Path(file).stem for file in files[name]] for name in SETS}
    (out / "captions").mkdir(exist_ok=True)
    for stem, said in zip(stems["howto100m"], captions["howto100m"], strict=True):
        write_csv(out / f"captions/{stem}.csv", "start,end,text", ((c.start, c.end, c.text) for c in said))
    write_csv(out / "howto100m.csv", "video_path", ((file,) for file in files["howto100m"]))
    write_csv(out / "youcook2.csv", "end,start,task,text,video_id", _cooking(files["youcook2"], captions["youcook2"]))
    told = ((stem, said[0].text) for stem, said in zip(stems["msrvtt"], captions["msrvtt"], strict=True))
    write_csv(out / "msrvtt.csv", "video_id,sentence", told)
    write_csv(out / "hmdb51.csv", "video_id,label,split1,split2,split3", map(_labelled, enumerate(files["hmdb51"])))
    np.save(out / "dict.npy", np.array(words()))
    torch.save(torch.from_numpy(word_vectors(seed)), out / "word2vec.pth")


def _cooking(files: Sequence[str], captions: Sequence[Sequence[Caption]]) -> Iterable[tuple]:
    for file, said in zip(files, captions, strict=True):
        yield from ((c.end, c.start, Path(file).parent.name, c.text, Path(file).stem) for c in said)


def _labelled(numbered: tuple[int, str]) -> tuple:
    """A row of HMDB-51: each third of a class tests one split, and the rest trains it."""
    index, file = numbered
    codes = (2 if index // len(CLASSES) % 3 == split else 1 for split in range(3))
    return os.path.basename(file), f"{class_of(index)}_test", *codes


def write_csv(path: Path, header: str, rows: Iterable[tuple]) -> None:
    """Rows below a header whose names stand between commas."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header.split(","))
        writer.writerows(rows)
