"""Long narrated videos in the toy world: what Norton is trained on and evaluated with, in small.

A video shows shapes one after the other, no two of them with the same colour and motion. Its narrator is early or late
by up to LAG seconds, the same all the time but for JITTER, leaves out some of what happens and talks of other things in
between. So what is said while a clip is shown mostly fits another clip, but what is said in all fits the whole video.
With the videos come features of each second, made up of what is shown, as a network might give them that has seen such
things: the sum of a vector for the colour, one for the motion and one for the shape, and noise.
"""

import json
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from videorl.toy import scenes
from videorl.toy.narrated import (
    FRAME_SIZES,
    MOTIONS,
    OFF_TOPIC,
    PAIRS,
    Caption,
    Shot,
    any_of,
    render,
    sentence,
    shot_of,
    spoken,
    words,
)
from videorl.toy.scenes import COLOURS, SHAPES

VERSION = 1  # raise it, or that of scenes, whenever the same seed gives other files
VIDEOS = {"train": 128, "val": 64}
EVENTS = (8, 12)  # of a video
SECONDS = (4, 8)  # of an event
TOLD = 0.7  # of the events
ASIDES = 0.6  # of them to one event
LAG = 10.0  # seconds
JITTER = 1.5
FEATURES = 32  # numbers of a feature
NOISE = 0.5  # length of it, where the three vectors have length 1
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # of a vocabulary of BERT


@dataclass(frozen=True)
class Told:
    """A caption, and the number of the shot that it is about; -1: of none."""

    caption: Caption
    shot: int


@dataclass(frozen=True)
class Video:
    """Shots one after the other, when each begins and the last ends (seconds), and what is said, by time."""

    shots: tuple[Shot, ...]
    times: tuple[float, ...]
    told: tuple[Told, ...]


def video(seed: int, split: str, index: int) -> Video:
    """The video of that number of a split. Depends on the arguments only."""
    rng = np.random.default_rng([seed, list(VIDEOS).index(split), index, 2])
    size, count = any_of(rng, FRAME_SIZES), int(rng.integers(EVENTS[0], EVENTS[1] + 1))
    pairs = [PAIRS[k] for k in rng.permutation(len(PAIRS))[:count]]
    shots = tuple(shot_of(rng, size, *pair, seconds=SECONDS) for pair in pairs)
    times = np.cumsum([0, *(shot.seconds for shot in shots)]).round(2).tolist()
    return Video(shots, tuple(times), tuple(_told(rng, shots, times)))


def _told(rng: np.random.Generator, shots: tuple[Shot, ...], times: list[float]) -> list[Told]:
    lag, length = rng.uniform(-LAG, LAG), times[-1]
    about = np.flatnonzero(rng.random(len(shots)) < TOLD).tolist()
    said = [
        ((times[k] + times[k + 1]) / 2 + lag + rng.uniform(-JITTER, JITTER), sentence(rng, shots[k]), k) for k in about
    ]
    said += [(rng.uniform(0, length), any_of(rng, OFF_TOPIC), -1) for _ in range(round(ASIDES * len(shots)))]
    found = [Told(spoken(rng, length, middle, text), shot) for middle, text, shot in said]
    return sorted(found, key=lambda told: told.caption.start)


def make_set(
    out: Path,
    *,
    seed: int = 0,
    videos: int = VIDEOS["train"],
    workers: int = 1,
    progress: Callable[[Iterable, int], Iterable] = lambda steps, total: steps,
) -> str:
    """Writes the videos and what is said in them to the folder `out`; returns one line that says what was done.

    Layout, as published: `videos/<split>/*.mp4`, `features/<split>_0_{data,starts}.npy` and `<split>_meta.pkl`,
    `captions.json` (sentencified HowTo100M), `vocab.txt` (BERT's), and of the videos val `htm_align.json`,
    `youcook2.json` and `srt/*.srt`. `toy.json`, resuming, errors: see
    `scenes.make_set`.
    """
    counts = {**VIDEOS, "train": videos}
    settings = {"version": f"{scenes.VERSION}.{VERSION}", "kind": "long", "seed": seed, "counts": counts}
    write, write_lists = partial(_write_video, out, seed), partial(_write_lists, out, seed, counts)
    return scenes.fill(out, settings, write, write_lists, workers, progress)


def name_of(split: str, index: int) -> str:
    return f"{split}_{index:05d}"


def _write_video(out: Path, seed: int, job: tuple[str, int]) -> None:
    path = out / "videos" / job[0] / f"{name_of(*job)}.mp4"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shots = video(seed, *job).shots
        scenes.write_video(path, render(shots), shots[0].scene.fps)


def _write_lists(out: Path, seed: int, counts: dict[str, int]) -> None:
    videos = {name_of(split, k): video(seed, split, k) for split, count in counts.items() for k in range(count)}
    _write_json(out / "captions.json", {name: _columns(own) for name, own in videos.items()})
    val = {name: own for name, own in videos.items() if name.startswith("val")}
    aligned = {name: [_aligned(own, told) for told in own.told] for name, own in val.items()}
    _write_json(out / "htm_align.json", aligned)
    _write_json(out / "youcook2.json", {"database": {name: _recipe(own) for name, own in val.items()}})
    (out / "vocab.txt").write_text("\n".join([*MARKS, *words()]) + "\n")
    _write_features(out / "features", seed, videos)
    (out / "srt").mkdir(exist_ok=True)
    for name, own in val.items():
        (out / f"srt/{name}.srt").write_text(
            "\n".join(_subtitle(k, told.caption) for k, told in enumerate(own.told, 1))
        )


def _write_features(folder: Path, seed: int, videos: dict[str, Video]) -> None:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng([seed, len(VIDEOS)])
    vectors = {fact: _unit(rng) for fact in (*COLOURS, *MOTIONS, *SHAPES)}
    for split in VIDEOS:
        names = [name for name in videos if name.startswith(split)]
        rows = [_features(rng, vectors, videos[name]) for name in names]
        np.save(folder / f"{split}_0_data.npy", np.concatenate(rows).astype(np.float16))
        np.save(folder / f"{split}_0_starts.npy", np.cumsum([0, *map(len, rows)]))
        (folder / f"{split}_meta.pkl").write_bytes(pickle.dumps({0: names}, protocol=4))


def _features(rng: np.random.Generator, vectors: dict[str, np.ndarray], own: Video) -> np.ndarray:
    """[seconds, FEATURES] of length 1; a second is of the shot that has its middle."""
    middles = np.arange(np.ceil(own.times[-1])) + 0.5
    numbers = np.minimum(np.searchsorted(own.times, middles, "right") - 1, len(own.shots) - 1)
    rows = []
    for shot in (own.shots[k] for k in numbers):
        facts = (shot.scene.colour, shot.motion, shot.scene.shape)
        rows.append(sum(vectors[fact] for fact in facts) + NOISE * 3**0.5 * _unit(rng))
    return np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)


def _unit(rng: np.random.Generator) -> np.ndarray:
    found = rng.standard_normal(FEATURES)
    return found / np.linalg.norm(found)


def _columns(own: Video) -> dict[str, list]:
    return {key: [getattr(told.caption, key) for told in own.told] for key in ("start", "end", "text")}


def _aligned(own: Video, told: Told) -> list:
    """A row of HTM-Align: whether it is shown, when it is shown or else spoken, and the sentence."""
    shown = own.times[told.shot : told.shot + 2] if told.shot >= 0 else (told.caption.start, told.caption.end)
    return [int(told.shot >= 0), *shown, told.caption.text]


def _recipe(own: Video) -> dict:
    """An entry of YouCook2: what is told of, in order of time."""
    steps = sorted((told for told in own.told if told.shot >= 0), key=lambda told: told.shot)
    rows = [
        {"id": k, "segment": list(own.times[told.shot : told.shot + 2]), "sentence": told.caption.text}
        for k, told in enumerate(steps)
    ]
    return {"subset": "validation", "duration": own.times[-1], "annotations": rows}


def _subtitle(number: int, caption: Caption) -> str:
    times = (f"00:{int(t // 60):02d}:{t % 60:06.3f}".replace(".", ",") for t in (caption.start, caption.end))
    return f"{number}\n{' --> '.join(times)}\n{caption.text}\n"


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content) + "\n")
