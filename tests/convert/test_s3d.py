"""Files of MIL-NCE's training code and of its release give the published outputs."""

import sys
from pathlib import Path

import pytest
import torch

from videorl import checkpoint, convert
from videorl.convert import s3d as layout
from videorl.models.s3d import S3D
from videorl.registry import UserError
from videorl.spec import Clip, Spec

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import check, load_case  # noqa: E402


def model(words: int, **keys) -> S3D:
    return S3D(Spec(Clip(16, 1, 64, 64)), vocabulary=words, **keys).eval()


def embedding(built: S3D, video: torch.Tensor) -> dict:
    with torch.no_grad():
        return {"video_embedding": built(video)["video_embed"]}


def test_file_of_the_training_code(tmp_path):
    case = load_case(GOLDEN / "s3d/plain.pt")
    weights = {f"module.{name}": value for name, value in case["state_dict"].items()}
    file = tmp_path / "epoch0300.pth.tar"
    torch.save({"epoch": 300, "state_dict": weights, "optimizer": {"state": {}}, "scheduler": {"last_epoch": 7}}, file)
    built = model(100)
    convert.load(built, checkpoint.read(file), str(file), testing=True)
    check(case, embedding(built, case["inputs"]["video"]))


def test_file_of_the_release(tmp_path):
    case = load_case(GOLDEN / "s3d/release.pt")
    file = tmp_path / "s3d_howto100m.pth"
    torch.save(case["state_dict"], file)
    built = model(100, space_to_depth=True)
    convert.load(built, checkpoint.read(file), str(file), testing=True)
    check(case, embedding(built, case["inputs"]["video"]))


def test_layout_is_known_by_its_names():
    names = set(model(2).state_dict())
    assert convert.layout_of(names) is layout
    assert convert.layout_of(names - {layout.STEM}) is not layout


@pytest.mark.parametrize("deep", [False, True])
def test_file_with_the_other_stem(deep):
    file = model(2, space_to_depth=not deep).state_dict()
    with pytest.raises(UserError, match=f"the other stem; set S3D.SPACE_TO_DEPTH {not deep}"):
        layout.rename(file, model(2, space_to_depth=deep))


@pytest.mark.parametrize("width", [0.25, 2.0])
def test_file_of_another_width_has_the_stem(width):
    with pytest.raises(UserError, match=r"conv1\.conv1\.weight") as error:
        convert.load(model(2), model(2, width=width).state_dict(), "x.pth", testing=True)
    assert "the other stem" not in str(error.value)


def test_file_with_another_vocabulary():
    with pytest.raises(UserError, match=r"text_module\.word_embd\.weight \(90000, 300\) for \(2, 300\)"):
        convert.load(model(2), model(90000).state_dict(), "x.pth", testing=True)
