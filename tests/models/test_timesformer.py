"""TimeSformer and its kin against the golden figures of facebookresearch/TimeSformer and LaViLa, and transformers."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from videorl.models import timesformer
from videorl.models.timesformer import Attention, TimeSformer, Tower, with_class
from videorl.registry import UserError
from videorl.spec import Clip, Head, Spec

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import assert_close, assert_summary, check, limits, load_case  # noqa: E402

DTYPES = (torch.float32, torch.float64)
PUBLISHED = ("divided_space_time", "joint_space_time", "space_only")
LAVILA = ("timesformer_clip", "timesformer_clip_gated", "timesformer_frozen_in_time")
SMALL = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


def spec_of(frames: int, size: int, classes: int = 5, **facts) -> Spec:
    return Spec(Clip(frames, 1, size, size), {"labels": classes}, **facts)


def tiny(attention_type="divided_space_time", *, frames=3, size=8, act_checkpoint=False, **keys) -> TimeSformer:
    torch.manual_seed(0)
    spec = spec_of(frames, size, act_checkpoint=act_checkpoint)
    model = TimeSformer(spec, attention_type=attention_type, **{**SMALL, **keys})
    for parameter in model.parameters():  # none at a start where it has no effect
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def published(case: dict, *, frames: int, size: int) -> TimeSformer:
    config = case["config"]
    keys = {name: config[name] for name in ("attention_type", "patch_size", "embed_dim", "depth", "num_heads")}
    return TimeSformer(spec_of(frames, size, config["num_classes"]), **keys)


def own_names(weights: dict) -> dict:
    """Our names of TimeSformer's weights."""
    return {name.replace("head.", "head.projection."): value for name, value in weights.items()}


def norms_of(grads: dict) -> dict:
    return {name: float(grad.double().norm()) for name, grad in grads.items()}


def by_place(tokens: torch.Tensor, frames: int) -> torch.Tensor:
    """`[B, 1 + T*N, D]` in the published order of places, then frames."""
    return torch.cat([tokens[:, :1], tokens[:, 1:].unflatten(1, (frames, -1)).transpose(1, 2).flatten(1, 2)], dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_model(kind, dtype):
    case = load_case(GOLDEN / f"timesformer/{kind}.pt")
    frames = case["config"]["num_frames"]
    model = published(case, frames=frames, size=64).to(dtype)
    model.load_state_dict(own_names(case["state_dict"]))
    taps = {}
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, __, out, name=f"blocks.{number}": taps.update({name: out}))
    features = model.tokens(case["inputs"]["video"].to(dtype))[:, 0]
    outputs = {**model.head(features), "features": features}
    loss = F.cross_entropy(outputs["logits"], case["inputs"]["labels"])
    loss.backward()
    grads = {name.replace("projection.", ""): p.grad for name, p in model.named_parameters()}
    train = {"loss": loss, "no_grad": [], "norm": norms_of(grads), "full": grads}
    if dtype == torch.float64:
        assert_close(outputs["logits"], case["expected64"]["logits"], *limits(case, "float64"))
        assert_close(train, case["expected64"]["train"], *limits(case, "float64_gradients"))
        return
    check(case, {**outputs, "train": train})
    assert sum(p.numel() for p in model.parameters()) == case["case"]["parameters"]
    for name, out in taps.items():
        out = out if kind == "space_only" else by_place(out, frames)
        assert_summary(out, case["expected"]["taps"][name], *limits(case, "taps"), name)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_model_for_other_clips(kind):
    """Tables of 4 frames of 64 pixels for clips of 8 frames of 96: nearest neighbours."""
    case = load_case(GOLDEN / f"timesformer/{kind}.pt")
    video = case["inputs"]["video_other"]
    model = published(case, frames=video.shape[2], size=video.shape[3])
    weights, names, _ = model.resize_positions(own_names(case["state_dict"]))
    assert names == ["pos_embed", "time_embed"][: 1 + (kind != "space_only")]
    model.load_state_dict(weights)
    check(case, {"logits_other": model(video)["logits"]})


def test_parameters_of_published_models():
    """Of 8 frames and 400 classes: 121,566,352 with divided attention, as published."""
    with torch.device("meta"):
        spec = spec_of(8, 224, 400)
        counts = {
            kind: sum(p.numel() for p in TimeSformer(spec, attention_type=kind).parameters()) for kind in PUBLISHED
        }
    assert counts["divided_space_time"] == 121_566_352
    assert counts["joint_space_time"] - counts["space_only"] == 8 * 768
    assert counts["space_only"] == 86_106_256


# --- LaViLa's --------------------------------------------------------------------------------------------------------

OWN_NAMES = [("temporal_embed", "time_embed"), ("alpha_timeattn", "temporal_gate"), ("timeattn", "temporal_attn")]
OWN_NAMES += [("norm3", "temporal_norm1")]


def lavila_names(weights: dict) -> dict:
    """Our names of LaViLa's weights."""
    renamed = {}
    for name, value in weights.items():
        for theirs, ours in OWN_NAMES:
            name = name.replace(theirs, ours)
        renamed[name] = value
    return renamed


def lavila(config: dict, frames: int) -> Tower:
    keys = {name: config[name] for name in ("patch_size", "embed_dim", "depth", "num_heads")}
    keys |= {"activation": config["act"], "pre_norm_eps": 1e-5 * config["ln_pre"], "resize": "linear"}
    spec = spec_of(frames, config["img_size"])
    return Tower(spec, attention_type="frozen_in_time", temporal_gate=config["tanh_gating"], **keys)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAVILA)
def test_lavila(name, dtype):
    case = load_case(GOLDEN / f"lavila/{name}.pt")
    model = lavila(case["config"], case["config"]["num_frames"]).to(dtype)
    model.load_state_dict(lavila_names(case["state_dict"]))
    video = case["inputs"]["video"].to(dtype).requires_grad_()
    tokens = model.tokens(video)
    found = {"cls": tokens[:, 0], "tokens": tokens}
    loss = found["cls"].square().sum()
    loss.backward()
    ours = {name: p.grad for name, p in model.named_parameters()}
    grads = {name: ours[own] for name, own in zip(case["state_dict"], lavila_names(case["state_dict"]))}
    train = {"loss": loss, "no_grad": [], "norm": norms_of(grads), "full": grads, "video": video.grad}
    if dtype == torch.float32:
        check(case, {**found, "train": train})
        assert sum(p.numel() for p in model.parameters()) == case["case"]["parameters"]
    else:
        assert_close(found["cls"], case["expected64"]["cls"], *limits(case, "float64"))
        assert_close(train, case["expected64"]["train"], *limits(case, "float64_gradients"))


@pytest.mark.parametrize("name", LAVILA)
def test_lavila_with_fewer_frames(name):
    case = load_case(GOLDEN / f"lavila/{name}.pt")
    frames = case["config"]["fewer_frames"]
    model = lavila(case["config"], frames)
    weights, names, _ = model.resize_positions(lavila_names(case["state_dict"]))
    assert names == ["time_embed"]
    model.load_state_dict(weights)
    check(case, {"cls_fewer_frames": model.tokens(case["inputs"]["video"][:, :, :frames])[:, 0]})


def test_lavila_inflates_time_linearly():
    case = load_case(GOLDEN / "lavila/inflate_temporal_embedding.pt")
    table = case["inputs"]["temporal_embed"]
    check(case, {f"bilinear_{n}": timesformer.resized_time(table, n, "cut") for n in (16, 2)})


def test_lavila_begins_as_a_vit():
    """The class token sees no order of the frames, and time attention gets gradients all the same."""
    torch.manual_seed(0)
    tower, video = Tower(spec_of(3, 8), attention_type="frozen_in_time", **SMALL), torch.randn(2, 3, 3, 8, 8)
    lead = tower.tokens(video)[:, 0]
    torch.testing.assert_close(lead, tower.tokens(video.flip(2))[:, 0])
    lead.square().sum().backward()
    assert tower.blocks[0].temporal_attn.qkv.weight.grad.abs().sum() > 0


# --- all of them -----------------------------------------------------------------------------------------------------

ALL = (*PUBLISHED, "frozen_in_time")


@pytest.mark.slow
def test_equals_transformers():
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    for kind in ("divided_space_time", "joint_space_time"):
        shape = {"image_size": 8, "patch_size": 4, "num_frames": 3, "hidden_size": 24, "num_hidden_layers": 2}
        shape |= {"num_attention_heads": 2, "intermediate_size": 96, "num_labels": 5, "attention_type": kind}
        theirs = TimesformerForVideoClassification(TimesformerConfig(**shape, drop_path_rate=0)).eval()
        model = tiny(kind).eval()
        theirs.load_state_dict(to_transformers(model.state_dict()))
        video = torch.randn(2, 3, 3, 8, 8)
        torch.testing.assert_close(model(video)["logits"], theirs(video.transpose(1, 2)).logits, atol=1e-5, rtol=1e-5)


def to_transformers(weights: dict) -> dict:
    """Our names as those of transformers' TimesformerForVideoClassification."""
    parts = [("cls_token", "embeddings.cls_token"), ("pos_embed", "embeddings.position_embeddings")]
    parts += [
        ("time_embed", "embeddings.time_embeddings"),
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ]
    parts += [("blocks", "encoder.layer"), ("temporal_fc", "temporal_dense"), ("temporal_norm1", "temporal_layernorm")]
    parts += [("attn.qkv", "attention.attention.qkv"), ("attn.proj", "attention.output.dense")]
    parts += [("temporal_attention", "temporal_attention"), ("temporal_attn", "temporal_attention")]
    parts += [("norm1", "layernorm_before"), ("norm2", "layernorm_after")]
    parts += [("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"), ("head.projection", "classifier")]
    renamed = {}
    for name, value in weights.items():
        for ours, other in parts:
            name = name.replace(ours, other)
        name = "layernorm" + name.removeprefix("norm") if name.startswith("norm.") else name
        renamed[name if name.startswith("classifier") else f"timesformer.{name}"] = value
    return renamed


@pytest.mark.parametrize("kind", ALL)
def test_the_class_token_alone_is_that_of_all_tokens(kind):
    """With its gradients, and the same places, frames and samples dropped."""
    video, found = torch.randn(2, 3, 3, 8, 8), []
    for alone in (False, True):
        model = tiny(kind, droppath_rate=0.5)
        torch.manual_seed(1)
        lead = model.lead(video) if alone else model.tokens(video)[:, 0]
        lead.square().sum().backward()
        grads = {name: p.grad for name, p in model.named_parameters() if not name.startswith("head.")}
        found.append({"lead": lead, **grads})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=name)


@pytest.mark.parametrize("kind", ALL)
def test_activation_checkpointing_changes_nothing(kind):
    video = torch.randn(2, 3, 3, 8, 8)
    plain, checkpointed = tiny(kind, droppath_rate=0.5), tiny(kind, droppath_rate=0.5, act_checkpoint=True)
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        model(video)["logits"].square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_with_class_against_a_mask():
    """Attention under a mask that says who may attend to whom."""
    torch.manual_seed(0)
    frames, places = 3, 4
    attention, x = Attention(16, 2), torch.randn(2, 1 + frames * places, 16)
    number = torch.arange(frames * places)
    for over_time in (True, False):
        group = number % places if over_time else number // places
        allowed = torch.ones(1 + len(number), 1 + len(number), dtype=torch.bool)
        allowed[1:, 1:] = group[:, None] == group
        query, key, value = (part.transpose(1, 2) for part in attention.split(x))
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        expected = attention.proj(expected.transpose(1, 2).flatten(2))
        torch.testing.assert_close(with_class(attention, x, frames, over_time=over_time), expected)


@pytest.mark.parametrize("kind", ALL)
def test_bfloat16_stays_near_float32(kind):
    model, video = tiny(kind), torch.randn(2, 3, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(video)["logits"]
    torch.testing.assert_close(rough.float(), model(video)["logits"], atol=0.05, rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
def test_compiles_into_one_graph(kind):
    model, video = tiny(kind), torch.randn(2, 3, 3, 8, 8)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(video)["logits"], model(video)["logits"])


@pytest.mark.parametrize("what", ["space", "time"])
def test_freezing(what):
    model = Tower(spec_of(3, 8), attention_type="frozen_in_time", freeze=what, temporal_gate=True, **SMALL)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    temporal = {name for name in model.state_dict() if "time_embed" in name or "temporal_" in name}
    assert "blocks.1.temporal_gate" in temporal
    assert trained == (temporal if what == "space" else set(model.state_dict()) - temporal)


def test_drop_path_leaves_out_places_frames_and_samples():
    """As published: a place in time attention, a frame in space attention, a sample in the MLP. Means stay."""
    model = tiny(droppath_rate=0.5, depth=2).train()
    assert [block.drop_path.rate for block in model.blocks] == [0.0, 0.5]
    block, x = model.blocks[1], torch.randn(64, 1 + 3 * 4, 24)
    torch.manual_seed(0)
    gained = (block._over_time(x[:, 1:], 3) - block.temporal_fc.bias).unflatten(1, (3, 4)).abs().sum(-1)
    assert gained.eq(0).sum(1).unique().tolist() == [0, 3], "all frames of a place, or none"
    assert gained.eq(0).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_layers_and_decay():
    model = tiny(zero_decay_pos_cls=True)
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    first = {"cls_token", "pos_embed", "time_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert {name for name, layer in layers.items() if layer == 0} == first
    assert {layer for name, layer in layers.items() if name.startswith("blocks.1.")} == {2}
    assert {layers[name] for name in ("norm.weight", "head.projection.bias")} == {3}
    assert model.no_weight_decay() == {"cls_token", "pos_embed", "time_embed"}
    assert tiny().no_weight_decay() == set()


def test_several_label_spaces():
    spec = Spec(Clip(3, 1, 8, 8), {"a": 3, "b": 4}, head=Head(hidden=6))
    assert TimeSformer(spec, **SMALL)(torch.randn(2, 3, 3, 8, 8))["logits"].shape == (2, 7)


def test_a_table_of_no_square_is_left_as_it_is():
    model = tiny()
    weights = {**model.state_dict(), "pos_embed": torch.zeros(1, 1 + 7, 24)}
    assert model.resize_positions(weights)[0]["pos_embed"].shape == (1, 8, 24)


def test_errors_say_what_to_change():
    with pytest.raises(UserError, match="TRAIN_CROP_SIZE 10: expected a multiple of TIMESFORMER.PATCH_SIZE 4"):
        tiny(size=10)
    with pytest.raises(UserError, match="5 attention heads do not divide a width of 24; change TIMESFORMER.NUM_HEADS"):
        tiny(num_heads=5)
    with pytest.raises(UserError, match=r"built for clips \(3, 3, 8, 8\), found \(3, 4, 8, 8\): .*NUM_FRAMES"):
        tiny()(torch.zeros(1, 3, 4, 8, 8))


def test_a_gate_of_time_attention_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="TEMPORAL_GATE True gates .* found ATTENTION_TYPE joint_space_time"):
        Tower(Spec(Clip(2, 1, 32, 32)), attention_type="joint_space_time", temporal_gate=True)
