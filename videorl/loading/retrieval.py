"""Batches of videos that are hard to tell apart: one and its neighbours, by embeddings that are made every epoch.

Xu et al., VideoCLIP, EMNLP 2021 (facebookresearch/fairseq, examples/MMPT, mmpt/tasks/retritask.py and
mmpt/modules/vectorpool.py): an inverted file of faiss, L2.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch

from videorl.loading.batches import EpochOrder, Plan, permutations
from videorl.registry import BATCHES, Count, UserError, Whole

log = logging.getLogger("videorl")

TRAINED_ON = 48  # vectors of a cell from which its centre is computed, as published
AT_LEAST = 39  # as faiss asks for: with fewer videos there are fewer cells
AT_ONCE = 4096  # queries


@BATCHES.register("retrieval")
class Retrieval(EpochOrder):
    """Batches of a random video and `group - 1` of its nearest, drawn from `neighbours` of them.

    From epoch `first_epoch` on; before that as `shuffled`. A video may come in several batches of an epoch, and others
    in none. Where the cells that are looked into hold fewer videos than a batch needs, all are looked into. The order
    of an epoch stands in its checkpoints, so that a run that goes on within it need not embed again. It depends on the
    weights, RNG_SEED and the epoch alone.

    Keys:
        group: videos of a batch, a divisor of those of a step; 0: a step, as published that of a process, 64
        neighbours: nearest videos that a batch is drawn from, published as num_cands
        first_epoch: the first with such batches, counted from 0, published as retri_epoch
        index: ivf: the nearest in some of `cells` | exact: among all
        cells: of the index
        probes: cells that are looked into
    """

    def __init__(
        self,
        parts: Mapping[str, int],
        plan: Plan,
        seed: int,
        *,
        group: Whole = 0,
        neighbours: Count = 192,
        first_epoch: Count = 1,
        index: Literal["ivf", "exact"] = "ivf",
        cells: Count = 512,
        probes: Count = 1,
    ):
        if plan.machines > 1:
            raise UserError("BATCHES.NAME retrieval: with DATA.LOCAL_SHARDS choose shuffled or weighted")
        self.group = group or plan.share
        if plan.share % self.group:
            raise UserError(f"BATCHES.GROUP {group}: a step takes {plan.share} videos, expected a divisor of that")
        if neighbours < self.group - 1:
            raise UserError(
                f"BATCHES.NEIGHBOURS {neighbours}: a batch has {self.group} videos, expected {self.group - 1} or more"
            )
        _faiss()
        self.neighbours, self.first_epoch = neighbours, first_epoch
        self.cells, self.probes = (1, 1) if index == "exact" else (cells, probes)
        self.chosen_of = -1  # epoch whose order was chosen by embeddings
        super().__init__(parts, plan, seed)

    def begin_epoch(self, epoch: int, embed: Callable | None = None) -> None:
        if epoch == self.chosen_of:
            return
        rng = np.random.default_rng([self.seed, epoch])
        if epoch < self.first_epoch:
            self.order = permutations(rng, sum(self.parts.values()), self.length)
            return
        if embed is None:
            raise UserError("BATCHES.NAME retrieval needs a model to embed videos with, as training has; use shuffled")
        self.order = embed(lambda vectors, samples: self._chosen(vectors, samples, rng))
        self.chosen_of = epoch

    def _chosen(self, vectors: np.ndarray, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The order of the epoch, of `samples` [N] with their `vectors` float32 [N, D]."""
        if len(samples) < self.group:
            raise UserError(
                f"{len(samples)} videos could be embedded, but a batch has {self.group}; lower BATCHES.GROUP"
            )
        queries = permutations(rng, len(samples), self.steps * self.plan.share // self.group)
        index = index_of(vectors, self.cells, self.probes)
        found = nearest(index, vectors, queries, self.neighbours + 1, self.group)
        groups = []
        for query, near in zip(queries, found):
            others = near[near != query][: self.neighbours]
            groups += [query, *rng.choice(others, self.group - 1, replace=False)]
        order = samples[np.array(groups, np.int64)]
        log.info(
            "retrieval: %d batches of %d videos, %d of %d videos among them",
            len(queries),
            self.group,
            len(np.unique(order)),
            len(samples),
        )
        return order

    def step(self, number: int) -> list[list[int]]:
        """As for others, but micro-batches are dealt out in order, so that one of `group` videos is a batch."""
        own = self.plan.micro_batch * self.plan.micro_batches
        first = number * self.plan.share + self.plan.rank * own
        return self.order[first : first + own].reshape(self.plan.micro_batches, -1).tolist()

    def state(self) -> dict:
        """What a checkpoint within an epoch needs."""
        return {"epoch": self.chosen_of, "order": torch.from_numpy(self.order)} if self.chosen_of >= 0 else {}

    def restore(self, state: Mapping) -> None:
        """Takes over the order of an epoch that was begun."""
        if state:
            self.chosen_of, self.order = state["epoch"], state["order"].numpy()


def index_of(vectors: np.ndarray, cells: int, probes: int):
    """faiss' index of vectors float32 [N, D]: inverted lists by L2, or with one cell, or few vectors, all in one."""
    faiss = _faiss()
    cells = min(cells, len(vectors) // AT_LEAST)
    flat = faiss.IndexFlatL2(vectors.shape[1])
    if cells <= 1:
        flat.add(vectors)
        return flat
    index = faiss.IndexIVFFlat(flat, vectors.shape[1], cells, faiss.METRIC_L2)
    index.train(vectors[: cells * TRAINED_ON])
    index.add(vectors)
    index.nprobe = min(probes, cells)
    return index


def nearest(index, vectors: np.ndarray, queries: np.ndarray, count: int, least: int) -> list[np.ndarray]:
    """Of each query (a number of a vector) the numbers of up to `count` vectors near it, nearest first.

    It finds those in the cells that the index looks into; where these hold fewer than `least`, in all cells.
    """
    found = _search(index, vectors[queries], min(count, len(vectors)))
    few = [k for k, near in enumerate(found) if len(near) < least]
    if few:
        probes, index.nprobe = index.nprobe, index.nlist
        for k, near in zip(few, _search(index, vectors[queries[few]], least)):
            found[k] = near
        index.nprobe = probes
        log.info("retrieval: %d of %d batches looked into all cells, for theirs hold too few", len(few), len(found))
    return found


def _search(index, queries: np.ndarray, count: int) -> list[np.ndarray]:
    parts = [index.search(queries[k : k + AT_ONCE], count)[1] for k in range(0, len(queries), AT_ONCE)]
    return [row[row >= 0] for part in parts for row in part]


def _faiss():
    try:
        import faiss
    except ImportError:
        raise UserError(
            "BATCHES.NAME retrieval needs faiss, which is not here; pip install 'videorl[retrieval]', or use shuffled"
        ) from None
    return faiss
