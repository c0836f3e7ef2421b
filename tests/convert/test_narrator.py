"""Files of LaViLa's narrators: round trip, other clips, and starting from a dual encoder."""

import argparse
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from published import published_names

from videorl import checkpoint, convert
from videorl.convert import layout_of, narrator
from videorl.models.dual import DualEncoder
from videorl.models.narrator import Narrator
from videorl.registry import UserError
from videorl.spec import Clip, Spec, Text

VIDEO = {"PATCH_SIZE": 4, "EMBED_DIM": 24, "DEPTH": 2, "NUM_HEADS": 2, "ATTENTION_TYPE": "frozen_in_time"}
VIDEO |= {"ACTIVATION": "quick_gelu", "PRE_NORM_EPS": 1e-5, "RESIZE": "linear"}
LANGUAGE = {"width": 16, "heads": 2, "layers": 4, "vocabulary": 50, "context": 20, "queries": 4}


def model_of(seed: int, frames: int = 3, **keys) -> Narrator:
    torch.manual_seed(seed)
    model = Narrator(Spec(Clip(frames, 1, 8, 8)), video=VIDEO, **{**LANGUAGE, "cross_every": 2, **keys})
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter)
    return model


def released(model: Narrator) -> dict:
    """As main_pretrain.py saves it: names of DistributedDataParallel, a Namespace, the masks of an older GPT-2."""
    weights = {f"module.{name}": value.clone() for name, value in published_names(model.state_dict()).items()}
    return {"epoch": 3, "state_dict": weights, "args": argparse.Namespace(model="VCLM_OPENAI_TIMESFORMER_BASE_GPT2")}


@pytest.mark.parametrize("gated", [True, False])
def test_round_trip_of_a_file(tmp_path, gated, caplog):
    model, other = model_of(0, gated=gated), model_of(1, gated=gated)
    torch.save(released(model), tmp_path / "narrator.pt")
    state = checkpoint.read(tmp_path / "narrator.pt")
    caplog.set_level("INFO", "videorl")
    convert.load(other, state, "narrator.pt", testing=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert "100" in caplog.text
    torch.save({"model_state": other.state_dict()}, tmp_path / "own.pyth")
    again = model_of(2, gated=gated)
    convert.load(again, checkpoint.read(tmp_path / "own.pyth"), "own.pyth", testing=True)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_what_a_file_says_of_itself():
    weights = published_names(model_of(0, width=64, heads=1).state_dict())
    assert layout_of(weights) is narrator
    found = narrator.says({}, weights)
    expected = {"WIDTH": 64, "HEADS": 1, "LAYERS": 4, "VOCABULARY": 50, "CONTEXT": 20, "QUERIES": 4, "CROSS_EVERY": 2}
    assert {f"NARRATOR.{key}": value for key, value in expected.items()}.items() <= found.items()
    assert found["NARRATOR.GATED"] is True
    assert found["TIMESFORMER.ATTENTION_TYPE"] == "frozen_in_time"
    assert found["DATA.NUM_FRAMES"] == 3


def test_more_frames_than_the_file():
    model, longer = model_of(0), model_of(1, frames=5)
    convert.load(longer, released(model), "narrator.pt", testing=True)
    table = torch.nn.functional.interpolate(model.video.time_embed.mT, size=5, mode="linear").mT
    torch.testing.assert_close(longer.video.time_embed, table)


def test_training_starts_from_a_dual_encoder_and_testing_does_not(tmp_path):
    spec = Spec(Clip(3, 1, 8, 8), text=Text("clip", length=6))
    text = {"text_width": 16, "text_heads": 2, "text_layers": 1, "text_vocabulary": 50, "embed_dim": 8}
    torch.manual_seed(0)
    dual, model = DualEncoder(spec, video=VIDEO, **text), model_of(1)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    convert.load(model, {"model_state": dual.state_dict()}, "dual.pyth")
    for name, value in model.state_dict().items():
        expected = dual.state_dict()[name] if name.startswith("video.") else own[name]
        assert torch.equal(value, expected), name
    with pytest.raises(UserError, match=r"\d+ missing: .*expected at least 100 %"):
        convert.load(model, {"model_state": dual.state_dict()}, "dual.pyth", testing=True)
