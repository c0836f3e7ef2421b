"""Dual encoders against the golden figures of LaViLa, AVION and DistilBERT."""

import sys
from pathlib import Path

import pytest
import torch

from videorl import config, convert
from videorl.engine.info import model_info
from videorl.losses.infonce import InfoNCE
from videorl.models.dual import DualEncoder
from videorl.registry import MODELS, UserError
from videorl.spec import Clip, Spec, Text

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import assert_close, check, limits, load_case  # noqa: E402

CONFIGS = Path(__file__).parents[2] / "configs/Ego4D"
DTYPES = (torch.float32, torch.float64)
LAVILA = ("clip_tiny", "clip_distilbert_default", "clip_distilbert_frozen_in_time")


def lavila(case: dict, frames: int = 0, **keys) -> DualEncoder:
    """The model of a golden case with its weights."""
    settings, vision = case["config"], case["config"]["vision"]
    tower = {name: vision[name] for name in ("patch_size", "embed_dim", "depth", "num_heads")}
    tower |= {"attention_type": "frozen_in_time", "activation": vision["act"], "pre_norm_eps": 1e-5 * vision["ln_pre"]}
    keys["embed_dim"] = settings["embed_dim"]
    if "distilbert" in settings:
        text = Text("hub:distilbert-base-uncased")
        bert = settings["distilbert"]
        keys |= {"text": "distilbert", "text_width": bert["dim"], "text_heads": bert["n_heads"]}
        keys |= {"text_layers": bert["n_layers"], "text_vocabulary": bert["vocab_size"]}
        keys["text_mlp_ratio"] = bert["hidden_dim"] / bert["dim"]
        keys["projection"] = {"default": "matrix", "frozen_in_time": "relu"}[settings["projection"]]
    else:
        text = Text("clip", length=77)
        keys |= {name: settings[name] for name in ("text_width", "text_heads", "text_layers")}
    clip = Clip(frames or vision["num_frames"], 1, vision["img_size"], vision["img_size"])
    model = DualEncoder(Spec(clip, text=text), video=upper(tower), **keys).eval()
    convert.load(model, case["state_dict"], "golden", testing=True)
    return model


def upper(keys: dict) -> dict:
    return {name.upper(): value for name, value in keys.items()}


def scale_of(case: dict) -> torch.Tensor:
    return case["state_dict"]["logit_scale"].exp()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAVILA)
def test_lavila(name, dtype):
    case = load_case(GOLDEN / f"lavila/{name}.pt")
    video, ids = case["inputs"]["video"].to(dtype), case["inputs"]["ids"]
    model = lavila(case, norm_embed=True).to(dtype)
    found = model(video, ids[:, None])
    assert found["text_embed"].shape[1] == 1
    named = {"image_embed": found["video_embed"], "text_embed": found["text_embed"][:, 0]}
    if dtype == torch.float64:
        wanted = case["expected64"]
        assert_close({k: named[k] for k in named if k in wanted}, {k: wanted[k] for k in named if k in wanted},
                     *limits(case, "float64"))  # fmt: skip
        return
    model.norm_embed = False
    raw = model(video, ids)
    check(case, {**named, "image_raw": raw["video_embed"], "text_raw": raw["text_embed"][:, 0]})
    published = case["case"]["parameters"] - 1  # the temperature is the loss's
    assert sum(p.numel() for p in model.parameters()) == published


def test_gradient_of_lavila():
    """Of InfoNCE, whose temperature is the last of the parameters."""
    case = load_case(GOLDEN / "lavila/clip_tiny.pt")
    model, loss = lavila(case), InfoNCE(Spec(Clip(4, 1, 32, 32)), temperature=1 / float(scale_of(case)))
    found = model(case["inputs"]["video"], case["inputs"]["ids"])
    value = loss(found["video_embed"], found["text_embed"])
    value.backward()
    order = convert.layout_of(case["state_dict"]).rename(case["state_dict"], model)
    own = dict(model.named_parameters())
    grads = dict(zip([n for n in case["state_dict"] if n != "logit_scale"], [own[name].grad for name in order]))
    grads["logit_scale"] = loss.log_scale.grad
    expected = case["expected"]["train"]
    norms = {name: float(grad.norm()) for name, grad in grads.items()}
    full = {name: grads[name] for name in expected["full"]}
    check(case, {"train": {"loss": value, "no_grad": [], "norm": norms, "full": full}})


def avion(case: dict) -> DualEncoder:
    settings = case["config"]
    tower = {"attention_type": "joint_space_time", "patch_size": settings["patch_size"], "depth": settings["layers"]}
    tower |= {"embed_dim": settings["width"], "num_heads": settings["heads"], "pre_norm_eps": 1e-6, "resize": "linear"}
    keys = {name: settings[name] for name in ("text_width", "text_heads", "text_layers")}
    keys |= {"text_vocabulary": settings["vocab_size"], "embed_dim": settings["output_dim"]}
    spec = Spec(Clip(settings["num_frames"], 1, 32, 32), text=Text("clip", length=77))
    return DualEncoder(spec, video=upper(tower), text_activation="gelu", norm_embed=True, **keys).eval()


@pytest.mark.parametrize("dtype", DTYPES)
def test_avion(dtype):
    case = load_case(GOLDEN / "lavila/avion_clip.pt")
    model = avion(case)
    convert.load(model, case["state_dict"], "golden", testing=True)
    found = model.to(dtype)(case["inputs"]["video"].to(dtype), case["inputs"]["ids"])
    named = {"image_embed": found["video_embed"], "text_embed": found["text_embed"][:, 0]}
    if dtype == torch.float32:
        check(case, named)
        assert sum(p.numel() for p in model.parameters()) == case["case"]["parameters"] - 1
    else:
        wanted = {name: value for name, value in case["expected64"].items() if name in named}
        assert_close(named, wanted, *limits(case, "float64"))


@pytest.mark.slow
def test_lavila_base_at_its_size():
    case = load_case(GOLDEN / "lavila/clip_base_real_size.pt")
    cfg = config.load([CONFIGS / "TSF_B_CLIP.yaml"], ["DUAL.NORM_EMBED", "True"])
    entry, values = config.component(cfg, MODELS, "DualEncoder")
    model = entry(config.spec(cfg), values=values).eval()
    convert.load(model, case["state_dict"], "golden", testing=True)
    with torch.no_grad():
        found = model(case["inputs"]["video"], case["inputs"]["ids"])
    check(case, {"image_embed": found["video_embed"], "text_embed": found["text_embed"][:, 0]})
    check(case, {"visual_feature": found["features"]})


# Of LaViLa and AVION, the temperature left out.
PARAMETERS = {
    "TSF_B_CLIP": 177_662_976,
    "TSF_L_336_DISTILBERT": 471_143_936,
    "AVION_VITB": 149_296_128,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_published_models(name):
    cfg = config.load([CONFIGS / f"{name}.yaml"])
    entry, values = config.component(cfg, MODELS, cfg.MODEL.MODEL_NAME)
    with torch.device("meta"):
        model = entry(config.spec(cfg), values=values)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


# --- ours ------------------------------------------------------------------------------------------------------------

TOWER = upper({"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2})
TEXT = {"text_width": 16, "text_heads": 2, "text_layers": 2, "text_vocabulary": 50}


def tiny(kind: str = "clip", *, act_checkpoint: bool = False, words: int = 6, **keys) -> DualEncoder:
    torch.manual_seed(0)
    text = Text({"clip": "clip", "distilbert": "hub:distilbert-base-uncased"}[kind], length=words)
    spec = Spec(Clip(3, 1, 8, 8), text=text, act_checkpoint=act_checkpoint)
    return DualEncoder(spec, video=TOWER, text=kind, embed_dim=8, **{**TEXT, **keys})


def batch(words: int = 6) -> dict[str, torch.Tensor]:
    return {"video": torch.randn(2, 3, 3, 8, 8), "text": torch.randint(1, 50, (2, 4, words))}


@pytest.mark.parametrize("kind", ["clip", "distilbert"])
def test_several_texts_of_a_clip_are_embedded_one_by_one(kind):
    model, clips = tiny(kind).eval(), batch()
    clips["text"][:, 1, 3:] = 0
    found = model(**clips)
    assert found["text_embed"].shape == (2, 4, 8)
    for k in range(4):
        alone = model.embed_text(clips["text"][:, k])
        torch.testing.assert_close(found["text_embed"][:, k : k + 1], alone)
    assert set(model(clips["video"])) == {"video_embed", "features"}


def test_padding_changes_no_text():
    """DistilBERT does not attend to it; CLIP's text looks back only."""
    for kind in ("clip", "distilbert"):
        model, text = tiny(kind).eval(), torch.tensor([[5, 7, 49, 0, 0, 0]])
        torch.testing.assert_close(model.embed_text(text), model.embed_text(text[:, :3]))


def test_the_class_token_of_the_feature_map_is_what_is_projected():
    model, clips = tiny().eval(), batch()
    found = model.feature_map(clips["video"])
    assert found["map"].shape == (2, 3, 2, 2, 24)
    torch.testing.assert_close(found["cls"] @ model.video_projection, model(clips["video"])["video_embed"])


def test_a_text_without_words_has_an_embedding():
    assert tiny("distilbert").embed_text(torch.zeros(2, 6, dtype=torch.int64)).isfinite().all()


def test_multiply_adds_of_both_towers():
    info = model_info(config.load([CONFIGS / "TSF_B_CLIP.yaml"]))
    macs = {part.name: part.macs for part in info.parts}
    linear = 12 * 16 - 10  # of the last block the class token alone is asked for
    blocks = 785 * (linear * 768**2 + 12 * 2 * 768 * (197 + 5))  # its class token attends to a little more
    assert macs["video"] == pytest.approx(blocks, rel=0.02)
    assert macs["text"] == pytest.approx(12 * 77 * (12 * 512**2 + 2 * 512 * 77), rel=0.01)


@pytest.mark.parametrize("kind", ["clip", "distilbert"])
def test_activation_checkpointing_changes_nothing(kind):
    clips = batch()
    plain, checkpointed = tiny(kind), tiny(kind, act_checkpoint=True)
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        found = model(**clips)
        (found["video_embed"].square().sum() + found["text_embed"].square().sum()).backward()
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_checkpoint_of_other_clips_and_longer_texts():
    source = tiny(words=9)
    spec = Spec(Clip(6, 1, 12, 12), text=Text("clip", length=6))
    target = DualEncoder(spec, video=TOWER, embed_dim=8, **TEXT)
    _, audit = convert.fit(target, source.state_dict(), "x.pth", testing=True)
    assert audit.part == 1
    assert set(audit.interpolated) == {"video.pos_embed", "video.time_embed", "text.model.positional_embedding"}


def test_no_weight_decay():
    assert tiny().no_weight_decay() == set()
    spec = Spec(Clip(3, 1, 8, 8), text=Text("clip"))
    model = DualEncoder(spec, video={**TOWER, "ZERO_DECAY_POS_CLS": True}, embed_dim=8, **TEXT)
    spared = [n for n, _ in model.named_parameters() if any(part in n for part in model.no_weight_decay())]
    assert spared == ["video.cls_token", "video.pos_embed", "video.time_embed", "text.model.positional_embedding"]


def test_distilbert_starts_from_a_folder(tmp_path):
    source = tiny("distilbert")
    source.text.model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    spec = Spec(Clip(3, 1, 8, 8), text=Text("hub:distilbert-base-uncased"))
    keys = {"video": TOWER, "text": "distilbert", "embed_dim": 8, "text_weights": str(tmp_path)}
    model = DualEncoder(spec, **keys, **TEXT)
    assert all(torch.equal(a, b) for a, b in zip(source.text.parameters(), model.text.parameters()))
    with pytest.raises(UserError, match="has n_layers 2, DUAL.TEXT_LAYERS says 6: set 2"):
        DualEncoder(spec, **keys, **{**TEXT, "text_layers": 6})


def test_errors_say_what_to_change(tmp_path):
    with pytest.raises(UserError, match="DUAL.TEXT distilbert needs TEXT.TOKENIZER a folder .*, found words; set one"):
        DualEncoder(Spec(Clip(3, 1, 8, 8)), video=TOWER, text="distilbert")
    with pytest.raises(UserError, match="texts of 7 tokens, the text tower has places for 6: set MAX_WORDS"):
        tiny()(**batch(7))
    with pytest.raises(UserError, match="TEXT_WEIGHTS distilbert-base-uncased is no folder; .* hub:distilbert"):
        tiny("distilbert", text_weights="distilbert-base-uncased")
    with pytest.raises(UserError, match="cannot be read: "):
        tiny("distilbert", text_weights=str(tmp_path))


@pytest.mark.parametrize(("kind", "library"), [("clip", "open_clip"), ("distilbert", "transformers")])
def test_a_library_that_is_not_here_is_told(kind, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.transformer", None)
    with pytest.raises(UserError, match=rf"DUAL.TEXT {kind} needs {library}, .*pip install 'videorl\[text\]'"):
        tiny(kind)
