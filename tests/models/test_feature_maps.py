"""Class token and map of features: what a model pools, in the order of time, row, column."""

import pytest
import torch

from tests.models.test_mvit import tiny as mvit
from tests.models.test_timesformer import PUBLISHED
from tests.models.test_timesformer import tiny as timesformer
from tests.models.test_vit import tiny as vit
from videorl.models.s3d import S3D
from videorl.spec import Clip, Spec


@pytest.mark.parametrize("kind", [*PUBLISHED, "frozen_in_time"])
def test_timesformer(kind):
    model = timesformer(kind).eval()
    video = torch.randn(2, 3, 3, 8, 8)
    found = model.feature_map(video)
    torch.testing.assert_close(found["cls"], model(video)["features"])
    assert found["map"].shape == (2, 1 if kind == "space_only" else 3, 2, 2, 24)


def test_vit():
    model = vit().eval()
    video = torch.randn(2, 3, 4, 16, 16)
    found = model.feature_map(video)
    assert found.keys() == {"map"}
    assert found["map"].shape == (2, 2, 4, 4, 24)
    torch.testing.assert_close(model.fc_norm(found["map"].mean((1, 2, 3))), model(video)["features"])


@pytest.mark.parametrize("lead", [True, False])
def test_mvit(lead):
    model = mvit(cls_embed_on=lead).eval()
    video = torch.randn(2, *model.clip)
    found, features = model.feature_map(video), model(video)["features"]
    assert found["map"].shape == (2, *model.blocks[-1].attn.grid_q, features.shape[1])
    assert found.keys() == ({"map", "cls"} if lead else {"map"})
    torch.testing.assert_close(found["cls"] if lead else found["map"].mean((1, 2, 3)), features)


def test_s3d():
    model = S3D(Spec(Clip(16, 1, 64, 64)), width=0.125, vocabulary=8).eval()
    video = torch.rand(2, 3, 16, 64, 64)
    found = model.feature_map(video)["map"]
    assert found.shape == (2, 2, 2, 2, 128)
    torch.testing.assert_close(found.mean((1, 2, 3)), model(video)["features"])


@pytest.mark.parametrize(
    ("model", "patch"),
    [(vit(depth=0), (2, 4, 4)), (timesformer("joint_space_time", depth=0), (1, 4, 4))],
)
def test_a_cell_is_where_its_patch_is(model, patch):
    """Without blocks a cell depends on the pixels of its patch alone."""
    video = torch.zeros(1, *model.clip)
    plain = model.eval().feature_map(video)["map"]
    time, row, column = 1, 0, 1
    place = [slice(k * side, (k + 1) * side) for k, side in zip((time, row, column), patch, strict=True)]
    video[(0, slice(None), *place)] = 1
    changed = (model.feature_map(video)["map"] != plain).any(-1)
    assert changed.nonzero().tolist() == [[0, time, row, column]]
