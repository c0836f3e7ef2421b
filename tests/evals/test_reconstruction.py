"""The error of reconstructions against slow loops over pixels, and the pictures made of them."""

import numpy as np
import pytest
import torch

from videorl.evals.reconstruction import FRAMES, SHOWN, SIDE, Reconstruction, errors, pictures, reduced
from videorl.metrics.pixels import Targets, painted, patches
from videorl.registry import UserError
from videorl.spec import Clip, Masking, Spec, Views

T, S, PATCH = 4, 16, (2, 8, 8)
GRID = (2, 2, 2)
P = 2 * 8 * 8 * 3
TARGETS = Targets(PATCH)


def batch(seed: int = 0, clips: int = 2, overlap: bool = False) -> dict[str, torch.Tensor]:
    """Clips of which tokens 0 and 5, or 3 and 6, are visible; with `overlap` one of these is predicted too."""
    random = torch.Generator().manual_seed(seed)
    visible = torch.tensor([[0, 5], [3, 6]])[torch.arange(clips) % 2]
    masked = torch.stack([torch.tensor([k for k in range(8) if k not in row]) for row in visible.tolist()])
    if overlap:
        masked[:, 1] = visible[:, 1]
        masked = masked.sort(1).values
    pixels = torch.randint(0, 256, (clips, T, 3, S, S), generator=random, dtype=torch.uint8)
    return {"pixels": pixels, "visible": visible, "masked": masked, "index": torch.arange(clips),
            "view": torch.zeros(clips, dtype=torch.int64)}  # fmt: skip


class Constant:
    """Predicts these values."""

    def __init__(self, values: torch.Tensor):
        self.values = values

    def __call__(self, pixels, visible, masked) -> dict[str, torch.Tensor]:
        return {"predicted": self.values}


def evaluation(views: Views = Views(), **keys) -> Reconstruction:  # noqa: B008
    spec = Spec(Clip(T, 1, S, S), patch=PATCH, masking=Masking(0.75, **keys), views=views)
    return Reconstruction(spec)


def slow(one: dict, predicted: torch.Tensor, normalise: bool) -> tuple[float, float, int]:
    """Squared error, that of mean colours, and number of values, of a batch."""
    error, baseline, count = 0.0, 0.0, 0
    for b, pixels in enumerate(one["pixels"].numpy() / 255.0):
        for m, token in enumerate(one["masked"][b].tolist()):
            if token in one["visible"][b].tolist():
                continue
            t, y, x = (int(k) for k in np.unravel_index(token, GRID))
            patch = pixels[2 * t : 2 * t + 2, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
            guess = predicted[b, m].numpy().reshape(2, 8, 8, 3)
            for colour in range(3):
                values = patch[:, colour]
                if normalise:
                    values = (values - values.mean()) / (values.std(ddof=1) + 1e-6)
                error += ((guess[..., colour] - values) ** 2).sum()
                baseline += ((values - values.mean()) ** 2).sum()
                count += values.size
    return error, baseline, count


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("overlap", [True, False])
def test_metrics_equal_slow_loops(normalise, overlap):
    batches = [batch(0, overlap=overlap), batch(1, overlap=overlap)]
    predicted = torch.randn(2, 6, P, generator=torch.Generator().manual_seed(2))
    tested = evaluation(normalise=normalise)
    rows = [tested.step(Constant(predicted), one) for one in batches]
    joined = {k: torch.cat([r[k] for r in rows]).numpy() for k in rows[0]}
    joined["index"] = np.arange(4)
    found, per_video = tested.finish(joined)
    error, baseline, count = np.sum([slow(one, predicted, normalise) for one in batches], axis=0)
    assert count == joined["values"].sum()
    expected = {"explained": 1 - error / baseline, "mse": error / count, "baseline_mse": baseline / count}
    assert found == pytest.approx(expected, rel=1e-5)
    for k in range(4):
        alone = {key: value[k % 2 :][:1] for key, value in batches[k // 2].items()}
        error, baseline, count = slow(alone, predicted[k % 2 :][:1], normalise)
        assert per_video["mse"][k] == pytest.approx(error / count, rel=1e-5)
        assert per_video["baseline_mse"][k] == pytest.approx(baseline / count, rel=1e-5)


def test_perfect_and_empty_predictions():
    one = batch()
    target = TARGETS(one["pixels"], one["masked"])
    given = one["pixels"], one["visible"], one["masked"]
    assert float(errors(*given, target, TARGETS)["error"].sum()) == 0
    of_zero = errors(*given, torch.zeros_like(target), TARGETS)
    assert torch.allclose(of_zero["error"], of_zero["baseline"])
    assert float((of_zero["baseline"] / of_zero["values"]).mean()) == pytest.approx(127 / 128, rel=1e-4)


def test_clips_without_masks_are_refused():
    with pytest.raises(UserError, match=r"^EVALS: reconstruction reads masked clips, found MASK\.RATIO 0"):
        Reconstruction(Spec(Clip(T, 1, S, S), patch=PATCH))


def test_views_of_a_video_are_one_row():
    tested = evaluation(Views(2, 1))
    rows = {
        "index": np.repeat([3, 4], 2),
        "view": np.tile([0, 1], 2),
        "error": np.array([1.0, 3.0, 2.0, 2.0]),
        "baseline": np.array([4.0, 4.0, 4.0, 4.0]),
        "values": np.array([2.0, 2.0, 4.0, 4.0]),
    }
    found, per_video = tested.finish(rows)
    assert per_video["index"].tolist() == [3, 4]
    assert per_video["mse"].tolist() == [1.0, 0.5]
    assert found == {"explained": 0.5, "mse": 8 / 12, "baseline_mse": 16 / 12}
    assert "2 views" in tested.protocol
    assert "75% of the patches hidden (tube)" in tested.protocol


def test_true_statistics_give_back_the_clip_and_those_of_neighbours_do_not():
    one = batch()
    target = TARGETS(one["pixels"], one["masked"])
    made = pictures(one["pixels"], one["visible"], one["masked"], target, TARGETS)
    original, seen, guessed, true = made.unbind(1)
    assert torch.equal(original, one["pixels"])
    assert torch.equal(true, one["pixels"])
    assert not torch.equal(guessed, one["pixels"])
    for picture in (seen, guessed, true):
        assert torch.equal(*(patches(p, one["visible"], PATCH) for p in (picture, one["pixels"])))
    assert patches(seen, one["masked"], PATCH).unique().tolist() == pytest.approx([128 / 255])


def test_the_reconstruction_knows_nothing_of_hidden_pixels():
    one = batch()
    other = painted(one["pixels"], one["masked"], torch.rand(2, 6, P), PATCH)
    assert not torch.equal(other, one["pixels"])
    given = [{**_given(one), "pixels": pixels} for pixels in (one["pixels"], other)]
    assert torch.equal(*(pictures(**g, predicted=torch.ones(2, 6, P))[:, 2] for g in given))


def test_statistics_come_from_near_patches():
    one = batch(clips=1)  # tokens 0 (first frames, upper left) and 5 (later frames, upper right) are visible
    one["pixels"][:] = 0
    one["pixels"][:, 2:] = 200
    made = pictures(**_given(one), predicted=torch.zeros(1, 6, P))[0, 2].float()
    assert made[0, 0, 12, 4] < 50 < 150 < made[2, 0, 12, 12]
    assert made[0, 0, 12, 4] == made[1, 0, 12, 4]


def test_what_is_hidden_and_not_predicted_stays_grey():
    one = batch(clips=1)
    one["masked"] = one["masked"][:, :3]
    made = pictures(**_given(one), predicted=torch.zeros(1, 3, P))[0]
    left = torch.tensor([[k for k in range(8) if k not in one["masked"][0].tolist() + one["visible"][0].tolist()]])
    for picture in made[2:]:
        assert (patches(picture[None], left, PATCH) * 255 == 128).all()


def _given(one: dict) -> dict:
    return {**{k: one[k] for k in ("pixels", "visible", "masked")}, "targets": TARGETS}


def test_of_first_frames_only_these_are_shown():
    one = batch()
    targets = Targets(PATCH, first_frame=True)
    perfect = targets(one["pixels"], one["masked"])
    made = pictures(**{**_given(one), "targets": targets}, predicted=perfect)
    original, seen, guessed, true = made.unbind(1)
    assert torch.equal(original, one["pixels"][:, ::2])
    assert torch.equal(true, original)
    assert not torch.equal(guessed, original)
    assert patches(seen, one["masked"], (1, 8, 8)).unique().tolist() == pytest.approx([128 / 255])
    found = errors(*(one[k] for k in ("pixels", "visible", "masked")), perfect, targets)
    assert float(found["error"].sum()) == 0
    assert found["values"].tolist() == [6 * 8 * 8 * 3] * 2
    assert "every 2nd frame alone, pixels standardised by patch;" in evaluation(target="frame").protocol


def test_the_first_videos_are_kept_as_pictures():
    tested = evaluation()
    rows = []
    for first in (0, 6, 12):
        one = batch(first, clips=6)
        one["index"] += first
        rows.append(tested.step(Constant(torch.zeros(6, 6, P)), one))
    joined = {k: torch.cat([r[k] for r in rows]).numpy() for k in rows[0]}
    kept = {k: v[joined["index"] != 2] for k, v in joined.items()}  # as if sample 2 had been unreadable
    tested.pictures.pop(2)
    _, per_video = tested.finish(kept)
    assert per_video["pictures"].shape == (SHOWN - 1, 4, T, S, S, 3)
    assert per_video["index"][per_video["pictured"]].tolist() == [0, 1, 3, 4, 5, 6, 7]
    first = batch(0, clips=6)["pixels"][0].permute(0, 2, 3, 1)
    assert np.array_equal(per_video["pictures"][0, 0], first.numpy())
    assert not tested.pictures, "the next run keeps its own"


def test_pictures_are_reduced():
    clips = torch.zeros(4, 16, 3, 2 * SIDE, 2 * SIDE, dtype=torch.uint8)
    clips[:, -1, :, ::2] = 100
    small = reduced(clips)
    assert small.shape == (4, FRAMES, 3, SIDE, SIDE)
    assert (small[:, -1] == 50).all()
    assert (small[:, :-1] == 0).all()
