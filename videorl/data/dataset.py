"""From a record (a file and its label) to clips: the one place where videos are decoded for training and testing."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from videorl.clip import masks, sampling
from videorl.clip.regions import Cut
from videorl.clip.transforms import Making, TrainTransform, test_view
from videorl.data import plain
from videorl.data.listing import Listing, fingerprint, opened
from videorl.data.paths import OutsideError, check_inside
from videorl.registry import UserError
from videorl.spec import Spec, Views
from videorl.video.backends import check_backend
from videorl.video.frame_cache import open_cached
from videorl.video.reader import Frames, in_order


class Records:
    """Files of a split with their labels, and where they stand. `paths` are relative to `root`.

    `labels` is [N] int64, or [N, C] float32 of zeros and ones; `more` are columns [N] beside them, attributes of the
    same names. Arrays, not lists of str: forked workers share them. Those of a list that is mapped from a file (see
    `listing`) pickle as its name.
    """

    more: Mapping[str, type] = MappingProxyType({})

    def __init__(
        self, root: str, paths: Sequence[bytes], labels: np.ndarray, classes: tuple[str, ...] = (), **more: np.ndarray
    ):
        self.root, self.labels, self.classes = root, labels, classes
        self.letters, self.starts, self.stops = (paths if isinstance(paths, Texts) else Texts.joined(paths)).arrays
        for name, kind in self.more.items():
            setattr(self, name, np.asarray(more[name], kind))
        self.origin: tuple = ()  # where the arrays are mapped from
        self.known = ""  # fingerprint

    @classmethod
    def of(cls, listing: Listing, root: str, classes: tuple[str, ...] = (), every: int = 1, num_classes: int = 0):
        """Each `every`th sample of a list. `num_classes`: all labels of each as zeros and ones, not the first alone."""
        arrays, bounds = listing.arrays, listing.arrays["bounds"]
        paths = Texts(arrays["letters"], bounds[:-1][::every], bounds[1:][::every])
        labels = class_numbers(listing, num_classes) if num_classes else arrays["labels"]
        found = cls(root, paths, labels[::every], classes, **{name: arrays[name][::every] for name in cls.more})
        found.origin = (listing.file, listing.sha256, every, num_classes) if listing.file else ()
        found.known = listing.facts.get("fingerprint", "") if every == 1 and not num_classes else ""
        return found

    def __reduce__(self):
        return (_mapped, (type(self), self.root, self.classes, *self.origin)) if self.origin else super().__reduce__()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def paths(self) -> "Texts":
        return Texts(self.letters, self.starts, self.stops)

    def path(self, i: int, allow_outside: bool = True) -> str:
        """Raises `UserError` where it is mapped, leaves `root`, and may not: the file may come from others."""
        path = self.paths[i].decode()
        if self.origin and not allow_outside:
            try:
                check_inside(path)
            except OutsideError as error:
                raise UserError(f"{self.origin[0]}: sample {i}: {error}, or delete this file") from None
        return os.path.join(self.root, path)

    def named(self, paths: Sequence[bytes]) -> "Records":
        """The same labels of other files, by their whole paths."""
        more = {name: getattr(self, name) for name in self.more}
        return type(self)("", paths, self.labels, self.classes, **more)

    @property
    def fingerprint(self) -> str:
        """Hash of files and labels, in order, and of what else there is."""
        more = ([np.ascontiguousarray(getattr(self, name))] for name in self.more)
        return self.known or fingerprint([b"\n".join(self.paths), np.ascontiguousarray(self.labels)], *more)


def _mapped(kind: type[Records], root: str, classes: tuple[str, ...], file: str, sha256: str, every: int, num: int):
    listing = opened(Path(file), sha256)
    if listing is None:
        raise UserError(f"{file}: the list that it was made of has changed since the run began; start the run again")
    return kind.of(listing, root, classes, every, num)


class Texts(Sequence):
    """Texts [N] in the array `letters`: each from its start on, and up to one byte before its stop."""

    def __init__(self, letters: np.ndarray, starts: np.ndarray, stops: np.ndarray):
        self.arrays = letters, starts, stops

    @classmethod
    def joined(cls, texts: Iterable[bytes]) -> "Texts":
        letters, starts, stops = plain.joined([bytes(text) for text in texts])
        return cls(letters, starts, stops + 1)

    def __len__(self) -> int:
        return len(self.arrays[1])

    def __getitem__(self, i: int) -> bytes:
        letters, starts, stops = self.arrays
        return letters[starts[i] : stops[i] - 1].tobytes()

    def tolist(self) -> list[bytes]:
        return list(self)


class ClipDataset:
    """Clips of labelled videos. A subclass reads its annotations into `Records` and hands them over.

    `ds[i]` depends only on (spec.seed, ds.epoch, i). It is a list of dicts: for split "train" `spec.augment.copies`
    augmented copies, equally many of each of `spec.augment.clips` clips, else one for each of `views`, the views in
    order (clip by clip, crop by crop).
    The clip is `video`, or with `spec.masking` it is `pixels` beside its `visible` and `masked` tokens: of a training
    copy other ones in each epoch, of a view always the same. With `spec.augment.on_device` a training clip comes as
    `regions` and `cuts`, of which the device makes it (see `regions`).

    Raises `VideoError` where the file cannot be read.
    """

    antialias = False  # test views are resized as Pillow resizes

    def __init__(self, spec: Spec, split: str, records: Records, *, uniform: bool = False, offset: bool = False):
        self.spec, self.split, self.records = spec, split, records
        self.uniform, self.offset = uniform, offset
        self.epoch = 0
        check_backend(spec.reading.backend)
        clip = spec.clip
        train = split == "train"
        self.transform = TrainTransform(spec.augment, clip.train_size, clip.mean, clip.std) if train else None
        size = clip.train_size if train else clip.test_size
        self.grid = masks.checked_grid(spec, size) if spec.masking.ratio else None

    def __len__(self) -> int:
        return len(self.records)

    def path(self, i: int) -> str:
        return self.records.path(i, self.spec.reading.allow_outside_root)

    @property
    def views(self) -> Views:
        """Test views that differ: uniform clips are the same for all along time, unless other tokens are masked."""
        views = self.spec.views
        return replace(views, clips=1) if self.uniform and self.grid is None else views

    @property
    def classes(self) -> tuple[str, ...]:
        return self.records.classes

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Label space to the names of its classes by number (none where they are not known)."""
        return {self.spec.space: self.classes}

    @property
    def class_counts(self) -> dict[str, np.ndarray]:
        """Label space to the samples of each class [C]; none where labels do not count (pre-training)."""
        labels, space = self.records.labels, self.spec.space
        if self.spec.masking.ratio or space not in self.spec.labels:
            return {}
        counts = np.bincount(labels, minlength=self.spec.labels[space]) if labels.ndim == 1 else labels.sum(0)
        return {space: counts.astype(np.int64)}

    @property
    def fingerprint(self) -> str:
        return self.records.fingerprint

    def __getitem__(self, i: int) -> list[dict]:
        with self._open(i) as video:
            views = self._train_clips(video, i) if self.split == "train" else self._test_clips(video)
        return [
            {**self._inputs(clip, i, k), **self._notes(i, k), "index": torch.tensor(i), "view": torch.tensor(k)}
            for k, clip in enumerate(views)
        ]

    def _notes(self, i: int, k: int) -> dict[str, torch.Tensor]:
        """What the annotations say of copy or view k of sample i."""
        return {"labels": torch.as_tensor(self.records.labels[i])}

    def _open(self, i: int):
        """A context manager that gives the frames of sample i; a subclass may have others than those of a file."""
        return open_cached(self.path(i), self.spec.reading)

    def _inputs(self, clip: torch.Tensor | tuple[torch.Tensor, Cut], i: int, k: int) -> dict[str, object]:
        """What the model gets of copy or view k of sample i."""
        if isinstance(clip, tuple):
            inputs = dict(zip(("regions", "cuts"), clip, strict=True))
        else:
            inputs = {"video" if self.grid is None else "pixels": clip}
        if self.grid is None:
            return inputs
        epoch = self.epoch if self.split == "train" else 0
        # One number more than `_random` has: the augmentation is the same with and without masks.
        rng = np.random.default_rng([self.spec.seed, epoch, i, k + 1, 1])
        visible, masked = map(torch.from_numpy, masks.draw(rng, self.grid, self.spec.masking))
        return {**inputs, "visible": visible, "masked": masked}

    def _random(self, i: int, copy: int = -1) -> np.random.Generator:
        return np.random.default_rng([self.spec.seed, self.epoch, i, copy + 1])

    def _train_clips(self, video, i: int) -> list:
        augment, rng = self.spec.augment, self._random(i)
        indices = [self._train_indices(video, rng) for _ in range(augment.clips)]
        begin = self.transform.begin_region if augment.on_device else self.transform.begin
        copies = range(augment.copies)
        return made(
            video,
            [indices[copy * augment.clips // len(copies)] for copy in copies],
            lambda height, width: [begin(height, width, self._random(i, copy)) for copy in copies],
        )

    def _train_indices(self, video, rng) -> np.ndarray:
        clip = self.spec.clip
        if self.uniform:
            return sampling.uniform_train(video.num_frames, frames=clip.frames, rng=rng)
        return sampling.dense_train(
            video.num_frames,
            video.fps,
            frames=clip.frames,
            rate=clip.rate,
            target_fps=clip.fps,
            rng=rng,
            times=video.times,
        )

    def _test_clips(self, video) -> list[torch.Tensor]:
        """[T, 3, S, S] uint8 for each view; frames that several views share are decoded, and cropped, once."""
        views = self.views
        indices = np.concatenate([self._test_indices(video, k) for k in range(views.clips)])
        positions = range(3) if views.crops == 3 else (1,)
        crops = [partial(self._crop, position=position) for position in positions]
        clips = made(video, [indices] * len(crops), lambda *_: [Making(crop, self._split) for crop in crops])
        return [clip for views in zip(*clips) for clip in views]

    def _split(self, clips: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return clips.split(self.spec.clip.frames)

    def _test_indices(self, video, k: int) -> np.ndarray:
        clip = self.spec.clip
        if self.uniform:
            return sampling.uniform_test(video.num_frames, frames=clip.frames)
        return sampling.dense_view(
            video.num_frames,
            video.fps,
            frames=clip.frames,
            rate=clip.rate,
            target_fps=clip.fps,
            view=k,
            views=self.spec.views.clips,
            offset=self.offset,
            times=video.times,
        )

    def _crop(self, frames: torch.Tensor, position: int) -> torch.Tensor:
        size = self.spec.clip.test_size
        # PySlowFast's rule: with one crop the short side is the smallest training scale, with three the crop's side.
        short_side = size if self.spec.views.crops == 3 else max(self.spec.augment.scales[0], size)
        return test_view(frames, short_side=short_side, size=size, position=position, antialias=self.antialias)


def made(video: Frames, indices: Sequence[np.ndarray], begin: Callable[[int, int], list[Making]]) -> list:
    """What the makings make, each of the frames `indices[k]` of its own; `begin` gives them, for height and width.

    No more frames are in memory at full size than those of two parts (see `Frames.parts`), however long the clips.
    """
    makings, cuts = None, [[] for _ in indices]
    for numbers, frames in video.parts(np.concatenate(indices)):
        makings = makings or begin(*frames.shape[1:3])
        for making, own, done in zip(makings, indices, cuts, strict=True):
            wanted = torch.from_numpy(np.isin(numbers, own))
            if wanted.any():
                done.append(making.cut(frames if wanted.all() else frames[wanted]))
    joined = [torch.cat(done) if len(done) > 1 else done[0] for done in cuts]
    return [making.finish(in_order(clip, own)) for making, clip, own in zip(makings, joined, indices)]


def check_views(crops: int) -> None:
    """Raises `UserError` unless `crops` is 1 or 3."""
    if crops not in (1, 3):
        raise UserError(f"number of spatial crops: expected 1 (centre) or 3 (along the longer side), found {crops}")


def class_numbers(listing: Listing, num_classes: int) -> np.ndarray:
    """[N, num_classes] float32 of zeros and ones from all labels of each sample."""
    rows = np.zeros((len(listing), num_classes), np.float32)
    counts = np.diff(listing.arrays["first_number"])
    rows[np.repeat(np.arange(len(listing)), counts), listing.arrays["numbers"]] = 1.0
    return rows
