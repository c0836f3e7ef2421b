"""Windows of videos against ffmpeg itself, and against what evaluations of labelled data sets show."""

import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from videorl.clip import sampling
from videorl.clip.transforms import test_view as view_of_evaluation
from videorl.data.listed import Part
from videorl.features.windows import Blocks, Windows, blocks_of, measured
from videorl.registry import UserError
from videorl.video.errors import VideoError
from videorl.video.reader import open_video

SIZE = 48


def video(path, rate: Fraction | int, frames: int, size: tuple[int, int] = (96, 64)) -> str:
    random = np.random.default_rng(0)
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", {"g": "12"}
        for _ in range(frames):
            blocks = random.integers(0, 256, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(blocks, "rgb24")))
        container.mux(stream.encode())
    return str(path)


def read(path: str, windows: Windows, block: int = 2, part: Part | None = None) -> np.ndarray:
    """All windows [W, T, 3, S, S] of a video."""
    part = part or Part(path)
    count, _ = measured(path, part, windows, 10**8)
    data = Blocks(blocks_of(part, path, count, block), windows, 10**8)
    items = [item for i in range(len(data)) for item in data[i]]
    return np.stack([item["video"].numpy() for item in items])


RATES = [(30, 95), (25, 77), (60, 130), (24, 50), (Fraction(30000, 1001), 100), (10, 33), (15, 1)]


@pytest.mark.parametrize(("rate", "frames"), RATES)
@pytest.mark.parametrize("size", [(96, 64), (64, 96)])
def test_seconds_of_30_frames_are_those_of_ffmpeg(tmp_path, rate, frames, size):
    """As MMPT extracts S3D's features: `fps`, the short side scaled, the central square, black up to a whole second."""
    path = video(tmp_path / "v.mp4", rate, frames, size)
    found = read(path, Windows(30, 1.0, 1.0, "short_side", SIZE, 0))
    width, height = size
    scaled = (int(width * SIZE / height), SIZE) if width > height else (SIZE, int(height * SIZE / width))
    corner = [int((side - SIZE) / 2) for side in scaled]
    filters = f"fps=fps=30,scale={scaled[0]}:{scaled[1]},crop={SIZE}:{SIZE}:{corner[0]}:{corner[1]}"
    command = ["ffmpeg", "-v", "error", "-i", path, "-vf", filters, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    shown = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    shown = shown.reshape(-1, SIZE, SIZE, 3).transpose(0, 3, 1, 2)
    wanted = np.concatenate([shown, np.zeros((-len(shown) % 30, 3, SIZE, SIZE), np.uint8)])
    assert np.array_equal(found.reshape(wanted.shape), wanted)


def test_a_window_of_a_labelled_video_is_what_its_evaluation_shows(tmp_path):
    path = video(tmp_path / "v.mp4", 25, 60)
    windows = Windows(8, 0.8, 0.4, "labelled", 32, 40)
    found = read(path, windows, block=3)
    with open_video(path) as opened:
        for number, clip in enumerate(found):
            at = sampling.dense_at(number * 0.4 * 25, 60, length=0.8 * 25, frames=8)
            shown = view_of_evaluation(opened.frames(at), short_side=40, size=32, position=1)
            assert torch.equal(torch.from_numpy(clip), shown)
    assert len(found) == 5  # begin at 0, 0.4, … 1.6 s of 2.4 s


@pytest.mark.parametrize(
    ("seconds", "stride", "length", "count"),
    [(1, 1, 0.1, 1), (1, 1, 1, 1), (1, 1, 1.1, 2), (2, 1, 4, 3), (2, 1, 4.1, 4), (2, 3, 4, 2), (2, 0.25, 3, 5)],
)
def test_the_last_window_is_the_first_that_reaches_the_end(seconds, stride, length, count):
    windows = Windows(10 * seconds, seconds, stride, "square", 32, 0)
    assert windows.count(length) == count
    assert windows.count(length + 1e-9) == windows.count(length - 1e-9) == count


def test_windows_last_until_the_video_ends():
    windows = Windows(10, 2.0, 1.5, "square", 32, 0)
    assert windows.spans(np.array([0, 1, 3]), 5.0).tolist() == [[0.0, 2.0], [1.5, 3.5], [4.5, 5.0]]


@pytest.mark.parametrize("view", ["labelled", "square"])
def test_blocks_of_any_size_give_the_same(tmp_path, view):
    path = video(tmp_path / "v.mp4", 25, 60)
    windows = Windows(6, 0.7, 0.3, view, 32, 40)
    assert np.array_equal(read(path, windows, block=1), read(path, windows, block=100))


def test_a_part_of_a_video_is_read_like_a_video_of_its_own(tmp_path):
    path = video(tmp_path / "v.mp4", 25, 60)
    windows = Windows(5, 0.4, 0.4, "square", 32, 0)
    part = read(path, windows, part=Part(path, 20, 40))
    with open_video(path, cut=windows.cut) as opened:
        wanted = opened.frames([20 + k for k in range(0, 20, 2)]).permute(0, 3, 1, 2)
    assert np.array_equal(part.reshape(wanted.shape), wanted.numpy())
    with pytest.raises(VideoError, match="it has 60"):
        measured(path, Part(path, 50, 70), windows, 10**8)


def test_no_more_than_one_whole_picture_is_kept(tmp_path):
    """Frames are cut as they are decoded."""
    path = video(tmp_path / "v.mp4", 25, 60, (640, 480))
    with open_video(path, cut=Windows(6, 0.7, 0.3, "labelled", 32, 40).cut) as opened:
        assert opened.frames(range(60)).shape == (60, 32, 32, 3)


@pytest.mark.parametrize(("stride", "view"), [(0, "square"), (float("nan"), "square"), (1, "round")])
def test_mistakes_are_told(stride, view):
    with pytest.raises(UserError, match="expected"):
        Windows(8, 1.0, stride, view, 32, 40)
