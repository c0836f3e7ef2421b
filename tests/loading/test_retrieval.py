"""Batches of neighbours: those that faiss gave the published code, and what must hold of any."""

import sys
from pathlib import Path

import numpy as np
import pytest

from videorl.loading import retrieval
from videorl.loading.batches import Plan
from videorl.loading.retrieval import Retrieval, index_of, nearest
from videorl.registry import UserError

faiss = pytest.importorskip("faiss")

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import load_case  # noqa: E402

VECTORS = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)


def test_neighbours_as_published():
    case = load_case(GOLDEN / "norton/retrieval_augmented_batches.pt")
    given, expected = case["inputs"], case["expected"]
    vectors, centres, names = given["vectors"].numpy(), given["centroids"].numpy(), np.array(given["ids"])
    quantizer = faiss.IndexFlatL2(vectors.shape[1])
    quantizer.add(centres)
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], len(centres), faiss.METRIC_L2)
    index.is_trained = True
    index.add(vectors)
    found = nearest(index, vectors, np.arange(48), given["neighbours"], 1)
    assert [names[near].tolist() for near in found] == [expected["ivf"][name] for name in given["ids"]]
    exact = nearest(index_of(vectors, 1, 1), vectors, np.arange(48), given["neighbours"], 1)
    assert [names[near].tolist() for near in exact] == expected["exact"]
    # Where a cell holds too few, all are looked into, and nearest of all are what is found.
    filled = nearest(index, vectors, np.arange(48), given["neighbours"], 12)
    few = [k for k, near in enumerate(found) if len(near) < 12]
    assert few
    assert all(np.array_equal(filled[k], exact[k]) for k in few)
    assert index.nprobe == 1


def test_the_index_has_cells_where_there_are_videos_enough():
    index = index_of(VECTORS, 5, 2)
    assert (index.nlist, index.nprobe) == (5, 2)
    assert (index_of(VECTORS, 512, 4).nlist, index_of(VECTORS, 512, 100).nprobe) == (10, 10)
    assert isinstance(index_of(VECTORS[:50], 512, 1), faiss.IndexFlatL2)


def batches(world=1, micro_batch=8, count=400, **keys) -> list[Retrieval]:
    made = [Retrieval({"x": count}, Plan(micro_batch // world, 1, rank, world), 3, **keys) for rank in range(world)]
    vectors = VECTORS[:count]
    for of_rank in made:
        of_rank.begin_epoch(2, lambda choose: choose(vectors, np.arange(count)))
    return made


@pytest.mark.parametrize("keys", [{"cells": 4}, {"index": "exact"}, {"group": 4, "cells": 4, "probes": 2}])
def test_a_batch_is_a_video_and_videos_near_it(keys):
    (made,) = batches(neighbours=12, **keys)
    groups = made.order.reshape(-1, keys.get("group", 8))
    assert len(groups) == 400 // groups.shape[1]
    assert all(len(set(group)) == len(group) for group in groups.tolist())
    index = index_of(VECTORS, 1 if "index" in keys else 4, keys.get("probes", 1))
    near = nearest(index, VECTORS, groups[:, 0], 13, groups.shape[1])
    assert all(set(group) <= set(found) for group, found in zip(groups.tolist(), near))
    assert len(set(groups[:, 0].tolist())) == len(groups)
    random = np.linalg.norm(VECTORS[:8, None] - VECTORS[:8], axis=2).mean()
    assert np.linalg.norm(VECTORS[groups[:, :1]] - VECTORS[groups], axis=2).mean() < 0.7 * random


@pytest.mark.parametrize("count", [8, 11, 60])
def test_few_videos_make_batches(count):
    (made,) = batches(count=count)
    assert len(made.order) == count // 8 * 8
    assert all(len(set(group)) == 8 for group in made.order.reshape(-1, 8).tolist())


def test_ranks_and_resumed_runs_have_the_same_batches():
    (one,) = batches(neighbours=20)
    steps = [sorted(chunks[0]) for chunks in one]
    for world in (2, 4):
        of_ranks = zip(*batches(world, neighbours=20))
        assert [sorted(sum((chunks[0] for chunks in ranks), [])) for ranks in of_ranks] == steps
    again = Retrieval({"x": 400}, Plan(8, 1), 3)
    again.restore(one.state())
    again.begin_epoch(2, None)  # nothing is embedded
    assert list(again) == list(one)
    asked = []
    again.begin_epoch(3, lambda choose: asked.append(3) or choose(VECTORS, np.arange(400)))
    assert asked == [3]
    assert list(again) != list(one)
    again.begin_epoch(0)
    assert sorted(again.order.tolist()) == list(range(400))


def test_a_micro_batch_of_a_group_is_a_batch_of_neighbours():
    """So that a loss that tells apart the clips of a process, as the published one does, has hard ones."""
    ranks = [Retrieval({"x": 400}, Plan(4, 1, rank, 2), 3, group=4) for rank in range(2)]
    for made in ranks:
        made.begin_epoch(1, lambda choose: choose(VECTORS, np.arange(400)))
    dealt = [chunk for chunks in zip(*ranks) for rank in chunks for chunk in rank]
    assert dealt == ranks[0].order.reshape(-1, 4).tolist()


def test_videos_without_a_vector_are_in_no_batch():
    made = Retrieval({"x": 40}, Plan(8, 1), 3)
    readable = np.arange(0, 40, 2)
    made.begin_epoch(1, lambda choose: choose(VECTORS[:20], readable))
    assert set(made.order.tolist()) <= set(readable.tolist())
    with pytest.raises(UserError, match="7 videos could be embedded, but a batch has 8; lower BATCHES.GROUP"):
        made.begin_epoch(2, lambda choose: choose(VECTORS[:7], readable[:7]))


def test_what_cannot_be_is_said(monkeypatch):
    with pytest.raises(UserError, match="GROUP 3: a step takes 8 videos"):
        Retrieval({"x": 40}, Plan(8, 1), 3, group=3)
    with pytest.raises(UserError, match="NEIGHBOURS 5: a batch has 8 videos, expected 7 or more"):
        Retrieval({"x": 40}, Plan(8, 1), 3, neighbours=5)
    with pytest.raises(UserError, match="LOCAL_SHARDS"):
        Retrieval({"x": 40}, Plan(8, 1, machines=2), 3)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"needs faiss, which is not here; pip install 'videorl\[retrieval\]'"):
        retrieval.Retrieval({"x": 40}, Plan(8, 1), 3)
