import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl import config
from videorl.clip import mixup
from videorl.engine import build
from videorl.loading.batches import Plan
from videorl.registry import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import assert_close, assert_summary, limits, load_case  # noqa: E402

SETTINGS = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 1.0, "switch_prob": 0.5, "height": 16, "width": 16}


class NumpyRandom(np.random.RandomState):
    """The draws of the published code: NumPy's legacy generator."""

    def integers(self, low, high):
        return self.randint(low, high)


def test_equals_pyslowfast():
    case = load_case(GOLDEN / "data" / "mixup_cutmix.pt")
    video, labels = case["inputs"]["x"], case["inputs"]["y"]
    kinds = set()
    for given_, expected in zip(case["inputs"]["cases"], case["expected"]["cases"], strict=True):
        mix = mixup.draw(
            NumpyRandom(given_["numpy_seed"]),
            mixup_alpha=given_["mixup_alpha"],
            cutmix_alpha=given_["cutmix_alpha"],
            prob=given_["mix_prob"],
            switch_prob=given_["switch_prob"],
            height=16,
            width=16,
        )
        kinds.add(mix.box is None)
        atol, rtol = limits(case)
        assert_close(mixup.mix_video(video, mix), expected["x"], atol, rtol)
        smoothed = mixup.smooth(labels, [given_["num_classes"]], given_["label_smoothing"])
        targets = mixup.mix_rows(smoothed, mix)
        assert_close(targets, expected["y"], atol, rtol)
    assert kinds == {True, False}


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 40), st.integers(4, 40))
def test_lam_is_the_share_of_own_pixels(seed, height, width):
    mix = mixup.draw(np.random.default_rng(seed), **{**SETTINGS, "mixup_alpha": 0.0, "height": height, "width": width})
    video = torch.stack([torch.zeros(3, 2, height, width), torch.ones(3, 2, height, width)])
    share_of_partner = mixup.mix_video(video, mix)[0].mean().item()
    assert share_of_partner == pytest.approx(1 - mix.lam, abs=1e-6)
    assert 0 <= mix.lam <= 1


def test_draws_have_the_asked_for_chances():
    rng = np.random.default_rng(0)
    mixes = [mixup.draw(rng, **{**SETTINGS, "prob": 0.6, "switch_prob": 0.25}) for _ in range(4000)]
    mixed = [m for m in mixes if m.lam != 1.0]
    assert len(mixed) / len(mixes) == pytest.approx(0.6, abs=0.03)
    assert sum(m.box is not None for m in mixed) / len(mixed) == pytest.approx(0.25, abs=0.03)


def test_one_alpha_chooses_the_kind_and_no_alpha_mixes_nothing():
    rng = np.random.default_rng(0)
    assert all(mixup.draw(rng, **{**SETTINGS, "cutmix_alpha": 0.0}).box is None for _ in range(20))
    assert all(mixup.draw(rng, **{**SETTINGS, "mixup_alpha": 0.0}).box is not None for _ in range(20))
    nothing = mixup.draw(rng, **{**SETTINGS, "mixup_alpha": 0.0, "cutmix_alpha": 0.0})
    video = torch.rand(3, 3, 2, 4, 4)
    assert nothing == mixup.Mix(1.0)
    assert mixup.mix_video(video, nothing) is video


def test_several_labels_mix_like_single_ones():
    mix = mixup.Mix(0.3)
    labels = torch.tensor([2, 0, 1])
    one_hot = torch.eye(4)[labels]
    expected = mixup.mix_rows(mixup.smooth(labels, [4], 0.1), mix)
    assert torch.allclose(mixup.mix_rows(mixup.smooth(one_hot, [4], 0.1), mix), expected)
    assert torch.allclose(expected.sum(1), torch.ones(3))


def test_published_way_of_several_label_spaces():
    case = load_case(GOLDEN / "multitrain" / "mixup_multi_head.pt")
    video = case["inputs"]["x"]
    for given_, expected in zip(case["inputs"]["cases"], case["expected"]["cases"], strict=True):
        labels = given_["labels"]
        sizes = tuple(part.shape[1] for part in labels.values())
        mix = mixup.draw(NumpyRandom(given_["numpy_seed"]), **{**SETTINGS, "height": 8, "width": 8})
        mixer = mixup.Mixer(0, sizes, 0.1, {}, paper_classes=700)
        found = mixer.targets(torch.cat(list(labels.values()), 1), torch.ones(9, 3), mix)
        assert list(found) == ["labels"], "the published code leaves the masks as they are"
        atol, rtol = limits(case)
        assert_close(found["labels"], torch.cat(list(expected["labels"].values()), 1), atol, rtol)
        assert_summary(mixup.mix_video(video, mix), expected["x"], atol, rtol)


def test_a_sample_keeps_its_whole_target_when_the_partner_is_of_another_data_set():
    sizes, own = (4, 3), torch.tensor([0, 1, 0, 1])
    spaces = torch.eye(2)[own]
    labels = torch.zeros(4, 7)
    labels[torch.arange(4), torch.tensor([2, 4, 0, 6])] = 1.0
    found = mixup.Mixer(0, sizes, 0.1, {}).targets(labels, spaces, mixup.Mix(0.7))
    assert torch.allclose(found["labels"].sum(1), torch.ones(4))
    for d, part in enumerate(found["labels"].split(sizes, 1)):
        assert torch.allclose(part.sum(1), found["spaces"][:, d]), "targets of a head sum to its share of the sample"
    # Sample 0 (class 2 of 4 in the first space) with sample 3 (class 2 of 3 in the second).
    first = torch.tensor([0.1 / 4, 0.1 / 4, 0.9 + 0.1 / 4, 0.1 / 4]) * 0.7
    second = torch.tensor([0.1 / 3, 0.1 / 3, 0.9 + 0.1 / 3]) * 0.3
    assert torch.allclose(found["labels"][0], torch.cat([first, second]))


def test_masked_clips_are_not_mixed():
    cfg = config.load([], ["MIXUP.ENABLE", "True", "MASK.RATIO", "0.9"])
    with pytest.raises(UserError, match=r"^MIXUP .* MASK\.RATIO 0\.9: .*MODEL_NAME ViT and MASK\.RATIO 0$"):
        build._mixer(cfg, Plan(2, 1))


def test_inputs_stay_as_they_were():
    video = torch.rand(2, 3, 2, 8, 8)
    before = video.clone()
    mixup.mix_video(video, mixup.Mix(0.5, (0, 4, 0, 8)))
    mixup.mix_video(video, mixup.Mix(0.5))
    assert torch.equal(video, before)
