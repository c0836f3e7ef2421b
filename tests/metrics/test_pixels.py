"""Patches of pixels against loops over the clip."""

import pytest
import torch

from videorl.metrics.pixels import Targets, painted, patches, places, unseen

PATCH = (2, 4, 4)
GRID = (2, 3, 2)  # of clips with 4 frames, 12 rows, 8 columns
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
TARGETS = Targets(PATCH)


def clips(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (2, 4, 3, 12, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


INDEX = torch.tensor([[0, 5, 7, 11], [1, 2, 6, 10]])


def slow_patch(clip: torch.Tensor, token: int) -> list[float]:
    """The pixels of one token in order of frame, row, column, colour."""
    t, rest = divmod(token, GRID[1] * GRID[2])
    h, w = divmod(rest, GRID[2])
    return [
        clip[t * PATCH[0] + frame, colour, h * PATCH[1] + row, w * PATCH[2] + column].item() / 255
        for frame in range(PATCH[0])
        for row in range(PATCH[1])
        for column in range(PATCH[2])
        for colour in range(3)
    ]


def test_patches_are_those_of_a_loop():
    pixels = clips()
    expected = torch.tensor([[slow_patch(clip, token) for token in row] for clip, row in zip(pixels, INDEX.tolist())])
    found = patches(pixels, INDEX, PATCH)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    assert patches(pixels.double(), INDEX, PATCH).dtype == torch.float64
    torch.testing.assert_close(patches(pixels.double(), INDEX, PATCH).float(), expected)


def test_clips_need_not_be_dense_in_memory():
    pixels = clips()
    strided = pixels.permute(0, 2, 1, 3, 4).contiguous().permute(0, 2, 1, 3, 4)
    assert not strided.is_contiguous()
    torch.testing.assert_close(patches(strided, INDEX, PATCH), patches(pixels, INDEX, PATCH))


def test_places_number_the_grid_by_time_row_and_column():
    found = torch.stack(places(torch.arange(12), *GRID[1:]), dim=1)
    assert found.tolist() == [[t, h, w] for t in range(2) for h in range(3) for w in range(2)]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_unseen_is_set_difference(share):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        order = torch.rand(3, 40, generator=generator).argsort(1)
        visible = order[:, : int(40 * share)].sort().values
        masked = torch.rand(3, 40, generator=generator).argsort(1)[:, :20].sort().values
        expected = [[m not in v for m in row] for v, row in zip(visible.tolist(), masked.tolist())]
        assert unseen(masked, visible).tolist() == expected


def test_standardised_by_patch_and_colour():
    values = patches(clips(), INDEX, PATCH).double()
    found = TARGETS.standardised(values)
    for b, k, colour in [(0, 0, 0), (0, 3, 2), (1, 1, 1)]:
        own = values[b, k, colour::3]
        expected = (own - own.mean()) / (own.var(unbiased=True).sqrt() + 1e-6)
        torch.testing.assert_close(found[b, k, colour::3], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("standard", [True, False])
def test_first_frames_are_standardised_over_all_colours(standard):
    targets = Targets(PATCH, standard, first_frame=True, mean=MEAN, std=STD)
    assert (targets.step, targets.shape, targets.size) == (2, (1, 4, 4), 48)
    found = targets(clips().double(), INDEX)
    for b, k in [(0, 0), (0, 3), (1, 1)]:
        frame = torch.tensor(slow_patch(clips()[b], int(INDEX[b, k])), dtype=torch.float64)[:48].view(16, 3)
        expected = (frame - torch.tensor(MEAN)) / torch.tensor(STD)
        if standard:
            expected = (expected - expected.mean()) / (expected.var(unbiased=True) + 1e-6).sqrt()
        torch.testing.assert_close(found[b, k], expected.flatten(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("first_frame", [True, False])
def test_a_flat_patch_becomes_zero(first_frame):
    flat = torch.full((1, 4, 3, 12, 8), 64, dtype=torch.uint8)
    assert Targets(PATCH, first_frame=first_frame)(flat, INDEX[:1]).abs().max() < 1e-3


def test_the_way_back():
    pixels, other = clips(), clips(1)
    values = patches(pixels, INDEX, PATCH)
    torch.testing.assert_close(
        TARGETS.restored(TARGETS.standardised(values.clone()), *TARGETS.statistics(values)), values
    )
    moved = painted(other, INDEX, values, PATCH)
    assert patches(moved, INDEX, PATCH).equal(values)
    rest = torch.tensor([[t for t in range(12) if t not in row] for row in INDEX.tolist()])
    assert patches(moved, rest, PATCH).equal(patches(other, rest, PATCH))
    assert other.equal(clips(1))


def test_the_way_back_of_first_frames():
    targets = Targets(PATCH, first_frame=True, mean=MEAN, std=STD)
    values = patches(clips()[:, ::2], INDEX, (1, 4, 4))
    scaled = targets.scaled(values)
    back = targets.restored(targets(clips(), INDEX), *targets.statistics(scaled))
    torch.testing.assert_close(targets.unscaled(back), values)


def test_painted_pixels_stay_in_range():
    values = torch.tensor([-0.5, 1.5]).repeat(2, 4, 48)
    painted_clips = painted(clips(), INDEX, values, PATCH)
    assert patches(painted_clips, INDEX, PATCH).unique().tolist() == [0.0, 1.0]
    assert painted(clips().float(), INDEX, values, PATCH).min().item() == pytest.approx(-127.5)
