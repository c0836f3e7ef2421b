"""Files of LaViLa, EgoVLP, AVION, CLIP, TimeSformer and timm: round trips, what they leave out, and what is said."""

import argparse
from pathlib import Path

import pytest
import torch

from videorl import checkpoint, config, convert
from videorl.convert import facts
from videorl.models.dual import DualEncoder
from videorl.models.timesformer import TimeSformer
from videorl.registry import UserError
from videorl.spec import Clip, Spec, Text

SMALL = {"PATCH_SIZE": 4, "EMBED_DIM": 24, "DEPTH": 2, "NUM_HEADS": 2}
FROZEN = {**SMALL, "ATTENTION_TYPE": "frozen_in_time", "ACTIVATION": "quick_gelu", "RESIZE": "linear"}
CLIPPED = {**FROZEN, "PRE_NORM_EPS": 1e-5}
JOINT = {**SMALL, "ATTENTION_TYPE": "joint_space_time", "PRE_NORM_EPS": 1e-6, "RESIZE": "linear"}
TEXT = {"text_width": 16, "text_heads": 2, "text_layers": 2, "text_vocabulary": 50, "embed_dim": 8}


def spec_of(kind: str = "clip", frames: int = 3, size: int = 8) -> Spec:
    return Spec(Clip(frames, 1, size, size), {"labels": 5}, text=Text(kind, length=6))


def dual(video: dict, *, seed: int = 0, frames: int = 3, text: str = "clip", **keys) -> DualEncoder:
    """With weights that tell every tensor from every other."""
    torch.manual_seed(seed)
    spec = spec_of({"clip": "clip", "distilbert": "hub:distilbert-base-uncased"}[text], frames)
    return shaken(DualEncoder(spec, video=video, text=text, **{**TEXT, **keys}))


def classifier(attention: str, *, seed: int = 0, **keys) -> TimeSformer:
    torch.manual_seed(seed)
    small = {name.lower(): value for name, value in {**SMALL, **keys}.items()}
    return shaken(TimeSformer(spec_of(), attention_type=attention, **small))


def shaken(model):
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter)
    return model


# --- published names of our tensors, written down apart from the tables that read them -----------------------------


def to_lavila(model: DualEncoder) -> dict:
    """As main_pretrain.py saves it: the tower as `visual`, CLIP's text at the top, DistilBERT as `textual`."""
    names = {}
    for name, value in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "video":
            rest = rest.replace("time_embed", "temporal_embed").replace("temporal_norm1", "norm3")
            rest = rest.replace("temporal_gate", "alpha_timeattn").replace("temporal_attn", "timeattn")
            names[f"visual.{rest}"] = value
        elif part == "text":
            bert = "embeddings." in rest or "transformer.layer" in rest
            names["textual." * bert + rest.removeprefix("model.")] = value
        else:
            modules = {"weight": ".0" if part == "video_projection" else ".1"}
            modules["bias"] = modules["weight"]
            front = part.replace("video", "image") + modules.get(rest, "")
            names[front + f".{rest}" * bool(rest)] = value
    return {"logit_scale": torch.tensor(2.659), **names}


def to_egovlp(model: DualEncoder) -> dict:
    """As the release: video_model, text_model, vid_proj, txt_proj; no temperature."""
    parts = {"visual.": "video_model.", "textual.": "text_model."}
    parts |= {"image_projection.": "vid_proj.", "text_projection.": "txt_proj."}
    names = {}
    for name, value in to_lavila(model).items():
        for theirs, own in parts.items():
            name = own + name.removeprefix(theirs) if name.startswith(theirs) else name
        names[name] = value
    del names["logit_scale"]
    return names


BLOCK = {"norm1": "ln_1", "norm2": "ln_2", "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj"}
BLOCK |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
FLASH = {"norm1": "ln_1", "norm2": "ln_2", "attn.qkv.": "attn.Wqkv.", "attn.proj": "attn.out_proj"}


def to_avion(model: DualEncoder, block: dict, fast: bool) -> dict:
    top = {"cls_token": "class_embedding", "pos_embed": "positional_embedding", "time_embed": "temporal_embedding"}
    names = {"logit_scale": torch.tensor(2.659)}
    for name, value in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "video" and rest.startswith("blocks."):
            _, number, rest = rest.split(".", 2)
            for own, theirs in block.items():
                rest = rest.replace(own, theirs)
            names[f"visual.transformer.resblocks.{number}.{rest}"] = value
        elif rest == "patch_embed.proj.weight":
            names["visual.conv1.weight"] = value.flatten(1) if fast else value
        elif rest in top:
            names[f"visual.{top[rest]}"] = value.squeeze()
        elif part == "video":
            names[f"visual.{rest}".replace("visual.norm.", "visual.ln_post.")] = value
        elif part == "text":
            names[f"textual.{rest.removeprefix('model.')}"] = value
        else:
            names["visual.image_projection" if part == "video_projection" else "textual.text_projection"] = value
    return names


def to_clip(model: DualEncoder) -> dict:
    """OpenAI's: an image model, its text at the top, in half precision."""
    names = {}
    for name, value in to_avion(model, BLOCK, fast=False).items():
        if "temporal" in name:
            continue
        name = name.replace("visual.image_projection", "visual.proj").removeprefix("textual.")
        names[name] = value.half()
    return {**names, "input_resolution": torch.tensor(8), "context_length": torch.tensor(6)}


def same(model, weights: dict) -> bool:
    """Whether a file with these weights makes the model the one that they are of."""
    given = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {f"module.{name}": value.clone() for name, value in weights.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    convert.load(model, {"epoch": 1, "state_dict": weights}, "x.pt", testing=True)
    return all(torch.equal(value, given[name]) for name, value in model.state_dict().items())


ROUND_TRIPS = {
    "LaViLa": lambda: (m := dual(CLIPPED), to_lavila(m)),
    "LaViLa, gated": lambda: (m := dual({**CLIPPED, "TEMPORAL_GATE": True}), to_lavila(m)),
    "LaViLa, DistilBERT": lambda: (m := dual(CLIPPED, text="distilbert"), to_lavila(m)),
    "EgoVLP in LaViLa": lambda: (m := dual(FROZEN, text="distilbert", projection="relu"), to_lavila(m)),
    "EgoVLP": lambda: (m := dual(FROZEN, text="distilbert", projection="relu"), to_egovlp(m)),
    "AVION": lambda: (m := dual(JOINT), to_avion(m, BLOCK, fast=False)),
    "AVION, FlashAttention": lambda: (m := dual(JOINT), to_avion(m, FLASH, fast=True)),
}


@pytest.mark.parametrize("layout", ROUND_TRIPS)
def test_round_trip(layout):
    assert same(*ROUND_TRIPS[layout]())


def in_model(model) -> dict:
    return {f"model.{n}": v for n, v in model.state_dict().items()}


@pytest.mark.parametrize("attention", ["divided_space_time", "joint_space_time", "space_only"])
def test_round_trip_of_timesformer(attention):
    """Its checkpoints have `model.` in front of every name."""
    model = classifier(attention)
    assert same(model, {n.replace("head.projection", "head"): v for n, v in in_model(model).items()})


# --- models of images -------------------------------------------------------------------------------------------------


def start(model, weights: dict) -> tuple[dict, convert.Audit]:
    """The tensors as they were before, and the audit, of a training that starts from these weights."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, audit = convert.fit(model, weights, "x.pt")
    convert.load(model, weights, "x.pt")
    return before, audit


@pytest.mark.parametrize("video", [CLIPPED, JOINT])
def test_clip_starts_a_video_model(video):
    source, model = dual(video, embed_dim=12), dual(video, seed=1)
    before, audit = start(model, to_clip(source))
    assert audit.part == 1
    theirs = source.state_dict()
    for name, value in model.state_dict().items():
        fresh = "temporal" in name or "time_embed" in name or name.endswith("_projection")
        expected = before[name] if fresh else theirs[name].half().float()
        assert torch.equal(value, expected), name
    assert {name for name in model.state_dict() if "_projection" in name} <= set(audit.fresh)


def test_clip_s_projections_are_taken_where_they_fit():
    source, model = dual(CLIPPED), dual(CLIPPED, seed=1)
    start(model, to_clip(source))
    for name in ("video_projection", "text_projection"):
        assert torch.equal(model.state_dict()[name], source.state_dict()[name].half().float())


def timm_weights() -> dict:
    """Those of a small ViT of timm itself."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(img_size=8, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=7)
    return {name: value + torch.randn_like(value) for name, value in vit.state_dict().items()}


def test_timm_starts_timesformer_as_published():
    weights, model = timm_weights(), classifier("divided_space_time", seed=1)
    before, _ = start(model, weights)
    found = model.state_dict()
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.1.mlp.fc2.bias", "norm.weight"):
        assert torch.equal(found[name], weights[name])
    for ours in (name for name in found if "temporal_attn" in name or "temporal_norm1" in name):
        assert torch.equal(found[ours], weights[ours.replace("temporal_", "")])
    for name in ("time_embed", "blocks.0.temporal_fc.weight", "head.projection.weight"):
        assert torch.equal(found[name], before[name])


def test_timm_starts_lavila_s_tower_without_time():
    weights, model = timm_weights(), classifier("frozen_in_time", seed=1)
    before, audit = start(model, weights)
    assert audit.part == 1
    found = model.state_dict()
    assert all(torch.equal(found[name], before[name]) for name in found if "temporal_" in name)
    assert torch.equal(found["blocks.0.attn.qkv.weight"], weights["blocks.0.attn.qkv.weight"])


# --- other models, other clips, and files as they are -----------------------------------------------------------------


def test_a_tower_alone_starts_from_a_dual_encoder():
    """Fine-tuning to classes: the text tower has no place, which the audit says."""
    source = dual(CLIPPED)
    model = classifier("frozen_in_time", seed=1, ACTIVATION="quick_gelu", PRE_NORM_EPS=1e-5)
    _, audit = start(model, to_lavila(source))
    assert audit.part == 1
    assert "text.model.ln_final.weight" in audit.unexpected
    for name, value in source.video.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_more_frames_and_fewer():
    weights = to_lavila(dual(CLIPPED))
    for frames in (2, 6):
        model = dual(CLIPPED, seed=1, frames=frames)
        _, audit = convert.fit(model, weights, "x.pt", testing=True)
        assert audit.part == 1
        assert list(audit.interpolated) == ["video.time_embed"]


def test_a_file_with_settings_is_read_without_running_anything(tmp_path):
    source, model, file = dual(CLIPPED), dual(CLIPPED, seed=1), tmp_path / "checkpoint_best.pt"
    state = {"epoch": 4, "state_dict": {f"module.{n}": v for n, v in to_lavila(source).items()}, "best_acc1": 31.5}
    torch.save({**state, "args": argparse.Namespace(model="CLIP_OPENAI_TIMESFORMER_BASE", clip_length=4)}, file)
    convert.load(model, checkpoint.read(file), str(file), testing=True)
    assert torch.equal(model.video_projection, source.video_projection)


def test_a_script_of_torch_is_told_how_to_become_a_file_of_weights(tmp_path):
    """OpenAI's CLIP is released as one."""
    file = tmp_path / "ViT-B-16.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(file)
    with pytest.raises(UserError, match=r"TorchScript.*torch.save\(torch.jit.load"):
        checkpoint.read(file)


def test_the_temperature_is_said_to_be_the_loss_s():
    _, audit = convert.fit(dual(CLIPPED), to_lavila(dual(CLIPPED)), "x.pt", testing=True)
    assert "logit_scale" not in audit.unexpected
    assert any(
        line.startswith("logit_scale 2.659: not taken, the temperature belongs to the loss") for line in audit.said
    )


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("LaViLa, gated", {"PRE_NORM_EPS": 1e-5, "ACTIVATION": "quick_gelu", "TEMPORAL_GATE": True}),
        ("EgoVLP", {"PRE_NORM_EPS": 0.0, "ACTIVATION": "gelu", "TEMPORAL_GATE": False}),
        ("AVION, FlashAttention", {"ATTENTION_TYPE": "joint_space_time", "ACTIVATION": "gelu", "PRE_NORM_EPS": 1e-6}),
    ],
)
def test_what_files_say_of_themselves(layout, expected):
    """Every setting that shapes do not check, but for the heads of widths that were never published."""
    model, weights = ROUND_TRIPS[layout]()
    said = facts.facts({"state_dict": {f"module.{n}": v for n, v in weights.items()}}, "x.pt")
    assert {key: said[f"TIMESFORMER.{key}"] for key in expected} == expected
    assert (said["DATA.NUM_FRAMES"], said["DATA.TRAIN_CROP_SIZE"], said["TIMESFORMER.PATCH_SIZE"]) == (3, 8, 4)
    assert (said["TIMESFORMER.EMBED_DIM"], said["TIMESFORMER.DEPTH"]) == (24, 2)
    text = "distilbert" if layout == "EgoVLP" else "clip"
    assert {key: said[f"DUAL.{key}"] for key in ("TEXT", "TEXT_WIDTH", "TEXT_LAYERS", "EMBED_DIM")} == {
        "TEXT": text, "TEXT_WIDTH": 16, "TEXT_LAYERS": 2, "EMBED_DIM": 8
    }  # fmt: skip
    assert said["DATA.MEAN"][0] == (0.485 if layout == "EgoVLP" else 0.42481293)
    assert config.valid(said, "x.pt")[1] == [], "all are keys of ours, with values that they take"


def test_a_checkpoint_of_timesformer_says_its_attention_and_clip():
    """In its `cfg`, under its own names."""
    published = (Path(__file__).parents[1] / "dialect/timesformer.yaml").read_text().replace("divided", "joint")
    weights = {f"model.{n}": v for n, v in timm_weights().items()}
    said = facts.facts({"epoch": 14, "model_state": weights, "cfg": published}, "x.pyth")
    assert (said["ATTENTION_TYPE"], said["DATA.NUM_FRAMES"], said["DATA.SAMPLING_RATE"]) == ("joint_space_time", 8, 32)


def test_a_checkpoint_of_ours_says_the_settings_of_both_towers():
    file = Path(__file__).parents[2] / "configs/Ego4D/TSF_B_CLIP.yaml"
    said = facts.of_config(config.dump(config.load([file])))
    assert (said["TIMESFORMER.EMBED_DIM"], said["EMBED_DIM"], said["TEXT_WIDTH"]) == (768, 256, 512)
    assert (said["TIMESFORMER.PRE_NORM_EPS"], said["TEXT.TOKENIZER"]) == (1e-5, "clip")
    assert not {key for key in said if key.endswith(("DROPPATH_RATE", "ZERO_DECAY_POS_CLS"))}, "those are of training"


def test_each_file_has_one_layout():
    registered = convert.layouts()
    files = [weights for make in ROUND_TRIPS.values() for weights in [make()[1]]]
    files += [to_clip(dual(JOINT)), timm_weights()]
    for weights in files:
        assert len([layout for layout in registered if layout.matches(set(weights))]) == 1
    assert not any(layout.matches(set(dual(CLIPPED).state_dict())) for layout in registered), "ours is none of them"
