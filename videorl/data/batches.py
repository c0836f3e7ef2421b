"""Which samples make which micro-batch of which rank.

A step takes the next `Plan.step_size` samples of the epoch's order, the same for every number of ranks and
micro-batches, and deals them out as chunks: rank r gets chunks r * M … r * M + M - 1. Sample i of a step and its mirror
image (step_size - 1 - i) fall into one chunk, so MixUp, which pairs a batch with its reverse, makes the same pairs for
any split.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from videorl.registry import BATCHES, UserError


@dataclass(frozen=True)
class Plan:
    """How a step is divided: samples of one micro-batch, micro-batches of a rank, this rank, number of ranks."""

    micro_batch: int
    micro_batches: int
    rank: int = 0
    world: int = 1

    @property
    def step_size(self) -> int:
        return self.micro_batch * self.micro_batches * self.world

    def chunks(self, samples: np.ndarray) -> list[list[int]]:
        """This rank's micro-batches of a step. Chunk c holds samples c*h … of the first half and their mirrors."""
        total = self.micro_batches * self.world
        half = self.micro_batch // 2
        if self.micro_batch % 2:
            parts = np.split(samples, total)
        else:
            n = len(samples)
            first = [np.arange(c * half, (c + 1) * half) for c in range(total)]
            parts = [samples[np.concatenate([f, n - 1 - f[::-1]])] for f in first]
        start = self.rank * self.micro_batches
        return [part.tolist() for part in parts[start : start + self.micro_batches]]


@BATCHES.register("shuffled")
class Shuffled:
    """A new random order each epoch, from (seed, epoch); samples that do not fill the last step are left out."""

    def __init__(self, length: int, plan: Plan, seed: int):
        if length < plan.step_size:
            raise UserError(
                f"the training set has {length} videos but one step takes {plan.step_size}"
                f" ({plan.micro_batch} x {plan.micro_batches} micro-batches x {plan.world} processes);"
                " lower TRAIN.BATCH_SIZE"
            )
        self.length, self.plan, self.seed = length, plan, seed
        self.begin_epoch(0)

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return self.length // self.plan.step_size

    def begin_epoch(self, epoch: int, embed=None) -> None:
        """Fixes the order of `epoch`. `embed` (embeddings of samples) is for batches that are chosen by them."""
        self.order = np.random.default_rng([self.seed, epoch]).permutation(self.length)

    def __iter__(self) -> Iterator[list[list[int]]]:
        """For each step of the epoch this rank's micro-batches, as lists of sample numbers."""
        size = self.plan.step_size
        for step in range(self.steps):
            yield self.plan.chunks(self.order[step * size : (step + 1) * size])
