"""What the device makes of the regions that workers hand over: the clip that they would have made of the same draws."""

import dataclasses

import numpy as np
import pytest
import torch

from videorl.clip import regions, transforms
from videorl.clip.mixup import Mix, mix_video
from videorl.clip.transforms import TrainTransform, Window
from videorl.engine.pictures import clip_strip
from videorl.engine.step import normalise, to_device
from videorl.loading.worker import collate
from videorl.spec import Augment, Clip

CPU, CLIP = torch.device("cpu"), Clip(2, 1, 24, 24)
MULTI_SCALE = Augment(crop_scales=(1, 0.875, 0.75, 0.66))
RESIZED = Augment(area=(0.08, 1.0), aspect=(0.75, 1.3333))
SHORT_SIDE = Augment(scales=(48, 60), inverse_uniform=True)
SHRUNK = Augment(scales=(33, 35))


def noise(height: int, width: int, frames: int = 2) -> torch.Tensor:
    draw = torch.Generator().manual_seed(height)
    return torch.randint(256, (frames, height, width, 3), generator=draw, dtype=torch.uint8)


def on_device(transform: TrainTransform, frames: torch.Tensor, seeds) -> torch.Tensor:
    parts, cuts = zip(*(transform.region(frames, np.random.default_rng(seed)) for seed in seeds))
    return regions.clips(regions.end_to_end(parts), cuts)


def batch_of(seeds) -> dict:
    transform, frames = TrainTransform(RESIZED, CLIP.train_size), noise(40, 61)
    found = [transform.region(frames, np.random.default_rng(seed)) for seed in seeds]
    items = [{"regions": part, "cuts": cut, "index": torch.tensor(k)} for k, (part, cut) in enumerate(found)]
    return collate(items)


@pytest.mark.parametrize("size", [17, 32])
@pytest.mark.parametrize("shape", [(40, 61), (101, 40), (130, 171), (7, 9)])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("augment", [MULTI_SCALE, RESIZED, SHORT_SIDE, SHRUNK])
def test_clips_are_within_one_grey_level_of_those_of_workers_for_the_same_draws(augment, flip, shape, size):
    frames, transform = noise(*shape), TrainTransform(dataclasses.replace(augment, flip=flip), size)
    found = on_device(transform, frames, range(12))
    expected = torch.stack([transform(frames, np.random.default_rng(seed)) for seed in range(12)])
    assert (found.dtype, found.shape) == (torch.uint8, (12, 2, 3, size, size))
    assert (found.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(
    ("region", "resized", "corner"),
    [
        ((3, 5, 30, 50), (90, 70), (31, 17)),
        ((0, 0, 61, 80), (33, 48), (1, 15)),
        ((10, 20, 8, 8), (32, 32), (0, 0)),
        ((0, 48, 61, 32), (61, 32), (29, 0)),
    ],
    ids=["larger", "smaller", "few pixels", "as it is"],
)
def test_clips_are_those_of_float_rounded(region, resized, corner, antialias):
    frames, window = noise(61, 80), Window(region, resized, corner, 32, antialias)
    expected = transforms.cut(frames.float(), window).permute(0, 3, 1, 2)
    for mirrored in (False, True):
        part, cut = transforms.taken(frames, window, mirrored)
        assert part.shape == cut.shape
        found = regions.clips(regions.end_to_end([part]), [cut])[0]
        assert (found - (expected.flip(3) if mirrored else expected)).abs().max() <= 0.51


def test_no_more_is_handed_over_than_the_clip_shows():
    transform, frames = TrainTransform(Augment(scales=(100, 120)), 32), noise(120, 200)
    for seed in range(10):
        part, _ = transform.region(frames, np.random.default_rng(seed))
        assert part.shape[1] <= 32 * 1.2 + 3
        assert part.shape[2] <= 32 * 1.2 + 3


@pytest.mark.parametrize("augment", [MULTI_SCALE, SHRUNK])
def test_of_large_videos_it_is_never_more_than_twice_the_clip(augment):
    transform, frames = TrainTransform(augment, 32), noise(360, 640)
    parts = [transform.region(frames, np.random.default_rng(seed))[0] for seed in range(6)]
    assert max(part.numel() for part in parts) <= 2 * 2 * 32 * 32 * 3
    expected = torch.stack([transform(frames, np.random.default_rng(seed)) for seed in range(6)])
    assert (on_device(transform, frames, range(6)).int() - expected.int()).abs().max() <= 1


def test_a_clip_does_not_depend_on_the_others_of_its_batch():
    transform, frames = TrainTransform(RESIZED, 24), noise(40, 61)
    alone = torch.cat([on_device(transform, frames, [seed]) for seed in range(5)])
    assert torch.equal(on_device(transform, frames, range(5)), alone)


@pytest.mark.parametrize("name", ["video", "pixels"])
def test_the_step_gets_clips(name):
    batch = batch_of(range(4))
    made = regions.clips(batch["regions"], batch["cuts"])
    tokens = {} if name == "video" else {"visible": torch.zeros(4, 1, dtype=torch.int64)}
    found = to_device({**batch, **tokens}, CPU, CLIP)
    assert found.keys() == {name, "index", *tokens}
    assert torch.equal(found[name], normalise(made, CLIP) if name == "video" else made)


def test_clips_are_mixed_as_others_are():
    batch, mix = batch_of(range(4)), Mix(0.3)
    expected = mix_video(normalise(regions.clips(batch["regions"], batch["cuts"]), CLIP), mix)
    assert torch.equal(to_device({**batch, "mix": mix}, CPU, CLIP)["video"], expected)


def test_pictures_show_them():
    batch = batch_of(range(6))
    video = regions.clips(batch["regions"], batch["cuts"])
    assert np.array_equal(clip_strip(batch, clips=3), clip_strip({"video": video}, clips=3))
