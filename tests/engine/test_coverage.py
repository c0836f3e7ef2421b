"""Whatever the number of ranks, an epoch takes each training video at most once, and a test each view exactly once.

The published V-SWIFT lets every rank draw its own order and take its own slice of it: with 8 ranks an epoch touches
65.3 % of the videos, 26 % of them twice or more, and a test 65.6 % of the views. Here it is 100 % of both, but for the
videos that do not fill the last step of an epoch.
"""

from collections import Counter

import numpy as np
import pytest

from videorl import dist
from videorl.engine.evaluate import Evaluation
from videorl.loading.batches import Plan, Shuffled
from videorl.spec import Views

WORLDS = [1, 2, 3, 8, 64]
STEP = 384  # a multiple of all of them
SEED = 7


def epoch_of(world: int, length: int, epoch: int, step: int) -> list[list[int]]:
    """The samples of each step of an epoch, of all ranks."""
    steps: list[list[int]] = []
    for rank in range(world):
        batches = Shuffled({"videos": length}, Plan(step // world, 1, rank, world), SEED)
        batches.begin_epoch(epoch)
        mine = [[i for chunk in chunks for i in chunk] for chunks in batches]
        steps = [a + b for a, b in zip(steps, mine, strict=True)] if steps else mine
    return steps


@pytest.mark.parametrize("length", [384, 385, 1000, 1151, 2311])
@pytest.mark.parametrize("world", WORLDS)
def test_an_epoch_takes_each_video_once(world, length):
    seen = Counter(i for step in epoch_of(world, length, 3, STEP) for i in step)
    assert set(seen.values()) == {1}
    assert len(seen) == length - length % STEP
    assert seen.keys() <= set(range(length))


@pytest.mark.parametrize("world", WORLDS)
def test_the_steps_are_the_same_for_any_number_of_ranks(world):
    for epoch in (0, 5):
        one, all_ranks = epoch_of(1, 1151, epoch, STEP), epoch_of(world, 1151, epoch, STEP)
        assert [sorted(step) for step in all_ranks] == [sorted(step) for step in one]


def test_the_published_way_would_be_noticed():
    """8 ranks, each with its own order: the share of videos that an epoch touches is 1 - (1 - 1 / 8) ** 8."""
    length, world = 8 * 2000, 8
    slices = [np.random.default_rng([SEED, r]).permutation(length)[r::world] for r in range(world)]
    assert len(set(np.concatenate(slices).tolist())) / length == pytest.approx(0.656, abs=0.01)


@pytest.mark.parametrize(("clips", "crops"), [(1, 1), (2, 3), (5, 3)])
@pytest.mark.parametrize("length", [1, 7, 63, 64, 65, 1009])
@pytest.mark.parametrize("world", WORLDS)
def test_each_test_view_comes_once(monkeypatch, world, length, clips, crops):
    evaluation = Evaluation.__new__(Evaluation)
    evaluation.dataset, evaluation.views, evaluation.clips = range(length), Views(clips, crops), 12
    monkeypatch.setattr(dist, "world_size", lambda: world)
    seen, batches = Counter(), []
    for rank in range(world):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        jobs = evaluation._jobs()
        batches += [job.samples for job in jobs]
        seen.update(i for job in jobs for i in job.samples)
    assert seen == Counter(range(length)), "a sample comes with all its views"
    size = max(1, 12 // (clips * crops))
    assert sorted(batches) == [list(range(k, min(k + size, length))) for k in range(0, length, size)]
