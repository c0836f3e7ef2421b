import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import auto_augment

from videorl.clip import transforms
from videorl.clip.randaug import FILL, Op, RandAugment, color_jitter
from videorl.clip.transforms import TrainTransform, Window
from videorl.registry import UserError
from videorl.spec import Augment

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import assert_close, limits, load_case  # noqa: E402

CROP_SCALES = (1, 0.875, 0.75, 0.66)
AREA, ASPECT, POLICY = (0.08, 1.0), (0.75, 1.3333), "rand-m7-n4-mstd0.5-inc1"
MAGNITUDES = {
    "AutoContrast": (),
    "Equalize": (),
    "Invert": (),
    "PosterizeIncreasing": (3,),
    "SolarizeIncreasing": (77,),
    "SolarizeAdd": (60,),
    "ColorIncreasing": (1.6,),
    "ContrastIncreasing": (1.6,),
    "BrightnessIncreasing": (0.4,),
    "SharpnessIncreasing": (1.7,),
    "Rotate": (-21.0,),
    "ShearX": (0.23,),
    "ShearY": (-0.17,),
    "TranslateXRel": (0.31,),
    "TranslateYRel": (-0.27,),
}
GEOMETRIC = ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"]


class Fixed:
    """A generator whose `integers` is the seed that the published code set."""

    def __init__(self, seed):
        self.integers = lambda high: seed


class Published:
    """The draws of the published crops, from one of the two global generators."""

    def __init__(self, seed, python):
        self.python, self.numpy = random.Random(seed), np.random.RandomState(seed)
        self.use_python, self.uniforms = python, 0

    def uniform(self, low, high):
        self.uniforms += 1
        return (self.python if self.use_python else self.numpy).uniform(low, high)

    def integers(self, low, high):
        # PySlowFast's random_crop never draws the last place: numpy's randint excludes its upper end
        return self.python.randint(low, high - 1) if self.use_python else self.numpy.randint(low, high - 1)


def op(name, resample=Image.Resampling.BICUBIC):
    return Op(name, auto_augment.NAME_TO_OP[name], MAGNITUDES[name], {"resample": resample, "fillcolor": FILL})


def frame_by_frame(operations, frames):
    images = [Image.fromarray(frame) for frame in frames.numpy()]
    for operation in operations:
        images = [operation(image) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8))


def smooth(frames, height, width):
    """A clip that interpolation hardly changes: coarse noise, enlarged."""
    coarse = noise(frames, 3, 5, 6).float()
    large = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return large.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def whole(height, width):
    """The window that changes nothing (square frames)."""
    return Window((0, 0, height, width), (height, width), (0, 0), height)


# --- golden cases ----------------------------------------------------------------------------------------------------


def test_test_views_equal_pyslowfast():
    case = load_case(GOLDEN / "data" / "test_crops.pt")
    for given_, expected in zip(case["inputs"]["cases"], case["expected"]["frames"], strict=True):
        frames = given_["frames"].permute(1, 2, 3, 0)
        view = {"short_side": given_["scale"], "size": given_["crop"], "position": given_["spatial_idx"]}
        assert_close(transforms.test_view(frames, **view).permute(1, 0, 2, 3), expected, *limits(case))
        levels = (frames * 255).round()
        in_bytes = transforms.test_view(levels.byte(), **view).float()
        assert (in_bytes - transforms.test_view(levels, **view)).abs().max() <= 1.01  # grey levels, on pure noise


def test_test_views_equal_lavila():
    """Validation, and clips of two frames each with three crops; published on normalised float frames."""
    case = load_case(GOLDEN / "data" / "lavila_transforms.pt")
    config, expected = case["config"], case["expected"]
    frames, size = case["inputs"]["frames"], config["size"]
    mean, std = (torch.tensor(config[name]).view(3, 1, 1, 1) for name in ("mean", "std"))

    def view(chosen, position):
        made = transforms.test_view(chosen, short_side=size, size=size, position=position, antialias=True)
        return (made.transpose(0, 1) - mean) / std

    assert_close(view(frames, 1), expected["validation"], *limits(case))
    views = [view(frames[k : k + 2], position) for k in (0, 2) for position in range(3)]
    assert len(views) == len(expected["views"])
    for found, wanted in zip(views, expected["views"]):
        assert_close(found, wanted, *limits(case))


def test_random_crops_equal_pyslowfast_for_the_same_draws():
    case = load_case(GOLDEN / "data" / "train_augmentation.pt")
    frames = (case["inputs"]["frames"] / 255 - 0.45) / 0.225
    for given_, expected in zip(case["inputs"]["cases"], case["expected"]["cases"], strict=True):
        rng = Published(given_["seed"], python=True)
        clip = transforms.cut(frames, transforms.random_resized_crop(40, 60, 32, AREA, ASPECT, rng))
        rng.numpy.uniform(size=rng.uniforms // 2)  # published: one draw per try, for a swap of the sides that is off
        clip = clip.flip(2) if rng.numpy.uniform() < 0.5 else clip
        assert_close(clip.permute(3, 0, 1, 2), expected["resized_crop_flip"], *limits(case))
        for key, inverse in (("short_side_jitter_crop_flip", False), ("inverse_uniform_short_side", True)):
            rng = Published(given_["seed"], python=False)
            short = transforms.random_short_side(48, 60, inverse, rng)
            clip = transforms.cut(frames, transforms.random_crop(40, 60, short, 32, rng))
            clip = clip.flip(2) if not inverse and rng.numpy.uniform() < 0.5 else clip
            assert_close(clip.permute(3, 0, 1, 2), expected[key], *limits(case))


class PythonChoice(random.Random):
    """`choice` of the published code."""

    def integers(self, low, high):
        return self.choice(range(low, high))


def test_multi_scale_crops_equal_videomae_for_the_same_draws():
    case = load_case(GOLDEN / "data" / "videomae_multi_scale_crop.pt")
    rng = PythonChoice(0)
    for (height, width), (w, h, x, y) in zip(case["inputs"]["sizes"], case["expected"]["crops"], strict=True):
        window = transforms.multi_scale_crop(height, width, 224, CROP_SCALES, rng)
        assert window == Window((y, x, h, w), (224, 224), (0, 0), 224, antialias=True)


def test_erased_boxes_equal_pyslowfast_for_the_same_draws():
    case = load_case(GOLDEN / "data" / "train_augmentation.pt")
    for given_, expected in zip(case["inputs"]["cases"], case["expected"]["cases"], strict=True):
        rng = Published(given_["seed"], python=True)
        rng.python.random()  # whether to erase at all
        mask = torch.zeros(4, 32, 32, dtype=torch.bool)
        for top, left, height, width in transforms.erase_boxes(32, 32, 1, rng):
            mask[:, top : top + height, left : left + width] = True
        assert torch.equal(mask, expected["erased_mask"])


class Drawn:
    """Gives the draws of the published noise as numbers of `TrainTransform.noise`, equally likely parts of a normal."""

    def __init__(self, boxes: Published, seed: int):
        self.boxes = boxes
        torch.manual_seed(seed)

    def uniform(self, low, high):
        return self.boxes.uniform(low, high)

    def integers(self, low, high=None, size=None, dtype=None):
        if size is None:
            return self.boxes.integers(low, high)
        frames, height, width, colours = size
        drawn = [torch.empty(colours, height, width).normal_() for _ in range(frames)]  # a frame after the other
        parts = torch.special.ndtr(torch.stack(drawn).permute(0, 2, 3, 1).double()) * low
        return parts.long().clamp(max=low - 1).numpy()


@pytest.mark.parametrize("mode", ["pixel", "const"])
def test_erased_values_equal_pyslowfast_for_the_same_draws(mode):
    """To the nearest grey level that there is: ours are noise or mean in bytes, published ones any number."""
    case = load_case(GOLDEN / "data" / "train_augmentation.pt")
    black, white = -0.45 / 0.225, (1 - 0.45) / 0.225
    half_a_level = 0.5 / 255 / 0.225
    for given_, expected in zip(case["inputs"]["cases"], case["expected"]["cases"], strict=True):
        rng = Published(given_["seed"], python=True)
        rng.python.random()  # whether to erase at all
        augment = Augment(erase_prob=1.0, erase_mode=mode, erase_count=1)
        transform = transforms.TrainTransform(augment, 32, [0.45] * 3, [0.225] * 3)
        clip = np.zeros((4, 32, 32, 3), np.uint8)
        transform._erase(clip, Drawn(rng, given_["seed"]))
        found = ((torch.from_numpy(clip).double() / 255 - 0.45) / 0.225).permute(3, 0, 1, 2)
        published = expected[f"erased_{mode}"]
        places = np.floor(np.linspace(0, found.numel() - 1, len(published["spread"]))).astype(np.int64)
        inside = expected["erased_mask"].expand(3, 4, 32, 32).reshape(-1)[places]
        assert inside.sum() >= 5
        wanted = published["spread"].double().clamp(black, white)[inside]
        assert (found.reshape(-1)[places][inside] - wanted).abs().max() <= half_a_level + 1e-3


def test_rand_augment_equals_pyslowfast():
    case = load_case(GOLDEN / "data" / "rand_augment.pt")
    frames = case["inputs"]["frames"]
    for given_, expected in zip(case["inputs"]["cases"], case["expected"]["frames"], strict=True):
        operations = RandAugment(given_["auto_augment"], "bicubic").draw(Fixed(given_["seed"]))
        assert operations
        found = frame_by_frame(operations, frames).int()
        assert (found - expected.int()).abs().max() <= limits(case)[0]


# --- RandAugment against timm ----------------------------------------------------------------------------------------


def test_all_operations_of_the_policy_are_tested():
    policy = RandAugment(POLICY)
    assert {o.name for o in policy._policy.ops} == set(MAGNITUDES)


@pytest.mark.parametrize("name", sorted(set(MAGNITUDES) - set(GEOMETRIC)))
def test_colour_operations_equal_timm_on_each_frame(name):
    frames = noise(5, 24, 32, 3) // torch.tensor([1, 2, 3], dtype=torch.uint8) + 10
    expected = frame_by_frame([op(name)], frames)
    assert torch.equal(torch.from_numpy(op(name).on_clip(frames.numpy())), expected)
    window = Window((0, 0, 24, 32), (24, 32), (0, 4), 24)
    square = frames[:, :, 4:28].contiguous()
    assert torch.equal(transforms.view_of(frames, window, [op(name)]), frame_by_frame([op(name)], square))


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_operations_are_within_one_grey_level_of_timm_on_each_frame(name, resample):
    frames = noise(5, 48, 48, 3)
    found = transforms.view_of(frames, whole(48, 48), [op(name, resample)])
    expected = frame_by_frame([op(name, resample)], frames)
    assert (found.int() - expected.int()).abs().max() <= 1
    assert ((expected == 128).all(-1) == (found == 128).all(-1)).all()


def test_warp_in_parts_equals_warp_at_once(monkeypatch):
    frames, affine = noise(7, 40, 50, 3), op("Rotate").affine(50, 40)
    at_once = transforms.warp(frames, affine, 32, Image.Resampling.BICUBIC)
    monkeypatch.setattr(transforms, "TABLE_VALUES", 3 * 40 * 50 * 2)
    assert torch.equal(transforms.warp(frames, affine, 32, Image.Resampling.BICUBIC), at_once)


@pytest.mark.parametrize(
    "names",
    [
        ["Rotate"],
        ["ShearX", "TranslateYRel"],
        ["Invert", "Rotate", "BrightnessIncreasing"],
        ["TranslateXRel", "Invert", "ShearY", "ColorIncreasing", "Rotate"],
    ],
)
def test_crop_first_shows_what_the_published_order_shows(names):
    """Whole frames augmented one operation at a time, then cropped in float: all but the edges of fill agree."""
    frames, operations = smooth(3, 90, 120), [op(name) for name in names]
    window = Window((12, 20, 70, 64), (48, 48), (0, 0), 48)
    found = transforms.view_of(frames, window, operations).float()
    expected = transforms.cut(frame_by_frame(operations, frames).float(), window)
    difference = (found - expected).abs()
    assert difference.mean() < 2
    assert difference.quantile(0.9) < 3
    untouched = (transforms.cut(frames.float(), window) - expected).abs().mean()
    assert untouched > 20


def test_fill_keeps_its_colour_through_earlier_operations_only():
    frames = smooth(2, 60, 60)
    earlier = transforms.view_of(frames, whole(60, 60), [op("Invert"), op("TranslateXRel")])
    later = transforms.view_of(frames, whole(60, 60), [op("TranslateXRel"), op("Invert")])
    assert (earlier[:, :, -5:] == 128).all()
    assert (later[:, :, -5:] == 127).all()


def test_the_global_generators_are_left_as_they_were():
    before = random.getstate(), np.random.get_state()[1].tolist()
    RandAugment(POLICY).draw(np.random.default_rng(0))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]


@pytest.mark.parametrize("policy", ["augmix-m3", "", "m7-n4"])
def test_other_policies_are_refused(policy):
    with pytest.raises(UserError, match="expected a RandAugment policy"):
        RandAugment(policy)


def test_unknown_interpolation_is_refused():
    with pytest.raises(UserError, match="AUG.INTERPOLATION"):
        RandAugment(POLICY, "cubic")


# --- the whole training transform ------------------------------------------------------------------------------------

FULL = Augment(area=AREA, aspect=ASPECT, rand_augment=POLICY, erase_prob=0.5)
PLAIN = Augment(scales=(40, 50))


VIEW_OF_FRAMES = Augment(scales=(48, 48), erase_prob=1.0)  # a crop that needs no resizing


@pytest.mark.parametrize(
    "augment", [FULL, PLAIN, VIEW_OF_FRAMES, Augment(scales=(40, 50), color_jitter=0.4, inverse_uniform=True)]
)
def test_a_clip_depends_on_its_generator_only(augment):
    frames, transform = noise(3, 48, 64, 3), TrainTransform(augment, 32)
    before = frames.clone()
    clips = [transform(frames, np.random.default_rng(seed)) for seed in (0, 1, 0)]
    assert torch.equal(frames, before)
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    copy = pickle.loads(pickle.dumps(transform))(frames, np.random.default_rng(0))
    assert clips[0].shape == (3, 3, 32, 32)
    assert clips[0].dtype == torch.uint8
    assert torch.equal(clips[0], clips[2])
    assert torch.equal(clips[0], copy)
    assert not torch.equal(clips[0], clips[1])


@pytest.mark.parametrize("augment", [Augment(area=AREA, aspect=ASPECT, rand_augment=POLICY), PLAIN])
def test_all_frames_get_the_same_change(augment):
    still, transform = noise(1, 48, 64, 3).expand(4, -1, -1, -1), TrainTransform(augment, 32)
    for seed in range(20):
        clip = transform(still, np.random.default_rng(seed))
        assert (clip == clip[:1]).all()


def test_flip_is_a_mirror_image_half_the_time():
    transform = TrainTransform(Augment(scales=(32, 32)), 32)
    frames = noise(1, 32, 32, 3)
    clips = [transform(frames, np.random.default_rng(seed)) for seed in range(200)]
    straight = frames.permute(0, 3, 1, 2)
    flipped = sum(torch.equal(clip, straight.flip(-1)) for clip in clips)
    assert flipped + sum(torch.equal(clip, straight) for clip in clips) == 200
    assert 75 < flipped < 125
    never = TrainTransform(Augment(scales=(32, 32), flip=False), 32)
    assert all(torch.equal(never(frames, np.random.default_rng(s)), straight) for s in range(20))


def test_colour_jitter_gives_way_to_rand_augment_as_in_timm():
    frames = noise(2, 40, 40, 3)
    both = TrainTransform(Augment(scales=(40, 40), color_jitter=0.4, rand_augment=POLICY), 32)
    alone = TrainTransform(Augment(scales=(40, 40), rand_augment=POLICY), 32)
    assert all(
        torch.equal(both(frames, np.random.default_rng(s)), alone(frames, np.random.default_rng(s))) for s in range(5)
    )


def test_colour_jitter_stays_in_its_range():
    rng = np.random.default_rng(0)
    drawn = [o for _ in range(200) for o in color_jitter(0.4, rng)]
    factors = [o.args[0] for o in drawn]
    assert {o.name for o in drawn} == {"Brightness", "Contrast", "Color"}
    assert 0.6 <= min(factors) < 0.62
    assert 1.38 < max(factors) <= 1.4


def test_erasing_noise_is_normal_in_normalised_values_and_new_in_each_frame():
    transform = TrainTransform(Augment(scales=(64, 64), flip=False, erase_prob=1.0), 64)
    frames = torch.full((8, 64, 64, 3), 255, dtype=torch.uint8)
    values, erased = [], []
    for seed in range(30):
        clip = transform(frames, np.random.default_rng(seed))
        box = (clip != 255).any(1)
        inside = box.any(0)
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        area = clip[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert not torch.equal(area[0], area[1])
        erased.append(area[0, 0].numel() / 64**2)
        values.append(area.float().flatten() / 255)
    values = (torch.cat(values) - 0.45) / 0.225
    assert abs(values.median()) < 0.02
    assert abs(values.quantile(0.8413) - 1) < 0.02
    assert abs(values.quantile(0.1587) + 1) < 0.02
    assert min(erased) >= 0.018
    assert max(erased) <= 0.36


@pytest.mark.parametrize(("mode", "colours"), [("const", 1), ("rand", 6)])
def test_erasing_with_plain_colours(mode, colours):
    augment = Augment(scales=(64, 64), flip=False, erase_prob=1.0, erase_mode=mode, erase_count=1)
    frames = torch.zeros(6, 64, 64, 3, dtype=torch.uint8)
    clip = TrainTransform(augment, 64)(frames, np.random.default_rng(3)).permute(0, 2, 3, 1)
    found = {tuple(pixel) for pixel in clip.reshape(-1, 3).tolist()} - {(0, 0, 0)}
    assert len(found) == colours
    if mode == "const":
        assert found == {(115, 115, 115)}


# --- geometry --------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 10**6))
def test_resized_crops_lie_in_the_frame(height, width, seed):
    window = transforms.random_resized_crop(height, width, 32, AREA, ASPECT, np.random.default_rng(seed))
    top, left, h, w = window.region
    assert min(top, left) >= 0
    assert min(h, w) >= 1
    assert top + h <= height
    assert left + w <= width


@settings(max_examples=200, deadline=None)
@given(st.integers(8, 300), st.integers(8, 300), st.integers(32, 64), st.integers(0, 2))
def test_test_crops_lie_in_the_resized_frame(height, width, short, position):
    window = transforms.uniform_crop(height, width, short, 32, position)
    assert min(window.resized) == short
    assert all(0 <= c <= r - 32 for c, r in zip(window.corner, window.resized, strict=True))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 10**6))
def test_multi_scale_crops_lie_in_the_frame(height, width, seed):
    window = transforms.multi_scale_crop(height, width, 32, CROP_SCALES, np.random.default_rng(seed))
    top, left, h, w = window.region
    assert min(top, left) >= 0
    assert min(h, w) >= 1
    assert max(h, w) <= min(height, width)
    assert top + h <= height
    assert left + w <= width


@pytest.mark.parametrize("size", [16, 64])
def test_multi_scale_crops_are_what_pillow_cuts_and_resizes(size):
    frames = noise(2, 40, 60, 3)
    transform = TrainTransform(Augment(crop_scales=CROP_SCALES, flip=True), size)
    flipped = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        top, left, h, w = transforms.multi_scale_crop(40, 60, size, CROP_SCALES, rng).region
        box, flip = (left, top, left + w, top + h), rng.random() < 0.5
        images = [Image.fromarray(f).crop(box).resize((size, size), Image.Resampling.BILINEAR) for f in frames.numpy()]
        expected = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
        found = transform(frames, np.random.default_rng(seed))
        assert (found.int() - (expected.flip(3) if flip else expected).int()).abs().max() <= 1
        flipped += flip
    assert 0 < flipped < 30


def test_one_pixel_and_narrow_frames_work():
    rng = np.random.default_rng(0)
    for augment in (FULL, Augment(crop_scales=CROP_SCALES)):
        for height, width in ((1, 1), (2, 300), (300, 2)):
            assert TrainTransform(augment, 16)(noise(2, height, width, 3), rng).shape == (2, 3, 16, 16)


def test_the_map_of_a_window_is_what_cut_does():
    frames = smooth(2, 60, 80)
    window = Window((5, 9, 50, 60), (40, 48), (3, 7), 32)
    warped = transforms.warp(frames, window.affine(), 32, Image.Resampling.BILINEAR)
    assert (warped.int() - transforms.cut(frames, window).int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("augment", "match"),
    [
        (Augment(area=AREA), "both or neither"),
        (Augment(scales=(24, 40)), "at least the crop size 32"),
        (Augment(scales=(40, 50), erase_mode="cube"), "RE_MODE"),
        (Augment(area=AREA, aspect=ASPECT, crop_scales=CROP_SCALES), "expected one of them; empty the other"),
        (Augment(crop_scales=(1, 1.2)), "TRAIN_CROP_SCALES .* above 0 and at most 1"),
        (Augment(crop_scales=(1, 0.0)), "TRAIN_CROP_SCALES .* above 0 and at most 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(augment, match):
    with pytest.raises(UserError, match=match):
        TrainTransform(augment, 32)


def test_test_views_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="size <= short"):
        transforms.test_view(noise(1, 40, 40, 3), short_side=24, size=32, position=1)
    with pytest.raises(UserError, match=r"expected 0\.\.2"):
        transforms.test_view(noise(1, 40, 40, 3), short_side=32, size=32, position=3)


def test_every_draw_of_the_default_policy_can_be_applied():
    """Magnitude 9 with noise reaches posterizing to 0 bits, which Pillow refuses."""
    policy = RandAugment("rand-m9-mstd0.5-inc1")
    frame = Image.fromarray(np.full((8, 8, 3), 200, np.uint8))
    names = set()
    for seed in range(300):
        for operation in policy.draw(np.random.default_rng(seed)):
            assert operation(frame).size == (8, 8)
            names.add(operation.name)
    assert "PosterizeIncreasing" in names
