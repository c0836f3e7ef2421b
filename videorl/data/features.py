"""HowTo100M as stored features: sequences of clips of long videos with what is said in them.

Files of facebookresearch/fairseq (examples/MMPT), which Norton reads: features and tokenized captions in shards (see
`shards.py`), `ROOT/SPLIT_K_{data,starts}.npy`, one feature a second, and with a PREFIX for captions
`PREFIXSPLIT_K.caps_ids_{data,starts}.npy` [captions, 32], -1 where a caption is shorter, and
`PREFIXSPLIT_K.startends_{data,starts}.npy` [captions, 2] seconds; item i of each is the same video's.
"""

import hashlib
import logging
import random
import resource
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch

from videorl.data import clip_draws
from videorl.data.clip_draws import Captions
from videorl.data.shards import Sharded, read_meta
from videorl.data.text import tokenizer
from videorl.registry import DATASETS, Count, Range, UserError
from videorl.spec import Spec
from videorl.video.errors import VideoError

log = logging.getLogger("videorl")

KINDS = {"features": "", "tokens": ".caps_ids", "times": ".startends"}
SPARE = 256  # files that may be open beside those of shards
Bounds = Annotated[tuple[int, int], Range("2 numbers >= 1, rising")]


class CaptionedShards:
    """The videos of a split, in order: their features and captions. Files are opened once in each process.

    Raises `UserError` where a shard is missing, or its files are of different length or width.
    """

    def __init__(self, root: str, captions: str, split: str):
        meta = read_meta(checked_meta(root, split))
        self.prefixes = {
            "features": [f"{root}/{split}_{k}" for k in sorted(meta)],
            "tokens": [f"{captions}{split}_{k}{KINDS['tokens']}" for k in sorted(meta)],
            "times": [f"{captions}{split}_{k}{KINDS['times']}" for k in sorted(meta)],
        }
        names = [name for k in sorted(meta) for name in meta[k]]
        if not names:
            raise UserError(f"{root}/{split}_meta.pkl names no videos")
        self.names = np.array([name.encode() for name in names])
        self.first = np.cumsum([0, *(len(meta[k]) for k in sorted(meta))])
        self._open: dict[tuple[str, int], Sharded] = {}
        digest = hashlib.sha256(b"\n".join(self.names.tolist()))
        outside = [self._check(k, digest) for k in range(len(meta))]
        self.fingerprint = digest.hexdigest()[:16]
        captions, videos = np.sum(outside, 0).tolist()
        if captions:
            log.warning("%s: %d captions of %d videos begin after their video: left out", root, captions, videos)
        _allow_open_files(len(KINDS) * len(meta))

    def _check(self, k: int, digest) -> tuple[int, int]:
        """Captions of a shard that begin after their video has ended, and videos that have such."""
        features, tokens, times = (Sharded(self.prefixes[kind][k]) for kind in KINDS)
        videos = int(self.first[k + 1] - self.first[k])
        found = [len(shard) for shard in (features, tokens, times)]
        if found != [videos] * 3 or not np.array_equal(tokens.starts, times.starts):
            raise UserError(
                f"{features.prefix}: {found[0]} videos of features, {found[1]} of tokens and {found[2]} of times of"
                f" captions, and {videos} in the meta file: expected as many videos and captions; make them again"
            )
        if features.data.ndim != 2 or tokens.data.ndim != 2 or times.data.shape[1:] != (2,):
            raise UserError(
                f"{features.prefix}: expected features [seconds, F], tokens [captions, L] and times [captions, 2],"
                f" found {features.data.shape}, {tokens.data.shape} and {times.data.shape}"
            )
        self.width = getattr(self, "width", features.data.shape[1])
        if features.data.shape[1] != self.width:
            raise UserError(
                f"{features.prefix}: features of {features.data.shape[1]} numbers, those before have {self.width}"
            )
        digest.update(np.concatenate([features.starts, tokens.starts]).tobytes())
        counts = np.diff(times.starts)
        late = times.data[:, 0] >= np.repeat(np.diff(features.starts), counts)
        return int(late.sum()), len(np.unique(np.repeat(np.arange(videos), counts)[late]))

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}

    def name(self, i: int) -> str:
        return self.names[i].decode()

    def of(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features [seconds, F], tokens [captions, L] and times [captions, 2] of a video, mapped from the files.

        Without captions that begin after the video has ended. Raises `VideoError` where nothing is left.
        """
        k = int(np.searchsorted(self.first, i, "right")) - 1
        features, tokens, times = (self._shard(kind, k)[i - int(self.first[k])] for kind in KINDS)
        if not np.isfinite(times).all():
            raise VideoError(self.name(i), "index", "the time of a caption is no number")
        inside = times[:, 0] < len(features)
        if not inside.any():
            raise VideoError(self.name(i), "index", f"{len(features)} seconds of features and no caption in them")
        return features, tokens[inside], times[inside]

    def _shard(self, kind: str, k: int) -> Sharded:
        if (kind, k) not in self._open:
            self._open[kind, k] = Sharded(self.prefixes[kind][k])
        return self._open[kind, k]


def checked_meta(root: str, split: str) -> Path:
    """The meta file of a split. Raises `UserError` unless it is there."""
    file = Path(root) / f"{split}_meta.pkl"
    if not file.is_file():
        raise UserError(
            f"FEATURES.ROOT {root}: expected {split}_meta.pkl beside {split}_0_data.npy and so on, which"
            " `videorl extract` writes with --layout mmpt"
        )
    return file


def _allow_open_files(shards: int) -> None:
    """A mapped file counts as open, and 1,024 of them, the usual limit, are fewer than the shards of HowTo100M."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * shards + SPARE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


class Texts:
    """Tokens, as the tokenizer of TEXT.TOKENIZER numbers them, to `[CLS] tokens [SEP]`, filled up to `length`."""

    def __init__(self, spec: Spec):
        self.tokenize = tokenizer(spec.text)
        if not hasattr(self.tokenize, "size"):
            raise UserError(
                f"TEXT.TOKENIZER {spec.text.tokenizer}: expected the vocabulary of a BERT, a vocab.txt or a name of the"
                " Hugging Face hub, such as hub:bert-base-uncased"
            )
        self.length, self.padding = spec.text.length, self.tokenize.padding
        empty = self.tokenize([""])[0].tolist()
        self.first, self.last = empty[:2]

    def framed(self, tokens: np.ndarray) -> dict[str, torch.Tensor]:
        """`text` int64 and `text_mask` bool [length] of numbers of tokens; what is too long is cut."""
        if len(tokens) and int(tokens.max()) >= self.tokenize.size:
            raise UserError(
                f"a caption has the token {int(tokens.max())}, TEXT.TOKENIZER {self.tokenize.size} tokens: the captions"
                " were tokenized with another vocabulary; name that one"
            )
        own = [self.first, *tokens[: self.length - 2].tolist(), self.last]
        text = torch.full((self.length,), self.padding)
        text[: len(own)] = torch.tensor(own)
        return {"text": text, "text_mask": torch.arange(self.length) < len(own)}

    def bare(self, texts: list[str]) -> list[np.ndarray]:
        """The numbers of the tokens of each text, without [CLS] and [SEP], which take two places of `length`."""
        rows = self.tokenize(texts).numpy() if texts else np.empty((0, self.length), np.int64)
        return [row[1 : np.flatnonzero(row == self.last)[-1]] for row in rows]

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """`text` and `text_mask` [K, length] of texts."""
        found = self.tokenize(texts)
        return {"text": found, "text_mask": found != self.padding}


def padded_rows(rows: np.ndarray, length: int, name: str) -> dict[str, torch.Tensor]:
    """`video_features` float32 [length, F] and `video_mask` bool [length] of the first rows of features.

    Raises `VideoError` for none, and for such as are no numbers.
    """
    rows = rows[:length]
    if not len(rows):
        raise VideoError(name, "index", "no features of the seconds that are asked for")
    if not np.isfinite(rows).all():
        raise VideoError(name, "decode", "features that are no finite numbers")
    features = torch.zeros(length, rows.shape[1])
    features[: len(rows)] = torch.from_numpy(rows.astype(np.float32))
    return {"video_features": features, "video_mask": torch.arange(length) < len(rows)}


@DATASETS.register("features", node="FEATURES")
class Features:
    """Clips of each video, with the captions spoken near them, from stored features and tokenized captions.

    `ds[i]` depends on (spec.seed, epoch, i) only: a list of `clips` dicts with `video_features` [seconds, F],
    `video_mask` [seconds], `text` [TEXT.MAX_WORDS], `text_mask`, `index` and `view`, in order of time; with sampler
    nearest `text` and `text_mask` have four candidates each, [4, TEXT.MAX_WORDS]. For batches that are chosen by
    embeddings it is asked for clips of EMBED_SAMPLER (split "embed").

    Raises `VideoError`, so that the loader puts the video into quarantine: no features, no captions, none that begins
    before the features end, none with a token, a time or feature that is no number.

    Keys:
        root: folder of <split>_meta.pkl and of <split>_<k>_data.npy and _starts.npy, one feature a second
        captions: beginning of the names of tokenized captions, up to <split>_<k>.caps_ids_data.npy
        clips: clips of a video in a step
        seconds: features that a clip is filled up to, or cut to
        sampler: overlapped: seconds that overlap those of the captions (Norton) | varied, fixed: the seconds of the
            captions | start: of the first captions | nearest: 3 seconds and the four captions next to them (MIL-NCE)
        embed_sampler: the same, for embeddings of whole videos
        tokens: least and most that captions of a clip grow to; fixed and start: to as many as fit
        overlap_seconds: least and most seconds of an overlapped clip
    """

    classes: tuple[str, ...] = ()

    def __init__(
        self,
        spec: Spec,
        split: str,
        *,
        root: str = "",
        captions: str = "",
        clips: Count = 16,
        seconds: Count = 16,
        sampler: Literal["overlapped", "varied", "fixed", "start", "nearest"] = "overlapped",
        embed_sampler: Literal["overlapped", "varied", "fixed", "start", "nearest"] = "varied",
        tokens: Bounds = (8, 32),
        overlap_seconds: Bounds = (3, 16),
    ):
        self.spec, self.split, self.epoch = spec, split, 0
        self.texts = Texts(spec)
        self.shards = CaptionedShards(root, captions, split)
        self.clips, self.seconds = clips, seconds
        self.samplers = {"train": sampler, "embed": embed_sampler}
        self.tokens, self.overlap_seconds = tuple(tokens), tuple(overlap_seconds)

    def __len__(self) -> int:
        return len(self.shards)

    def path(self, i: int) -> str:
        return self.shards.name(i)

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        return {}

    @property
    def fingerprint(self) -> str:
        """Hash of names and lengths of videos and captions."""
        return self.shards.fingerprint

    def __getitem__(self, i: int) -> list[dict]:
        rows, tokens, times = self.shards.of(i)
        counts = (tokens >= 0).sum(1)
        if not counts.any():
            raise VideoError(self.path(i), "index", "captions without a single token")
        starts, ends = times[:, 0], times.max(1)
        captions = Captions(starts.tolist(), ends.tolist(), counts.tolist(), len(rows))
        clips = self._drawn(captions, self._random(i))
        return [
            {
                **padded_rows(rows[start : max(stop, start + 1)], self.seconds, self.path(i)),
                **self._text(tokens, chosen),
                "index": torch.tensor(i),
                "view": torch.tensor(k),
            }
            for k, (chosen, start, stop) in enumerate(clips)
        ]

    def _drawn(self, captions: Captions, rng) -> list[tuple]:
        """Captions (a range, or a list of candidates), first second and end of each clip."""
        sampler, fit = self.samplers.get(self.split, self.samplers["train"]), self.texts.length - 2
        if sampler == "nearest":
            found = (clip_draws.nearest(captions, rng) for _ in range(self.clips))
            return [(near, *span) for near, span in found]
        sample = {
            "overlapped": partial(clip_draws.overlapped, captions, self.tokens, self.overlap_seconds, rng),
            "varied": partial(clip_draws.varied, captions, self.tokens, rng),
            "fixed": partial(clip_draws.same_span, captions, fit, rng),
            "start": partial(clip_draws.from_start, captions, fit, rng),
        }[sampler]
        drawn = clip_draws.in_order(sample, self.clips)
        return [(range(d.text_start, d.text_end), d.video_start, d.video_end) for d in drawn]

    def _text(self, tokens: np.ndarray, chosen: range | list[int]) -> dict[str, torch.Tensor]:
        """The captions of a range joined, or each of a list as a candidate."""
        if isinstance(chosen, range):
            joined = tokens[chosen.start : chosen.stop]
            return self.texts.framed(joined[joined >= 0])
        framed = [self.texts.framed(tokens[k][tokens[k] >= 0]) for k in chosen]
        return {name: torch.stack([text[name] for text in framed]) for name in framed[0]}

    def _random(self, i: int) -> random.Random:
        # Python's generator has the calls of the published draws.
        return random.Random(int(np.random.default_rng([self.spec.seed, self.epoch, i]).integers(2**63)))
