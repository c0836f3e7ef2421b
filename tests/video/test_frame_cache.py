"""Decoded videos that are kept: the same clips with and without, a limit that holds, and files that break."""

import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.video.clips_on_disk import turn, write_video
from videorl.data.labelled import Kinetics
from videorl.registry import UserError
from videorl.spec import Clip, Reading, Spec, Views
from videorl.video import frame_cache
from videorl.video.errors import VideoError
from videorl.video.frame_cache import CachedVideo, FrameCache, open_cached
from videorl.video.reader import Video, open_video

FRAMES = 150  # more than are decoded at a time
SIZE = FRAMES * 64 * 96 * 3 / 1e9  # GB of one video
VALUES = {
    "num_classes": 5,
    "root": "",
    "separator": " ",
    "class_names": "",
    "multi_label": False,
    "offset": False,
    "val_skip": 1,
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Three videos of 150 frames, one of them shown turned by 90 degrees, and their list."""
    folder = tmp_path_factory.mktemp("videos")
    for k in range(3):
        write_video(folder / f"{k}.mp4", [(7 * k + n) % 256 for n in range(FRAMES)])
    turn(folder / "2.mp4", folder / "turned.mp4").replace(folder / "2.mp4")
    for split in ("train", "val"):
        (folder / f"{split}.csv").write_text("".join(f"{k}.mp4 {k}\n" for k in range(3)))
    return folder


@pytest.fixture
def own_videos(videos, tmp_path) -> Path:
    return shutil.copytree(videos, tmp_path / "own")


def reading(folder: Path | str, gigabytes: float = 1.0) -> Reading:
    return Reading(cache_folder=str(folder), cache_gb=gigabytes)


def items(videos: Path, split: str, read: Reading) -> list[dict]:
    """All samples of two epochs."""
    spec = Spec(Clip(8, 4, 32, 32), views=Views(3, 3), reading=read, seed=5)
    spec = replace(spec, augment=replace(spec.augment, scales=(40, 48), copies=2))
    data = Kinetics(spec, split, **{**VALUES, "annotations": str(videos)})
    found = []
    for data.epoch in range(2):
        found += [item for i in range(3) for item in data[i]]
    return found


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npy"))


def counted(folder: Path) -> int:
    return int((folder / "bytes").read_text())


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("gigabytes", [1.0, 2.5 * SIZE, 0.5 * SIZE])
def test_clips_are_the_same_in_every_bit(videos, tmp_path, split, gigabytes):
    without = items(videos, split, Reading())
    for _ in range(2):
        found = items(videos, split, reading(tmp_path / "cache", gigabytes))
        assert len(found) == len(without)
        for a, b in zip(found, without):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[k], b[k]) and a[k].stride() == b[k].stride() for k in a)
    assert len(kept(tmp_path / "cache")) == {1.0: 3, 2.5 * SIZE: 2, 0.5 * SIZE: 0}[gigabytes]


def test_later_visits_decode_nothing(videos, tmp_path, monkeypatch):
    expected = items(videos, "train", reading(tmp_path / "cache"))
    monkeypatch.setattr(frame_cache, "open_video", lambda *_, **__: pytest.fail("decoded again"))
    frame_cache._cache.cache_clear()  # as another process
    found = items(videos, "train", reading(tmp_path / "cache"))
    assert all(torch.equal(a["video"], b["video"]) for a, b in zip(found, expected))


def test_a_cached_video_has_what_data_sets_use(videos, tmp_path):
    for _ in range(2):
        with (
            open_cached(str(videos / "2.mp4"), reading(tmp_path)) as got,
            open_video(videos / "2.mp4", "pyav") as wanted,
        ):
            assert isinstance(got, CachedVideo)
            assert (got.num_frames, got.fps) == (wanted.num_frames, wanted.fps)
            assert np.array_equal(got.times, wanted.times)
            numbers = [149, 0, 64, 63, 64]
            assert torch.equal(got.frames(numbers), wanted.frames(numbers))
            assert got.size == wanted.size
            got.frames([3]).zero_()  # a copy: the next reader must not see it
            assert got.frames([3]).any()
            for outside in (-1, FRAMES):
                with pytest.raises(VideoError, match="of 150"):
                    got.frames([0, outside])


@pytest.mark.parametrize("same", ["size", "time"])
def test_a_video_that_was_replaced_is_decoded_anew(own_videos, tmp_path, same):
    cache, video = reading(tmp_path / "cache"), own_videos / "0.mp4"
    items(own_videos, "train", cache)
    before = video.stat()
    content = (own_videos / "1.mp4").read_bytes()
    if same == "size":
        length = max(len(content), before.st_size)
        video.write_bytes(video.read_bytes().ljust(length, b"\0"))
        os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns))
        items(own_videos, "train", cache)
        before = video.stat()
        video.write_bytes(content.ljust(length, b"\0"))
        assert video.stat().st_size == before.st_size
    else:
        video.write_bytes(content + b"\0" * (1 + before.st_size))
        os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns))
    found, wanted = items(own_videos, "train", cache), items(own_videos, "train", Reading())
    assert all(torch.equal(a["video"], b["video"]) for a, b in zip(found, wanted))


@pytest.mark.parametrize("length", [0, 5, 200, 1_000_000, -5])
def test_a_broken_file_is_removed_and_decoded_anew(videos, tmp_path, length):
    path, cache = str(videos / "0.mp4"), reading(tmp_path)
    with open_cached(path, cache) as video:
        wanted = video.frames(range(FRAMES))
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:length])
    with open_cached(path, cache) as video:
        assert torch.equal(video.frames(range(FRAMES)), wanted)
    assert file.read_bytes() == whole
    assert len(kept(tmp_path)) == 1


def test_what_is_no_array_is_not_unpickled(videos, tmp_path):
    path = str(videos / "0.mp4")
    open_cached(path, reading(tmp_path)).__exit__()
    (file,) = kept(tmp_path)
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    with open_cached(path, reading(tmp_path)) as video:
        assert video.num_frames == FRAMES


def test_the_count_is_that_of_the_files(videos, tmp_path):
    for k in range(3):
        open_cached(str(videos / f"{k}.mp4"), reading(tmp_path)).__exit__()
    total = sum(file.stat().st_size for file in kept(tmp_path))
    assert counted(tmp_path) == total
    kept(tmp_path)[0].unlink()
    FrameCache(tmp_path, 1.0)
    assert counted(tmp_path) == total * 2 // 3


def _fill(videos: Path, folder: Path, limit: float) -> None:
    cache = FrameCache(folder, limit)
    for k in range(3):
        cache.open(str(videos / f"{k}.mp4"), reading(folder, limit)).__exit__()


def test_several_processes_keep_the_limit(videos, tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill, args=(videos, tmp_path, 2.5 * SIZE)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    files = kept(tmp_path)
    assert [file.name for file in tmp_path.iterdir() if file not in files] == ["bytes"]
    assert len(files) == 2
    assert counted(tmp_path) == sum(file.stat().st_size for file in files)


def test_a_video_damaged_where_no_clip_is_taken_is_read_as_usual(videos, tmp_path, monkeypatch):
    parts = Video.parts

    def damaged(self, indices):
        if max(indices) > 100:
            raise VideoError(self.path, "decode", "damaged")
        return parts(self, indices)

    monkeypatch.setattr(Video, "parts", damaged)
    for _ in range(2):
        with open_cached(str(videos / "0.mp4"), reading(tmp_path)) as video:
            assert isinstance(video, Video)
            assert len(video.frames([1, 2])) == 2
    assert counted(tmp_path) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["bytes"]


def test_a_full_disk_ends_nothing(videos, tmp_path, monkeypatch):
    cache = FrameCache(tmp_path, 1.0)
    monkeypatch.setattr(frame_cache.np, "ascontiguousarray", _disk_full)
    for k in (0, 1, 0):
        with cache.open(str(videos / f"{k}.mp4"), reading(tmp_path)) as video:
            assert isinstance(video, Video)
            assert len(video.frames([1])) == 1
    assert cache.limit == 0
    assert counted(tmp_path) == 0
    assert not kept(tmp_path)


def _disk_full(*_):
    raise OSError(28, "No space left on device")


def test_what_a_killed_process_left_is_removed_when_it_is_old(tmp_path):
    old, new = tmp_path / "a.part", tmp_path / "b.part"
    for file in (old, new):
        file.write_bytes(b"12345")
    os.utime(old, (0, 0))
    FrameCache(tmp_path, 1.0)
    assert not old.exists()
    assert new.exists()
    assert counted(tmp_path) == 5


def test_errors_are_those_of_opening(videos, tmp_path):
    with pytest.raises(VideoError, match="No such file"):
        open_cached(str(videos / "none.mp4"), reading(tmp_path))
    path = str(videos / "0.mp4")
    open_cached(path, reading(tmp_path)).__exit__()
    with pytest.raises(VideoError, match="more than the limit of 100"):
        open_cached(path, replace(reading(tmp_path), max_pixels=100))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"DATA.CACHE_FOLDER .*/file/sub cannot be written: Not a directory; name"):
        open_cached(path, reading(tmp_path / "file" / "sub"))
