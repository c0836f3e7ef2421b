"""First-person videos in the toy world, with narrations: Ego4D, EgoMCQ and EPIC-Kitchens in small.

A long video shows one thing after the other: the arm of C, who wears the camera, reaches in from one side and moves
something of some colour to the other. People narrate each in words of their choice. A rephraser says the same in
other words, and a narrator, a model that sees, is wrong about every fourth text: in colour, shape or direction. The
videos of Ego4D are kept in chunks, those of EPIC-Kitchens in one file each.
"""

import json
import math
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from videorl.toy import scenes
from videorl.toy.narrated import COLOUR_WORDS, DIRECTION_WORDS, SHAPE_WORDS, write_csv
from videorl.toy.scenes import COLOURS, SHAPES, Event, Scene

VERSION = 3  # raise it, or scenes.VERSION, whenever the same seed gives other files
SETS = ("ego4d", "ego4d_val", "epic")
VIDEOS = {"ego4d": 256, "ego4d_val": 24, "epic": 24}
FIRST_TEST = 8  # of EPIC's videos: those before are trained on
SHOTS = 12  # of a video
FPS = 10
CHUNK_SECONDS = 15
SECONDS = (1.6, 2.6)  # of a shot
TRAVEL = (0.45, 0.65)  # of a shape in a shot, in short sides of the picture, across its middle
OFF_MIDDLE = 0.15  # at most, of the middle of that way from the picture's
SIZES, TILT = (0.2, 0.6), 0.05  # of a shape, in phases
ARM, REACH = 0.25, 0.2  # width of the arm, and how far behind the middle of the shape it ends, in short sides
SKIN = (205, 150, 125)
MARGIN = 0.2  # seconds at both ends of a shot that its narration leaves out
FRAME_SIZES = ((40, 32), (32, 32))  # width, height
VERBS = ("moves", "slides", "pushes", "drags")
PART = 5  # of the narrated rows, one in so many has the narration of a person in `ego4d_train.part.pkl`
REPHRASED, RETURNED = 3, 10  # texts of a row by rephraser and narrator
RIGHT = 0.75  # of the narrator's texts
QUESTIONS = 240  # of EgoMCQ, half of them with choices of several videos, half with those of one
CHOICES = 5


@dataclass(frozen=True)
class Shot:
    """A scene in which its shape goes to one side, from 0 to `event.end` seconds."""

    scene: Scene
    event: Event

    @property
    def facts(self) -> tuple[str, str, str]:
        """Direction, colour and shape."""
        return self.event.motion, self.scene.colour, self.scene.shape


@dataclass(frozen=True)
class Row:
    """A narrated moment: number of its video and of its shot there, seconds, direction, colour and shape."""

    video: int
    shot: int
    start: float
    end: float
    facts: tuple[str, str, str]


def video(seed: int, name: str, index: int) -> tuple[Shot, ...]:
    """The shots of the video of that number. Depends on the arguments only."""
    rng = np.random.default_rng([seed, SETS.index(name), index, 1])
    size = FRAME_SIZES[rng.integers(len(FRAME_SIZES))]
    return tuple(_shot(rng, size) for _ in range(SHOTS))


def _shot(rng: np.random.Generator, size: tuple[int, int]) -> Shot:
    heading, pace = rng.uniform(0, 2 * math.pi), rng.uniform(0.03, 0.1)
    direction, travel = _any(rng, list(DIRECTION_WORDS)), rng.uniform(*TRAVEL)
    axis, sign = scenes.MOTIONS[direction]
    start = dict(zip(("x", "y"), (0.5 + rng.uniform(-OFF_MIDDLE, OFF_MIDDLE, 2)).tolist()))
    start[axis] -= sign * travel / 2
    start |= {"size": rng.uniform(*SIZES), "angle": rng.uniform(-TILT, TILT)}
    scene = Scene(
        width=size[0],
        height=size[1],
        fps=FPS,
        shape=_any(rng, SHAPES),
        colour=_any(rng, list(COLOURS)),
        start=tuple(start.values()),
        drift=(pace * math.cos(heading), pace * math.sin(heading)),
        texture=int(rng.integers(2**32)),
    )
    seconds = float(rng.integers(*np.rint(np.multiply(SECONDS, FPS)), endpoint=True)) / FPS
    return Shot(scene, Event(direction, 0.0, seconds, float(travel / seconds)))


def _any(rng: np.random.Generator, values: Sequence):
    return values[rng.integers(len(values))]


def rows(seed: int, name: str, count: int) -> list[Row]:
    """What happens in the first `count` videos of a set, by video and time."""
    found = []
    for index in range(count):
        at = 0.0
        for number, shot in enumerate(video(seed, name, index)):
            start, at = at, round(at + shot.event.end, 3)
            found.append(Row(index, number, round(start + MARGIN, 3), round(at - MARGIN, 3), shot.facts))
    return found


def narration(rng: np.random.Generator, facts: tuple[str, str, str]) -> str:
    """What a person may say of it: "#C C slides the golden hoop upwards"."""
    direction, colour, shape = facts
    words = (VERBS, ("the",), COLOUR_WORDS[colour], SHAPE_WORDS[shape], DIRECTION_WORDS[direction])
    return " ".join(["#C C", *(_any(rng, texts) for texts in words)])


def mistaken(rng: np.random.Generator, facts: tuple[str, str, str]) -> tuple[str, str, str]:
    """The same with one fact wrong."""
    wrong, values = rng.integers(3), (list(DIRECTION_WORDS), list(COLOURS), list(SHAPES))
    others = [value for value in values[wrong] if value != facts[wrong]]
    return tuple(_any(rng, others) if k == wrong else fact for k, fact in enumerate(facts))


def make_set(
    out: Path,
    *,
    seed: int = 0,
    videos: int = VIDEOS["ego4d"],
    workers: int = 1,
    progress: Callable[[Iterable, int], Iterable] = lambda steps, total: steps,
) -> str:
    """Writes the videos and their lists to the folder `out`; returns one line that says what was done.

    Layout, as published: `videos/ego4d/<uid>.mp4/<second>.mp4`; `ego4d_train.pkl` and `ego4d_val.pkl` with what people
    said, `ego4d_train.part.pkl` with a fifth of it, `.rephraser.pkl` of all and `.narrator.pkl` of the other four
    fifths; `tokenizer/` of their words and `facts.json`, what these mean; `egomcq.json`;
    `videos/epic/<person>/<video>.MP4`, `EPIC_100_{train,validation}.csv`, `EPIC_100_retrieval_{train,test}.csv`,
    `…_sentence.csv` and the relevancies `…_test.pkl`. `toy.json`, resuming, errors: see `scenes.make_set`.
    """
    counts = {**VIDEOS, "ego4d": videos}
    settings = {"version": f"{scenes.VERSION}.{VERSION}", "kind": "egocentric", "seed": seed, "counts": counts}
    write, write_lists = partial(_write_video, out, seed), partial(_write_lists, out, seed, counts)
    return scenes.fill(out, settings, write, write_lists, workers, progress)


def uid(name: str, index: int) -> str:
    """The name of a video of Ego4D; those of both splits stand in one folder."""
    return f"{'val' if name == 'ego4d_val' else 'train'}-{index:04d}"


def epic_name(index: int) -> tuple[str, str]:
    """Person and name of a video of EPIC-Kitchens."""
    return f"P{index % 4:02d}", f"P{index % 4:02d}_{index // 4:02d}"


def _write_video(out: Path, seed: int, job: tuple[str, int]) -> None:
    name, index = job
    shots = video(seed, name, index)
    frames = np.concatenate([render(shot) for shot in shots])
    if name == "epic":
        _write(out / "videos/epic" / "/".join(epic_name(index)), ".MP4", frames)
        return
    folder, step = out / f"videos/ego4d/{uid(name, index)}.mp4", CHUNK_SECONDS * FPS
    for first in range(0, len(frames), step):
        _write(folder / str(first // FPS), ".mp4", frames[first : first + step])


def render(shot: Shot) -> np.ndarray:
    """Its frames, uint8 [T, H, W, 3]: the shape, and the arm that moves it."""
    scene, count = shot.scene, round(shot.event.end * FPS)
    frames, side = scenes.render(scene, [shot.event], count), min(scene.width, scene.height)
    axis, sign = scenes.MOTIONS[shot.event.motion]
    places = scenes.phases(scene, [shot.event], np.arange(count) / FPS)[:, :2]
    for frame, (along, across) in zip(frames, places if axis == "x" else places[:, ::-1], strict=True):
        picture = frame if axis == "x" else frame.swapaxes(0, 1)
        edges = np.rint(np.clip([across - ARM / 2, across + ARM / 2], 0, 1) * side).astype(int)
        hand = round(float(np.clip(along - sign * REACH, 0, 1)) * side)
        picture[slice(*edges), slice(hand) if sign > 0 else slice(hand, None)] = SKIN
    return frames


def _write(stem: Path, ending: str, frames: np.ndarray) -> None:
    if not stem.with_suffix(ending).exists():
        stem.parent.mkdir(parents=True, exist_ok=True)
        scenes.write_video(stem.with_suffix(".mp4"), frames, FPS)
        stem.with_suffix(".mp4").rename(stem.with_suffix(ending))


def _write_lists(out: Path, seed: int, counts: dict[str, int]) -> None:
    rng = np.random.default_rng([seed, len(SETS)])
    train, val = (rows(seed, name, counts[name]) for name in ("ego4d", "ego4d_val"))
    keys = [(uid("ego4d", row.video), row.start, row.end) for row in train]
    told = [narration(rng, row.facts) for row in train]
    with_person = [k % PART == 0 for k in range(len(train))]
    human = [(*key, text) for key, text in zip(keys, told)]
    rephrased = [(*key, [narration(rng, row.facts) for _ in range(REPHRASED)]) for key, row in zip(keys, train)]
    narrated = [(*key, *_narrated(rng, row.facts)) for key, row in zip(keys, train)]
    _write_pickle(out / "ego4d_train.pkl", human)
    _write_pickle(out / "ego4d_train.part.pkl", [row for row, own in zip(human, with_person) if own])
    _write_pickle(out / "ego4d_train.rephraser.pkl", rephrased)
    _write_pickle(out / "ego4d_train.narrator.pkl", [row for row, own in zip(narrated, with_person) if not own])
    told_val = [(uid("ego4d_val", r.video), r.start, r.end, narration(rng, r.facts)) for r in val]
    _write_pickle(out / "ego4d_val.pkl", told_val)
    _write_json(out / "egomcq.json", _questions(rng, val, told_val))
    _write_words(out)
    _write_epic(out, rng, rows(seed, "epic", counts["epic"]))


WORD_KINDS = {"direction": DIRECTION_WORDS, "colour": COLOUR_WORDS, "shape": SHAPE_WORDS}
END = "<|endoftext|>"


def words() -> list[str]:
    """Every word that a narration can hold."""
    kinds = (word for kind in WORD_KINDS.values() for group in kind.values() for word in group)
    return ["#C", "C", *VERBS, "the", *kinds]


def _write_words(out: Path) -> None:
    """The words as a tokenizer of transformers, of which the last token is start and end, and what they mean."""
    ids = {word: number for number, word in enumerate(["<unk>", *words(), END])}
    special = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": ids[END], "content": END, **special}],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"},
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder")),
    }
    folder = out / "tokenizer"
    folder.mkdir(exist_ok=True)
    _write_json(folder / "tokenizer.json", tokenizer)
    names = {"bos_token": END, "eos_token": END, "unk_token": "<unk>"}
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    meanings = {
        kind: {word: fact for fact, group in groups.items() for word in group} for kind, groups in WORD_KINDS.items()
    }
    _write_json(out / "facts.json", meanings)


def _narrated(rng: np.random.Generator, facts: tuple[str, str, str]) -> tuple[list[str], list[float]]:
    """Texts of the narrator, and how unsure it was of each: more so where it is wrong."""
    right = rng.random(RETURNED) < RIGHT
    texts = [narration(rng, facts if fits else mistaken(rng, facts)) for fits in right]
    return texts, np.round(1 + rng.random(RETURNED) + 2 * ~right, 3).tolist()


def _questions(rng: np.random.Generator, val: list[Row], told: list[tuple]) -> dict:
    """EgoMCQ: one text, five moments; type 1 of five videos, type 2 of one. No two choices look the same."""
    made = {}
    for number in range(QUESTIONS):
        kind = 1 + number % 2
        chosen = _choices(rng, val, kind)
        answer = int(rng.integers(CHOICES))
        made[str(number)] = {
            "answer": answer,
            "types": kind,
            "query": _moment(told[chosen[answer]]),
            "choices": {str(k): _moment(told[row]) for k, row in enumerate(chosen)},
        }
    return made


def _choices(rng: np.random.Generator, val: list[Row], kind: int) -> list[int]:
    chosen: list[int] = []
    for row in rng.permutation(len(val)).tolist():
        videos = {val[k].video for k in chosen}
        fits = val[row].video in videos if kind == 2 and chosen else val[row].video not in videos
        if fits and all(val[k].facts[:2] != val[row].facts[:2] for k in chosen):
            chosen.append(row)
        if len(chosen) == CHOICES:
            break
    return chosen


def _moment(row: tuple) -> dict:
    video, start, end, text = row
    return {"video_uid": video, "clip_start": start, "clip_end": end, "clip_text": text}


EPIC_COLUMNS = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)


def _write_epic(out: Path, rng: np.random.Generator, all_rows: list[Row]) -> None:
    splits = {
        "train": [row for row in all_rows if row.video < FIRST_TEST],
        "test": [row for row in all_rows if row.video >= FIRST_TEST],
    }
    for split, own in splits.items():
        lines = [_epic_line(rng, row) for row in own]
        write_csv(out / f"EPIC_100_{split.replace('test', 'validation')}.csv", EPIC_COLUMNS, lines)
        write_csv(out / f"EPIC_100_retrieval_{split}.csv", EPIC_COLUMNS, lines)
        facts = {line[8]: row.facts for line, row in zip(lines, own)}  # each sentence once
        first = {line[8]: line[0] for line in reversed(lines)}
        sentences = [(first[text], text) for text in facts]
        write_csv(out / f"EPIC_100_retrieval_{split}_sentence.csv", "narration_id,narration", sentences)
        relevant = np.array([[relevancy(row.facts, facts[text]) for _, text in sentences] for row in own], np.float32)
        with open(out / f"EPIC_100_retrieval_{split}.pkl", "wb") as file:
            pickle.dump(relevant, file)


def _epic_line(rng: np.random.Generator, row: Row) -> tuple:
    person, name = epic_name(row.video)
    direction, colour, shape = row.facts
    start, end = (f"00:{int(t // 60):02d}:{t % 60:05.2f}" for t in (row.start, row.end))
    frames = round(row.start * FPS), round(row.end * FPS)
    verb, noun = list(DIRECTION_WORDS).index(direction), list(COLOURS).index(colour)
    text = narration(rng, row.facts).removeprefix("#C C ")
    key = f"{name}_{row.shot}"
    return (key, person, name, start, start, end, *frames, text, direction, verb, colour, noun, [colour], [noun])


def relevancy(a: tuple[str, str, str], b: tuple[str, str, str]) -> float:
    """As of EPIC-Kitchens: the mean of the overlaps of verbs (here directions) and of nouns (colours and shapes)."""
    nouns = len({*a[1:]} & {*b[1:]}) / len({*a[1:]} | {*b[1:]})
    return ((a[0] == b[0]) + nouns) / 2


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _write_pickle(path: Path, content: list) -> None:
    path.write_bytes(pickle.dumps(content, protocol=4))
