"""Masks of masked autoencoders, against the published generators and by counting."""

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.clip import masks
from videorl.registry import UserError
from videorl.spec import Clip, Masking, Spec

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import load_case  # noqa: E402

EXPECTED = load_case(GOLDEN / "videomae" / "masks.pt")["expected"]
PUBLISHED = (8, 14, 14)


def spec_of(masking, *, frames=16, size=224, patch=(2, 16, 16)):
    return Spec(Clip(frames, 4, size, size), patch=patch, masking=masking)


@pytest.mark.parametrize("key", EXPECTED["tube"])
def test_tubes_equal_videomae_for_the_same_shuffle(key):
    frames, rows, columns, ratio, seed = re.fullmatch(r"tube (\d+)x(\d+)x(\d+) ratio ([\d.]+) seed (\d+)", key).groups()
    grid = (int(frames), int(rows), int(columns))
    order = np.arange(grid[1] * grid[2])
    np.random.RandomState(int(seed)).shuffle(order)
    visible = masks.seen(order, grid, Masking(float(ratio), rounding="mask"))
    hidden_in_each_frame = ~visible.reshape(grid[0], -1)
    assert (hidden_in_each_frame == EXPECTED["tube"][key].bool().numpy()).all()


def test_kept_tokens_equal_both_published_roundings():
    for places, ratio, vswift, videomae in EXPECTED["kept"].tolist():
        assert masks.kept(int(places), Masking(ratio, rounding="keep")) == vswift
        assert masks.kept(int(places), Masking(ratio, rounding="mask")) == videomae


def test_running_cells_equal_videomae_v2():
    for phase, expected in enumerate(EXPECTED["running_cell"].bool().numpy()):
        assert (masks.running_cell(PUBLISHED, phase).reshape(8, 196) == expected).all()


def test_the_decoder_takes_each_of_the_four_maps_as_often():
    masking = Masking(0.9, decoder="running_cell")
    rng = np.random.default_rng(0)
    found = [masks.draw(rng, PUBLISHED, masking)[1].tobytes() for _ in range(400)]
    expected = [np.flatnonzero(map_ == 0).tobytes() for map_ in EXPECTED["running_cell"].reshape(4, -1).numpy()]
    assert set(found) == set(expected)
    assert min(map(found.count, expected)) > 70


grids = st.tuples(st.integers(1, 8), st.integers(1, 7).map(lambda n: 2 * n), st.integers(1, 7).map(lambda n: 2 * n))


@settings(max_examples=150, deadline=None)
@given(
    grids,
    st.floats(0.05, 0.95),
    st.sampled_from(masks.CHOICES["kind"]),
    st.sampled_from(masks.CHOICES["rounding"]),
    st.sampled_from(masks.CHOICES["decoder"]),
    st.integers(0, 99),
)
def test_masks_are_ascending_of_fixed_length_and_share_nothing_unless_cells_run(
    grid, ratio, kind, rounding, decoder, seed
):
    masking = Masking(ratio, kind, rounding, decoder)
    visible, masked = masks.draw(np.random.default_rng(seed), grid, masking)
    tokens = grid[0] * grid[1] * grid[2]
    for numbers in (visible, masked):
        assert numbers.dtype == np.int64
        assert (np.diff(numbers) > 0).all()
        assert set(numbers) <= set(range(tokens))
    per_frame = grid[1] * grid[2]
    kept = masks.kept(per_frame, masking) * grid[0] if kind == "tube" else masks.kept(tokens, masking)
    assert len(visible) == kept
    if decoder == "all":
        assert sorted([*visible, *masked]) == list(range(tokens))
    else:
        assert len(masked) == tokens // 2
    if kind == "tube":
        frames = visible.reshape(grid[0], -1)
        assert (frames - per_frame * np.arange(grid[0])[:, None] == frames[0]).all()


def test_every_place_is_hidden_as_often():
    rng = np.random.default_rng(0)
    for kind in masks.CHOICES["kind"]:
        counts = np.zeros(4 * 4 * 4)
        for _ in range(2000):
            counts[masks.draw(rng, (4, 4, 4), Masking(0.75, kind))[0]] += 1
        assert abs(counts / 2000 - 0.25).max() < 0.05  # five standard deviations


@pytest.mark.parametrize(
    ("masking", "expected"),
    [
        (Masking(0.9), (152, 1416)),
        (Masking(0.9, rounding="mask"), (160, 1408)),
        (Masking(0.9, rounding="mask", decoder="running_cell"), (160, 784)),
        (Masking(0.9, kind="random"), (156, 1412)),
    ],
)
def test_lengths_of_the_published_grid(masking, expected):
    assert masks.lengths(spec_of(masking)) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 1.0}, r"MASK\.RATIO 1\.0: expected above 0 and below 1 \(0: no masks, for other models\)"),
        ({"ratio": -0.1}, r"MASK\.RATIO -0\.1: expected"),
        ({"ratio": float("nan")}, r"MASK\.RATIO nan: expected"),
        ({"ratio": 0.999}, r"MASK\.RATIO 0\.999 leaves 0 of 196 tokens visible"),
        ({"ratio": 0.001, "rounding": "mask"}, r"MASK\.RATIO 0\.001 leaves 196 of 196 tokens visible"),
        ({"kind": "tubes"}, r"MASK\.KIND 'tubes': expected tube or random; did you mean tube\?"),
        ({"rounding": "floor"}, r"MASK\.ROUNDING 'floor': expected keep or mask"),
        ({"decoder": "cell"}, r"MASK\.DECODER 'cell': expected all or running_cell"),
    ],
)
def test_masks_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        masks.checked_grid(spec_of(dataclasses.replace(Masking(0.9), **changes)), 224)


@pytest.mark.parametrize("changes", [{"frames": 15}, {"size": 100}, {"patch": (3, 16, 16)}, {"patch": (2, 15, 16)}])
def test_patches_that_do_not_fill_the_clip_are_refused(changes):
    spec = spec_of(Masking(0.9), **changes)
    for check in (masks.token_grid, masks.checked_grid):
        with pytest.raises(UserError, match=r"clips of .*\): expected multiples of MODEL\.PATCH_SIZE .*; change DATA"):
            check(spec, spec.clip.train_size)


def test_running_cells_need_even_rows_and_columns():
    masking = Masking(0.75, decoder="running_cell")
    with pytest.raises(UserError, match=r"expected even rows and columns of tokens, found 7 x 7"):
        masks.checked_grid(spec_of(masking, size=112), 112)
    assert masks.checked_grid(spec_of(masking), 128) == (8, 8, 8)
