"""What a model says of clips that it cannot take."""

import pytest
import torch

from videorl import config
from videorl.engine import build
from videorl.engine.step import normalise
from videorl.registry import UserError

SMALL = {
    "DATA.NUM_FRAMES": 4, "DATA.TRAIN_CROP_SIZE": 32, "MODEL.NUM_CLASSES": 3, "NUM_GPUS": 0,
    "MODEL.PATCH_SIZE": [2, 16, 16], "VIT.EMBED_DIM": 16, "VIT.NUM_HEADS": 2, "VIT.DEPTH": 1,
    "MVIT.EMBED_DIM": 8, "MVIT.DEPTH": 1, "TIMESFORMER.EMBED_DIM": 16, "TIMESFORMER.NUM_HEADS": 2,
    "TIMESFORMER.DEPTH": 1, "S3D.WIDTH": 0.05, "S3D.VOCABULARY": 4,
}  # fmt: skip


def model(name: str, **more):
    words = {**SMALL, "MODEL.MODEL_NAME": name, **more}
    cfg = config.load([], [str(word) for pair in words.items() for word in pair])
    return build.model(cfg).eval(), config.spec(cfg).clip


@pytest.mark.parametrize("name", ["ViT", "MViT", "TimeSformer", "S3D"])
def test_clips_as_they_are_decoded_are_told_from_normalised_ones(name):
    net, clip = model(name)
    decoded = torch.randint(256, (1, 4, 3, 32, 32), dtype=torch.uint8)
    for wrong in (decoded, decoded.transpose(1, 2), decoded[0].float()):
        with pytest.raises(UserError, match=r"takes clips \[B, C, T, H, W\] of floats.*step.normalise makes them"):
            net(video=wrong)
    with torch.no_grad():
        net(video=normalise(decoded, clip))


@pytest.mark.parametrize(
    ("shape", "cure"),
    [
        ((1, 3, 4, 32, 32), "change DATA.INPUT_CHANNEL_NUM (decoded videos have 3 channels)"),
        ((1, 1, 8, 32, 32), "change DATA.NUM_FRAMES"),
        ((1, 1, 4, 48, 48), "change DATA.TEST_CROP_SIZE, which must be DATA.TRAIN_CROP_SIZE"),
        ((1, 3, 8, 32, 32), "change DATA.INPUT_CHANNEL_NUM (decoded videos have 3 channels) and DATA.NUM_FRAMES"),
        ((1, 4, 1, 32, 32), "the axes stand in another order; permute them"),
        ((1, 4, 32, 32, 1), "the axes stand in another order; permute them"),
    ],
)
def test_the_advice_fits_the_axis_that_is_wrong(shape, cure):
    net, _ = model("ViT", **{"DATA.INPUT_CHANNEL_NUM": [1]})
    with pytest.raises(UserError) as error:
        net(video=torch.zeros(shape))
    found = str(tuple(shape[1:]))
    assert str(error.value).startswith(f"ViT was built for clips (1, 4, 32, 32), found {found}: {cure} (the axes")


def test_masked_models_take_frames_first():
    net, _ = model("VideoMAE", **{"MASK.RATIO": 0.5, "MODEL.LOSS_FUNC": "masked_pixels"})
    tokens = torch.arange(4)[None]
    with pytest.raises(UserError, match=r"clips \(4, 3, 32, 32\), found .*: the axes stand in another.* T, C, H, W"):
        net(torch.zeros(1, 3, 4, 32, 32), tokens, tokens)
