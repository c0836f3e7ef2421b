"""A toy world: small videos of one textured shape that moves, to try a video system in minutes on a CPU.

The state of a shape is a point on a 4-torus: x, y, size and angle are each a phase in [0, 1) that wraps around. A
motion class goes along one axis, forwards or backwards, from a start that is uniform on the torus. So at every time
the state is uniform under each class, and a single frame tells nothing; and a clip played backwards is a clip of the
opposite class, drawn with the same chance. Only the order of the frames separates the classes.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from videorl.registry import UserError

VERSION = 2  # raise it whenever the same seed gives other pixels or csv files
AXES = ("x", "y", "size", "angle")
MOTIONS = {  # class name -> axis and direction; the row number is the class id. y points down, angle turns clockwise
    "left": ("x", -1),
    "right": ("x", +1),
    "up": ("y", -1),
    "down": ("y", +1),
    "grow": ("size", +1),
    "shrink": ("size", -1),
    "turn_clockwise": ("angle", +1),
    "turn_counterclockwise": ("angle", -1),
}
DIRECTIONS = ("left", "right", "up", "down")
SPEEDS = {"x": (0.4, 0.8), "y": (0.4, 0.8), "size": (0.4, 0.7), "angle": (0.3, 0.5)}  # phase per second
DIAMETERS = (0.5, 1.0)  # of the frame's short side, at size phase 0 and 1
SHAPES = ("disc", "ring", "square", "triangle", "star", "cross")
COLOURS = {
    "red": (250, 70, 70),
    "orange": (245, 150, 30),
    "yellow": (240, 230, 60),
    "green": (70, 220, 80),
    "cyan": (60, 210, 225),
    "blue": (90, 130, 255),
    "magenta": (240, 90, 225),
    "white": (245, 245, 245),
}
FRAME_SIZES = ((128, 96), (144, 112), (160, 128), (96, 128), (112, 144), (112, 112), (128, 128))  # width, height
FRAME_RATES = (12, 15, 20, 24, 25, 30)
SECONDS = (2.0, 4.0)
SPLITS = ("train", "val", "test")
MARK, UNFINISHED = "toy.json", "toy.unfinished.json"
_SPRITE = 96  # pixels of a shape's picture, along a side
_CODECS = {  # one thread: the bytes of a file depend on the number of threads
    ".mp4": ("libx264", {"preset": "veryfast", "crf": "26", "threads": "1", "x264-params": "mbtree=0"}),
    ".webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "36", "b": "0", "threads": "1"}),
}


@dataclass(frozen=True)
class Class:
    """What all clips of a class share: the motion and, where the class tells, shape and speed (phase per second)."""

    motion: str
    shape: str = ""
    speed: tuple[float, float] | None = None


SMALL = "small_motion"  # the kind of set for pre-training: frames have half the size, to be read in little time
FEW = 4  # of SMALL's training clips, one in so many has its label in the lists of the folder few/
LABEL_SPACES = {  # kind of set -> class name -> what it shows; the row number is the class id
    "motion": {name: Class(name) for name in MOTIONS},
    "shape_motion": {f"{s}_{m}": Class(m, shape=s) for s in ("disc", "cross") for m in DIRECTIONS},
    "speed_direction": {
        f"{name}_{m}": Class(m, speed=speed)
        for name, speed in {"slow": (0.25, 0.35), "fast": (0.7, 0.9)}.items()
        for m in DIRECTIONS
    },
    SMALL: {name: Class(name) for name in MOTIONS if not name.startswith("turn")},  # that is not to be seen so small
}


@dataclass(frozen=True)
class Scene:
    """What a video shows: frame size (pixels, even), frames per second, the shape, and the noise behind it.

    `start` holds the phases of AXES at time 0, `drift` the background's velocity (x, y in short sides per second),
    and `texture` seeds the pictures of background and shape.
    """

    width: int
    height: int
    fps: int
    shape: str
    colour: str
    start: tuple[float, float, float, float]
    drift: tuple[float, float]
    texture: int


@dataclass(frozen=True)
class Event:
    """One motion (a name of MOTIONS) from `start` to `end` seconds, at `speed` phases per second."""

    motion: str
    start: float
    end: float
    speed: float


def phases(scene: Scene, events: Sequence[Event], times: np.ndarray) -> np.ndarray:
    """The state of the shape at each time in seconds: [T, 4] phases in [0, 1), in the order of AXES."""
    state = np.tile(np.asarray(scene.start, np.float64), (len(times), 1))
    for event in events:
        axis, sign = MOTIONS[event.motion]
        state[:, AXES.index(axis)] += sign * event.speed * (np.clip(times, event.start, event.end) - event.start)
    return state % 1.0


def render(scene: Scene, events: Sequence[Event], count: int) -> np.ndarray:
    """The first `count` frames of a scene in which the events happen: uint8 [T, H, W, 3]."""
    times = np.arange(count) / scene.fps
    rng = np.random.default_rng(scene.texture)
    background, sprite = _background(rng, scene), _sprite(rng, scene)
    shifts = np.rint(np.outer(times, scene.drift) * min(scene.width, scene.height)).astype(int)  # [T, 2] pixels
    frames = np.empty((count, scene.height, scene.width, 3), np.uint8)
    for frame, (dx, dy), state in zip(frames, shifts, phases(scene, events, times), strict=True):
        frame[:] = np.roll(background, (dy, dx), (0, 1))
        _paste(frame, sprite, *state)
    return frames


def _paste(frame: np.ndarray, sprite: np.ndarray, x: float, y: float, size: float, angle: float) -> None:
    """Draws the sprite into a frame [H, W, 3]; positions repeat every short side, in both directions.

    So any square crop of that side shows the whole shape once (cut in parts at most), wherever it is: a crop can
    neither lose the shape nor betray, by showing it, along which axis it moves.
    """
    side = min(frame.shape[:2])
    radius = 0.5 * side * DIAMETERS[0] * (DIAMETERS[1] / DIAMETERS[0]) ** size
    across, down = ((np.arange(n) + 0.5) / side for n in frame.shape[1::-1])
    dx = ((across - x + 0.5) % 1.0 - 0.5) * side / radius  # [W], in radii from the nearest centre
    dy = ((down - y + 0.5) % 1.0 - 0.5) * side / radius  # [H]
    columns, rows = np.flatnonzero(np.abs(dx) < 1), np.flatnonzero(np.abs(dy) < 1)
    dx, dy = dx[columns][None, :], dy[rows][:, None]
    cos, sin = math.cos(2 * math.pi * angle), math.sin(2 * math.pi * angle)
    u, v = _texel(cos * dx + sin * dy), _texel(cos * dy - sin * dx)
    texels = sprite[v, u]  # [rows, columns, 4]
    patch = frame[rows[:, None], columns]
    frame[rows[:, None], columns] = np.rint(texels[..., :3] + patch * (1 - texels[..., 3:])).astype(np.uint8)


def _texel(radii: np.ndarray) -> np.ndarray:
    return np.clip((radii + 1) * _SPRITE / 2, 0, _SPRITE - 1).astype(int)


def _noise(rng: np.random.Generator, height: int, width: int, channels: int, detail: float) -> np.ndarray:
    """Smooth random texture [height, width, channels] of unit deviation that tiles; `detail`: blobs per side, about."""
    fy, fx = np.fft.fftfreq(height, 1 / height)[:, None], np.fft.rfftfreq(width, 1 / width)[None, :]
    spectrum = np.fft.rfft2(rng.standard_normal((height, width, channels)), axes=(0, 1))
    spectrum *= np.exp(-0.5 * (fy**2 + fx**2) / detail**2)[..., None]
    texture = np.fft.irfft2(spectrum, (height, width), axes=(0, 1))
    return (texture - texture.mean((0, 1))) / texture.std((0, 1))


def _background(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    noise = _noise(rng, scene.height, scene.width, 3, detail=4)
    return np.clip(rng.uniform(40, 70, 3) + 12 * noise, 0, 255).astype(np.uint8)


def _sprite(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """The shape as [side, side, 4]: colour times opacity (0 to 255), and opacity (0 to 1)."""
    u, v = np.meshgrid(*[(np.arange(_SPRITE) + 0.5) * 2 / _SPRITE - 1] * 2)
    # One side is bright and the other dark: no turn maps the shape onto itself, so even a disc is seen to turn.
    shade = np.clip(0.6 + 0.45 * np.tanh(3 * u) + 0.06 * _noise(rng, _SPRITE, _SPRITE, 1, detail=4)[..., 0], 0.15, 1)
    opacity = np.clip(_inside(scene.shape, u, v) / 0.06, 0, 1)
    return np.dstack([np.multiply.outer(opacity * shade, COLOURS[scene.colour]), opacity]).astype(np.float32)


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How far each point lies inside the shape (negative: outside), in radii of the circle around it."""
    r, polar = np.hypot(u, v), np.arctan2(v, u)
    if shape == "disc":
        return 0.95 - r
    if shape == "ring":
        return np.minimum(0.95 - r, r - 0.45)
    if shape == "square":
        return 0.7 - np.maximum(np.abs(u), np.abs(v))
    if shape == "triangle":
        return 0.48 - r * np.cos((polar + math.pi / 3) % (2 * math.pi / 3) - math.pi / 3)
    if shape == "star":
        return 0.68 + 0.27 * np.cos(5 * polar) - r
    if shape == "cross":
        near, far = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
        return np.minimum(0.3 - near, 0.9 - far)
    raise ValueError(f"unknown shape {shape!r} (known: {', '.join(SHAPES)})")


def clip(seed: int, split: str, index: int, kind: str = "motion") -> tuple[Scene, Event, int]:
    """The clip of that number: its scene, its one event (from 0 to the clip's end), and its class id.

    Depends on the arguments only. As many clips in a row as there are classes hold each class once; all else is drawn
    at random.
    """
    key, classes = [seed, SPLITS.index(split)], list(LABEL_SPACES[kind].values())
    # Keys of other lengths or ends, so that no two random streams are one. (Zeros at the end of a key do not count.)
    number = list(LABEL_SPACES).index(kind)
    rng = np.random.default_rng([*key, index, *[1 + number] * (number > 0)])
    order = np.random.default_rng([*key, index // len(classes), 1, *[number] * (number > 0)]).permutation(len(classes))
    label = int(order[index % len(classes)])
    shown = classes[label]
    heading, pace = rng.uniform(0, 2 * math.pi), rng.uniform(0.03, 0.1)
    width, height = (size // (1 + (kind == SMALL)) for size in FRAME_SIZES[rng.integers(len(FRAME_SIZES))])
    fps, shape = int(rng.choice(FRAME_RATES)), str(rng.choice(SHAPES))
    scene = Scene(
        width=width,
        height=height,
        fps=fps,
        shape=shown.shape or shape,
        colour=str(rng.choice(list(COLOURS))),
        start=_start(rng.uniform(size=len(AXES)), shown),
        drift=(pace * math.cos(heading), pace * math.sin(heading)),
        texture=int(rng.integers(2**32)),
    )
    seconds, speeds = float(rng.uniform(*SECONDS)), shown.speed or SPEEDS[MOTIONS[shown.motion][0]]
    return scene, Event(shown.motion, 0.0, seconds, float(rng.uniform(*speeds))), label


def _start(phases: np.ndarray, shown: Class) -> tuple[float, ...]:
    """Where a clip's shape starts. One whose form is to be told is drawn large."""
    size = AXES.index("size")
    return tuple(0.5 + p / 2 if shown.shape and k == size else p for k, p in enumerate(phases))


def render_clip(seed: int, split: str, index: int, kind: str = "motion") -> tuple[np.ndarray, int, int]:
    """Frames (uint8 [T, H, W, 3]), frames per second, and class id of the clip of that number."""
    scene, event, label = clip(seed, split, index, kind)
    return render(scene, [event], round(event.end * scene.fps)), scene.fps, label


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """Encodes frames (uint8 [T, H, W, 3], even sizes): H.264 for .mp4, VP9 for .webm. Appears whole or not at all."""
    import av

    codec, options = _CODECS[path.suffix]
    part = path.with_name(path.name + ".part")
    with av.open(part, "w", format=path.suffix[1:], container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.gop_size = 24
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    os.replace(part, path)


def make_set(
    out: Path,
    *,
    seed: int = 0,
    kind: str = "motion",
    counts: Mapping[str, int],
    workers: int = 1,
    progress: Callable[[Iterable, int], Iterable] = lambda steps, total: steps,
) -> str:
    """Writes the data set of a kind (see LABEL_SPACES) to the folder `out`; returns one line that says what was done.

    Layout (PySlowFast's): `videos/<split>/*`, `<split>.csv` with lines `path label` (paths relative to `out`),
    `classes.json` {name: id}, and `toy.json`, written last: the mark of a complete set. A complete set of the same
    settings is left alone; an unfinished one is continued, or rebuilt where its settings or software were others.
    `progress(steps, total)` wraps the loop over clips. Raises UserError for a folder that holds anything else.
    """
    settings = {"version": VERSION, "kind": kind, "seed": seed, "counts": dict(counts)}
    write = partial(_write_clip, out, seed, kind)
    return fill(out, settings, write, partial(_write_lists, out, seed, kind, counts), workers, progress)


def fill(out: Path, settings: dict, write: Callable, write_lists: Callable, workers: int, progress: Callable) -> str:
    """Fills the folder of a set as `make_set` says; `settings`: version, kind, seed and counts (name -> files).

    `write((name, index))` writes one video below `out/videos`, unless it stands there, in any order and process;
    `write_lists()` what stands beside them, last.
    """
    settings = {**settings, "software": {"numpy": np.__version__, "av": version("av")}}
    jobs = [(name, index) for name, count in settings["counts"].items() for index in range(count)]
    done = _standing(out, settings)
    if done == "complete":
        return f"{out}: already complete (seed {settings['seed']}, {len(jobs)} clips), nothing to do"
    if done == "rebuilt" and (out / "videos").exists():
        shutil.rmtree(out / "videos")
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / UNFINISHED, settings)  # first of all: it tells that the folder's videos are ours to replace
    for _ in progress(_map(write, jobs, workers), len(jobs)):
        pass
    write_lists()
    os.replace(out / UNFINISHED, out / MARK)
    return f"{out}: {done} (seed {settings['seed']}, {len(jobs)} clips)"


def _standing(out: Path, settings: dict) -> str:
    """The word for what becomes of the folder: complete (left alone), made, continued or rebuilt."""
    if (out / MARK).exists():
        found = json.loads((out / MARK).read_text())
        for key in ("kind", "version", "seed", "counts"):
            if found.get(key, "motion") != settings[key]:
                raise UserError(
                    f"{out} holds a complete toy set with {key} {found.get(key)}, asked for {settings[key]}; "
                    "choose another folder or delete this one"
                )
        return "complete"
    if (out / UNFINISHED).exists():
        return "continued" if json.loads((out / UNFINISHED).read_text()) == settings else "rebuilt"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is no toy set (it has no {MARK}) and not empty; choose a new or empty folder")
    return "made"


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def file_name(split: str, index: int) -> str:
    """File name of a clip. Every 25th is a webm: 25 and 8 classes share no factor, so the format tells no class."""
    return f"{split}_{index:05d}.{'webm' if index % 25 == 24 else 'mp4'}"


def _write_clip(out: Path, seed: int, kind: str, job: tuple[str, int]) -> None:
    split, index = job
    path = out / "videos" / split / file_name(split, index)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        frames, fps, _ = render_clip(seed, split, index, kind)
        write_video(path, frames, fps)


def _write_lists(out: Path, seed: int, kind: str, counts: Mapping[str, int]) -> None:
    classes = {name: label for label, name in enumerate(LABEL_SPACES[kind])}
    for folder in [out, out / "few"] if kind == SMALL else [out]:
        folder.mkdir(exist_ok=True)
        for split, count in counts.items():
            # Clips in a row hold each class once: whole rows are kept or left out.
            some = range(count) if folder == out or split != "train" else _rows(count, len(classes))
            lines = [f"videos/{split}/{file_name(split, i)} {clip(seed, split, i, kind)[2]}\n" for i in some]
            (folder / f"{split}.csv").write_text("".join(lines))
        _write_json(folder / "classes.json", classes)


def _rows(count: int, length: int) -> list[int]:
    """The numbers below `count` in every FEW-th row of `length`."""
    return [i for i in range(count) if i // length % FEW == 0]


def _map(work: Callable, jobs: Sequence, workers: int) -> Iterable:
    if workers <= 1:
        yield from map(work, jobs)
        return
    # spawn, not fork: the caller may hold threads (torch), and a forked child may inherit their locks.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, jobs, chunksize=8)
