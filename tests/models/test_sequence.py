"""VideoCLIP against the published model: outputs, names of weights, what is trained."""

import sys
from pathlib import Path

import pytest
import torch

from videorl import convert
from videorl.convert import videoclip
from videorl.models.sequence import VideoCLIP, VideoCLIPFrames
from videorl.registry import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path[:0] = [str(GOLDEN), str(Path(__file__).parent)]
import videoclip as tiny_videoclip  # noqa: E402
from recipe import assert_close, check, load_case  # noqa: E402

OUTPUTS = {
    "pooled_video": "video_embed",
    "pooled_text": "text_embed",
    "video_outputs": "video_tokens",
    "text_outputs": "text_tokens",
    "video_mask_outputs": "video_token_mask",
    "text_mask_outputs": "text_token_mask",
}


def inputs_of(case) -> dict:
    given = case["inputs"]
    texts = {"text": tiny_videoclip.one_sep(given["caps"]), "text_mask": tiny_videoclip.one_sep(given["cmasks"])}
    return {"video_features": given["vfeats"], "video_mask": given["vmasks"], **texts}


@pytest.mark.parametrize(("name", "keys"), [("L16", {}), ("L32", {}), ("full_video_background", {"attend_cls": False})])
def test_videoclip_as_published(name, keys):
    case = load_case(GOLDEN / f"norton/model_{name}.pt")
    model, given = tiny_videoclip.tiny(case, **keys), inputs_of(case)
    found = model(**given)
    check(case, {name: found[OUTPUTS[name]] for name in case["expected"]})
    exact = model.double()(**{k: v.double() if v.is_floating_point() else v for k, v in given.items()})
    assert_close(exact["video_embed"], case["expected64"]["pooled_video"], 1e-12, 1e-9)
    alone = model(video_features=given["video_features"].double(), video_mask=given["video_mask"])
    assert alone.keys() == {"video_embed", "video_tokens", "video_token_mask"}


def test_a_class_for_each_frame_as_published():
    case = load_case(GOLDEN / "norton/model_coin_head.pt")
    model = tiny_videoclip.tiny(case, VideoCLIPFrames, attend_cls=False)
    check(case, model(case["inputs"]["vfeats"], case["inputs"]["vmasks"]))


def test_names_of_weights_and_what_norton_trains():
    published = load_case(GOLDEN / "norton/state_dict_keys_full.pt")["expected"]
    with torch.device("meta"):
        model = VideoCLIP(tiny_videoclip.SPEC, train="layer_norms")
    names = {f"mmmodel.{name}": torch.empty(shape, device="meta") for name, shape in published["keys"].items()}
    assert convert.layout_of(names) is videoclip
    renamed = videoclip.rename(names, model)
    assert {n: v.shape for n, v in renamed.items()} == {n: v.shape for n, v in model.state_dict().items()}
    assert len(names) == len(renamed) + 2 == 310
    counts = published["parameters"]
    assert sum(p.numel() for p in model.parameters()) == counts["total"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == counts["layernorm_only"]


def test_features_of_another_width_are_refused():
    model = tiny_videoclip.tiny(load_case(GOLDEN / "norton/model_L16.pt"))
    with pytest.raises(UserError, match="VIDEOCLIP.FEATURES 512: the data set's have 768 numbers"):
        model(video_features=torch.zeros(1, 3, 768), video_mask=torch.ones(1, 3))
