"""Clips are cropped and scaled as they are decoded: the same, whatever part of the frames is in memory at once."""

import dataclasses
from fractions import Fraction

import pytest
import torch
from PIL import Image

from tests.video.clips_on_disk import number_of, picture, write_video
from videorl.data.labelled import Kinetics, SomethingSomething
from videorl.data.listed import VideoList
from videorl.registry import UserError
from videorl.spec import Augment, Clip, Masking, Reading, Spec, Views
from videorl.video.errors import VideoError
from videorl.video.reader import Frames, open_video

N, WIDTH, HEIGHT = 48, 96, 64
FULL = Augment(
    area=(0.2, 1.0), aspect=(0.75, 1.33), rand_augment="rand-m7-n4-mstd0.5-inc1", erase_prob=1.0, clips=2, copies=4
)
SPECS = {
    "test": ("test", Spec(Clip(6, 2, 32, 32), views=Views(10, 3), augment=Augment(scales=(32, 40)))),
    "one_crop": ("test", Spec(Clip(6, 2, 64, 64), views=Views(4, 1), augment=Augment(scales=(64, 64)))),
    "train": ("train", Spec(Clip(6, 2, 32, 32), augment=FULL)),
    "train_crop": ("train", Spec(Clip(6, 2, 64, 64), augment=Augment(scales=(64, 64)))),
    "on_device": ("train", Spec(Clip(6, 2, 64, 64), augment=dataclasses.replace(FULL, on_device=True))),
    "on_device_large": ("train", Spec(Clip(6, 2, 8, 8), augment=dataclasses.replace(FULL, on_device=True))),
}
VALUES = {"num_classes": 2, "root": "", "class_names": "", "val_skip": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", range(N))
    (folder / "frames").mkdir()
    for number in range(N):
        Image.fromarray(picture(number, WIDTH, HEIGHT)).save(folder / "frames" / f"img_{number + 1:05d}.png")
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text("a.mp4 1\n")
    return folder


@pytest.fixture
def largest(monkeypatch) -> list[int]:
    """The pixels of every part that is read."""
    sizes, parts = [], Frames.parts

    def noted(video, indices):
        for numbers, frames in parts(video, indices):
            sizes.append(frames[..., 0].numel())
            yield numbers, frames

    monkeypatch.setattr(Frames, "parts", noted)
    return sizes


def items(folder, split: str, spec: Spec, reading: Reading, lists: str = "") -> list[dict]:
    values = {**VALUES, "annotations": str(folder)}
    spec = dataclasses.replace(spec, reading=reading)
    if lists:
        (folder / "listed").mkdir(exist_ok=True)
        (folder / "listed" / f"{split}.csv").write_text(lists)
        values |= {"annotations": str(folder / "listed"), "root": str(folder), "frame_name": "img_%05d.png"}
        return VideoList(spec, split, **values)[0]
    return Kinetics(spec, split, **values, separator=" ", multi_label=False, offset=False)[0]


def equal(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x[name], y[name]) if isinstance(x[name], torch.Tensor) else x[name] == y[name]
        for x, y in zip(a, b, strict=True)
        for name in x
    )


@pytest.mark.parametrize("lists", ["", "a.mp4 1\n", "frames 48 1\n", "cached"])
@pytest.mark.parametrize("kind", SPECS)
def test_clips_do_not_depend_on_the_parts_that_frames_come_in(folder, tmp_path, largest, kind, lists):
    split, spec = SPECS[kind]
    whole = items(folder, split, spec, Reading(), "" if lists == "cached" else lists)
    assert max(largest) > 3 * WIDTH * HEIGHT, "the clip is longer than a part of the other reading"
    largest.clear()
    reading = Reading(max_pixels=3 * WIDTH * HEIGHT)
    if lists == "cached":
        reading, lists = dataclasses.replace(reading, cache_folder=str(tmp_path), cache_gb=0.1), ""
    assert equal(whole, items(folder, split, spec, reading, lists))
    assert max(largest) == 3 * WIDTH * HEIGHT


def test_no_clip_keeps_the_frames_that_it_is_made_of_in_memory(folder):
    for split, spec in SPECS.values():
        clips = [item.get("regions", item.get("video")) for item in items(folder, split, spec, Reading())]
        kept = {clip.untyped_storage().data_ptr(): clip.untyped_storage().nbytes() for clip in clips}
        assert sum(kept.values()) <= 2 * sum(clip.nbytes for clip in clips)


def test_dense_clips_of_an_uneven_rate_keep_their_length(tmp_path):
    """A second of 60 frames, then three of ten: clips of 0.8 s would last from 0.2 to 1.4 s by the average rate."""
    times = [k / 60 for k in range(60)] + [1 + k / 10 for k in range(30)]
    stamps = [round(600 * time) for time in times]
    write_video(tmp_path / "a.mp4", range(90), size=(96, 96), pts=stamps, time_base=Fraction(1, 600))
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("a.mp4 1\n")
    plain = Augment(scales=(96, 96), crop_scales=(1.0,), flip=False)
    for split in ("train", "test"):
        spec = Spec(Clip(8, 3, 96, 96), views=Views(6, 1), augment=dataclasses.replace(plain, copies=6, clips=6))
        for item in items(tmp_path, split, spec, Reading()):
            shown = [times[number_of(frame.numpy())] for frame in item["video"].permute(0, 2, 3, 1)]
            assert abs(shown[-1] - shown[0] - 0.8 * 7 / 8) <= 0.11, "a tenth of a second from one frame to the next"


def test_uniform_views_that_would_be_the_same_are_read_once(folder, largest):
    spec = Spec(Clip(6, 2, 32, 32), views=Views(10, 3), augment=Augment(scales=(32, 40)))
    values = {**VALUES, "annotations": str(folder), "separator": " ", "multi_label": False, "offset": False}
    data = SomethingSomething(spec, "test", **values)
    one = SomethingSomething(dataclasses.replace(spec, views=Views(1, 3)), "test", **values)
    assert data.views == one.views == Views(1, 3)
    assert equal(data[0], one[0])
    assert [item["view"].item() for item in data[0]] == [0, 1, 2]
    masked = dataclasses.replace(spec, patch=(2, 16, 16), masking=Masking(0.75))
    assert SomethingSomething(masked, "test", **values).views == Views(10, 3), "each hides other tokens"


def test_the_backends_give_the_same_parts(folder):
    with open_video(folder / "a.mp4") as video:
        expected = video.frames(range(N))
    for backend in ("pyav", "torchcodec", "decord"):
        try:
            video = open_video(folder / "a.mp4", backend, max_pixels=5 * WIDTH * HEIGHT)
        except UserError:
            continue
        with video:
            parts = list(video.parts([40, 3, 3, 7, 9, 11, 30, 31]))
            assert video.backend == backend
        assert [numbers.tolist() for numbers, _ in parts] == [[3, 7, 9, 11, 30], [31, 40]]
        for numbers, frames in parts:
            assert torch.equal(frames, expected[torch.from_numpy(numbers)])


def test_a_stream_that_grows_is_found_in_a_later_part(tmp_path):
    small = write_video(tmp_path / "small.h264", range(10), container="h264")
    large = write_video(tmp_path / "large.h264", range(10), size=(192, 128), container="h264")
    file = tmp_path / "grows.h264"
    file.write_bytes(small.read_bytes() + large.read_bytes())
    with open_video(file, max_pixels=192 * 128) as video:
        with pytest.raises(VideoError, match="frame 10 has another size than frame 2"):
            list(video.parts(range(2, 20)))
        assert [len(frames) for _, frames in video.parts(range(10, 13))] == [1, 1, 1]
