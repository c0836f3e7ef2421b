"""Batches: every rank its own part of one order, and the same steps for any number of ranks and micro-batches."""

from collections import Counter

import numpy as np
import pytest

from videorl.loading.batches import Plan, Quota, Shuffled, Weighted
from videorl.registry import UserError

LENGTH, SEED = 103, 7


def ranks(micro_batch: int, micro_batches: int, world: int, epoch: int = 0) -> list[list[list[list[int]]]]:
    """For each rank, for each step, its micro-batches."""
    made = []
    for rank in range(world):
        batches = Shuffled({"all": LENGTH}, Plan(micro_batch, micro_batches, rank, world), SEED)
        batches.begin_epoch(epoch)
        made.append(list(batches))
        assert len(made[-1]) == batches.steps
    return made


SPLITS = [(m, n, w) for w in (1, 2, 3) for n in (1, 2, 4) for m in (1, 2, 3, 4, 6)]


@pytest.mark.parametrize(("micro_batch", "micro_batches", "world"), SPLITS)
def test_ranks_get_disjoint_lists_of_equal_number(micro_batch, micro_batches, world):
    made = ranks(micro_batch, micro_batches, world)
    steps = LENGTH // (micro_batch * micro_batches * world)
    assert [len(rank) for rank in made] == [steps] * world
    assert all(len(step) == micro_batches for rank in made for step in rank)
    assert all(len(chunk) == micro_batch for rank in made for step in rank for chunk in step)
    seen = [i for rank in made for step in rank for chunk in step for i in chunk]
    assert len(seen) == len(set(seen)) == steps * micro_batch * micro_batches * world
    assert set(seen) <= set(range(LENGTH))
    assert all(type(i) is int for i in seen), "numpy integers do not travel as json"


@pytest.mark.parametrize("size", [12, 24])
def test_a_step_takes_the_same_samples_however_it_is_split(size):
    order = np.random.default_rng([SEED, 2]).permutation(LENGTH)
    expected = [set(order[k : k + size].tolist()) for k in range(0, LENGTH - size + 1, size)]
    tried = 0
    for world in (1, 2, 3):
        for micro_batches in (1, 2, 3, 4):
            if size % (world * micro_batches):
                continue
            made = ranks(size // (world * micro_batches), micro_batches, world, epoch=2)
            steps = [{i for rank in made for chunk in rank[k] for i in chunk} for k in range(len(expected))]
            assert steps == expected, (world, micro_batches)
            tried += 1
    assert tried >= 8


@pytest.mark.parametrize("split", [(12, 1, 1), (6, 2, 1), (2, 3, 2), (4, 1, 3), (2, 2, 3), (2, 6, 1)])
def test_mirror_pairs_stay_together_and_mirrored(split):
    """MixUp pairs row k of a batch with row -1 - k: the pairs must be those of the whole step for any split."""
    whole = ranks(12, 1, 1)[0]
    pairs = [{(a, b) for a, b in zip(step[0], reversed(step[0]))} for step in whole]
    made = ranks(*split)
    for k, wanted in enumerate(pairs):
        chunks = [chunk for rank in made for chunk in rank[k]]
        assert {(a, b) for chunk in chunks for a, b in zip(chunk, reversed(chunk))} == wanted


def test_a_step_is_made_alone_and_of_this_rank_alone():
    """By the rule as it is told: chunks of the first half and of its mirror image, of which a rank has some."""
    samples = np.random.default_rng(0).permutation(48)
    for micro_batch, micro_batches, world in ((4, 3, 4), (3, 4, 4), (6, 8, 1)):
        total, half = micro_batches * world, micro_batch // 2
        chunks = samples.reshape(total, -1)
        if micro_batch % 2 == 0:
            first, mirror = samples[:24].reshape(total, half), samples[24:].reshape(total, half)[::-1]
            chunks = np.concatenate([first, mirror], axis=1)
        for rank in range(world):
            plan = Plan(micro_batch, micro_batches, rank, world)
            own = chunks[rank * micro_batches : (rank + 1) * micro_batches]
            assert plan.chunks(samples) == own.tolist()
    batches = Shuffled({"all": 10**6}, Plan(4, 1), SEED)
    assert batches.step(249_999)[0][0] == batches.order[999_996]


def test_the_order_depends_on_seed_and_epoch_alone():
    batches = Shuffled({"all": LENGTH}, Plan(4, 2), SEED)
    first = list(batches)
    batches.begin_epoch(3)
    third = list(batches)
    assert list(batches) == third, "a second pass gives the same"
    batches.begin_epoch(0)
    assert list(batches) == first
    fresh = Shuffled({"all": LENGTH}, Plan(4, 2), SEED)
    fresh.begin_epoch(3)
    assert list(fresh) == third != first
    assert list(Shuffled({"all": LENGTH}, Plan(4, 2), SEED + 1)) != first


def test_a_sample_left_out_of_one_epoch_comes_in_another():
    batches = Shuffled({"all": 10}, Plan(4, 1), SEED)
    left = []
    for epoch in range(30):
        batches.begin_epoch(epoch)
        left.append(set(range(10)) - {i for step in batches for chunk in step for i in chunk})
    assert all(len(out) == 2 for out in left)
    assert set.union(*left) == set(range(10))


def test_a_step_must_fit_into_the_data_set():
    assert Shuffled({"all": 24}, Plan(3, 2, 1, 4), SEED).steps == 1
    with pytest.raises(UserError) as error:
        Shuffled({"all": 23}, Plan(3, 2, 1, 4), SEED)
    said = str(error.value)
    assert "has 23 videos but one step takes 24 (3 x 2 micro-batches x 4 processes); lower TRAIN.BATCH_SIZE" in said


PARTS = {"a": 50, "b": 20, "c": 7}


def origin(sample: int) -> str:
    return "a" if sample < 50 else "b" if sample < 70 else "c"


def test_weighted_takes_the_given_shares():
    batches = Weighted(PARTS, Plan(4, 1), SEED, weights=[1.0, 2.0, 1.0], epoch_length=80)
    batches.begin_epoch(3)
    samples = [i for step in batches for chunk in step for i in chunk]
    assert len(samples) == 80
    assert Counter(map(origin, samples)) == {"a": 20, "b": 40, "c": 20}
    counts = Counter(samples)
    assert all(counts[i] in (2, 3) for i in range(70, 77)), "each once before any comes again"
    assert Weighted(PARTS, Plan(1, 1), SEED, weights=[1.0, 1.0, 1.0]).steps == 77


def test_quota_holds_in_every_step_for_any_split():
    orders = []
    for plan in (Plan(8, 1), Plan(4, 2)):
        batches = Quota(PARTS, plan, SEED, quota=[4, 2, 2])
        batches.begin_epoch(1)
        steps = [[i for chunk in step for i in chunk] for step in batches]
        assert len(steps) == batches.steps == 13, "until all 50 of a were seen, 4 a step"
        assert all(Counter(map(origin, step)) == {"a": 4, "b": 2, "c": 2} for step in steps)
        assert {i for step in steps for i in step} == set(range(77))
        orders.append([set(step) for step in steps])
    assert orders[0] == orders[1]


def test_wrong_shares_are_one_clear_line():
    with pytest.raises(UserError, match=r"QUOTA \[4, 2, 1\] is 7 videos a step, but a step takes 8"):
        Quota(PARTS, Plan(8, 1), SEED, quota=[4, 2, 1])
    with pytest.raises(UserError, match=r"WEIGHTS \[1.0\]: expected one number for each of a, b, c"):
        Weighted(PARTS, Plan(8, 1), SEED, weights=[1.0])
