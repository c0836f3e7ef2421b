"""Which samples make which micro-batch of which rank.

A step takes the next `Plan.share` samples of the epoch's order, the same for every number of ranks and
micro-batches, and deals them out as chunks: rank r gets chunks r * M … r * M + M - 1. Sample i of a step and its mirror
image (share - 1 - i) fall into one chunk, so MixUp, which pairs a batch with its reverse, makes the same pairs for
any split.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from videorl.registry import BATCHES, Range, UserError, Whole


@dataclass(frozen=True)
class Plan:
    """How a step is divided: samples of one micro-batch, micro-batches of a rank, this rank, number of ranks.

    With several `machines`, each has samples of its own: `rank` and `world` are then those on this machine, which gives
    its `share` of each step and takes at least `least` samples in an epoch, more than once each if it has fewer.
    """

    micro_batch: int
    micro_batches: int
    rank: int = 0
    world: int = 1
    machines: int = 1
    least: int = 0

    @property
    def share(self) -> int:
        """Samples of a step from this machine's, or from the ones that all have."""
        return self.micro_batch * self.micro_batches * self.world

    @property
    def step_size(self) -> int:
        return self.share * self.machines

    def chunks(self, samples: np.ndarray) -> list[list[int]]:
        """This rank's micro-batches of a share. Chunk c holds samples c*h … of the first half and their mirrors."""
        first = self.rank * self.micro_batches
        return [self._chunk(samples, c).tolist() for c in range(first, first + self.micro_batches)]

    def _chunk(self, samples: np.ndarray, c: int) -> np.ndarray:
        size, n = self.micro_batch, len(samples)
        if size % 2:
            return samples[c * size : (c + 1) * size]
        half = size // 2
        return np.concatenate([samples[c * half : (c + 1) * half], samples[n - (c + 1) * half : n - c * half]])


class EpochOrder:
    """A step takes the next `plan.share` samples of `self.order`, which `begin_epoch` sets.

    `parts`: name to number of samples of each data set; their samples are numbered through in that order.
    """

    def __init__(self, parts: Mapping[str, int], plan: Plan, seed: int):
        self.parts, self.plan, self.seed = dict(parts), plan, seed
        self.starts = dict(zip(parts, np.cumsum([0, *parts.values()]).tolist()))
        if self.steps < 1:
            raise UserError(
                f"an epoch has {self.length} videos but one step takes {plan.share}"
                f" ({plan.micro_batch} x {plan.micro_batches} micro-batches x {plan.world} processes);"
                " lower TRAIN.BATCH_SIZE"
            )
        self.begin_epoch(0)

    @property
    def length(self) -> int:
        """Samples of an epoch (of this machine, where each has its own)."""
        return max(sum(self.parts.values()), self.plan.least)

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return self.length // self.plan.share

    def begin_epoch(self, epoch: int, embed=None) -> None:
        """Fixes the order of `epoch`. `embed` (embeddings of samples) is for batches that are chosen by them."""
        raise NotImplementedError

    def state(self) -> dict:
        """What a checkpoint within an epoch must hold, for `restore`: nothing where (seed, epoch) says it all."""
        return {}

    def restore(self, state: Mapping) -> None:
        """Takes over what `state` gave."""

    def __iter__(self) -> Iterator[list[list[int]]]:
        """For each step of the epoch this rank's micro-batches."""
        return map(self.step, range(self.steps))

    def step(self, number: int) -> list[list[int]]:
        """This rank's micro-batches of a step of the epoch, as lists of sample numbers."""
        size = self.plan.share
        return self.plan.chunks(self.order[number * size : (number + 1) * size])

    def drawn(self, rng: np.random.Generator, name: str, count: int) -> np.ndarray:
        """`count` samples of a data set in random order, each once before any comes again."""
        return self.starts[name] + permutations(rng, self.parts[name], count)


def permutations(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """[count] numbers below `size`: one random order of all after another."""
    if 0 < count <= size:  # not copied: of ten million it is 80 MB
        return rng.permutation(size)[:count]
    rounds = [rng.permutation(size) for _ in range(-(-count // size))]
    return np.concatenate([*rounds, np.empty(0, np.int64)])[:count]


@BATCHES.register("shuffled")
class Shuffled(EpochOrder):
    """A new random order each epoch, from (seed, epoch); samples that do not fill the last step are left out.

    Several data sets mix in proportion to their sizes (times DATASETS.*.REPLICAS).
    """

    def begin_epoch(self, epoch: int, embed=None) -> None:
        rng = np.random.default_rng([self.seed, epoch])
        self.order = permutations(rng, sum(self.parts.values()), self.length)


@BATCHES.register("weighted")
class Weighted(EpochOrder):
    """An epoch takes from each data set a given share, in random order over all.

    Keys:
        weights: share of each data set, in the order of DATASETS; any scale
        epoch_length: videos of an epoch; 0: as many as the data sets have together
    """

    def __init__(
        self,
        parts: Mapping[str, int],
        plan: Plan,
        seed: int,
        *,
        weights: Annotated[list[float], Range("> 0")],
        epoch_length: Whole = 0,
    ):
        _check_one_each("WEIGHTS", weights, parts)
        total = epoch_length // plan.machines or max(sum(parts.values()), plan.least)
        edges = np.rint(np.cumsum([0.0, *weights]) / sum(weights) * total).astype(int)
        self.counts = dict(zip(parts, np.diff(edges).tolist(), strict=True))
        super().__init__(parts, plan, seed)

    @property
    def length(self) -> int:
        return sum(self.counts.values())

    def begin_epoch(self, epoch: int, embed=None) -> None:
        rng = np.random.default_rng([self.seed, epoch])
        self.order = rng.permutation(np.concatenate([self.drawn(rng, n, count) for n, count in self.counts.items()]))


@BATCHES.register("quota")
class Quota(EpochOrder):
    """Every step takes a fixed number of videos from each data set.

    Keys:
        quota: videos from each data set in one step (all micro-batches and processes), in the order of DATASETS
        epoch_length: videos of an epoch; 0: until every data set was gone through at least once
    """

    def __init__(
        self,
        parts: Mapping[str, int],
        plan: Plan,
        seed: int,
        *,
        quota: Annotated[list[int], Range(">= 1")],
        epoch_length: Whole = 0,
    ):
        _check_one_each("QUOTA", quota, parts)
        if plan.machines > 1:
            raise UserError("BATCHES.NAME quota: with DATA.LOCAL_SHARDS choose shuffled or weighted")
        if sum(quota) != plan.step_size:
            raise UserError(
                f"BATCHES.QUOTA {quota} is {sum(quota)} videos a step, but a step takes {plan.step_size}"
                f" ({plan.micro_batch} x {plan.micro_batches} micro-batches x {plan.world} processes)"
            )
        self.quota = dict(zip(parts, quota, strict=True))
        rounds = max(-(-size // self.quota[name]) for name, size in parts.items())
        self.rounds = epoch_length // plan.step_size if epoch_length else rounds
        super().__init__(parts, plan, seed)

    @property
    def length(self) -> int:
        return self.rounds * self.plan.step_size

    def begin_epoch(self, epoch: int, embed=None) -> None:
        rng = np.random.default_rng([self.seed, epoch])
        drawn = [self.drawn(rng, n, self.rounds * q).reshape(self.rounds, q) for n, q in self.quota.items()]
        self.order = rng.permuted(np.concatenate(drawn, axis=1), axis=1).ravel()


def _check_one_each(key: str, values: list, parts: Mapping[str, int]) -> None:
    if len(values) != len(parts):
        raise UserError(
            f"BATCHES.{key} {values}: expected one number for each of {', '.join(parts)};"
            " TRAIN.DATASET all trains on every entry of DATASETS"
        )
