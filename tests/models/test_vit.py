"""The ViT of VideoMAE against the golden figures of V-SWIFT and VideoMAE V2, and transformers."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from videorl.models.heads import hidden_width
from videorl.models.vit import ViT, resize_table, sincos_positions
from videorl.registry import MODELS, UserError
from videorl.spec import Clip, Head, Spec

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import assert_close, check, limits, load_case  # noqa: E402

DTYPES = (torch.float32, torch.float64)
SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 2}


def spec_of(frames: int, size: int, classes: int, patch=(2, 16, 16), **facts) -> Spec:
    return Spec(Clip(frames, 1, size, size), {"labels": classes}, patch=patch, **facts)


def tiny(*, frames: int = 4, size: int = 16, act_checkpoint: bool = False, **keys) -> ViT:
    torch.manual_seed(0)
    return ViT(spec_of(frames, size, 5, (2, 4, 4), act_checkpoint=act_checkpoint), **{**SMALL, **keys})


def load(model: ViT, weights: dict[str, torch.Tensor]) -> None:
    """Loads published weights, which have neither positions nor our names in the head."""
    named = {name.replace("head.", "head.projection."): value for name, value in weights.items()}
    missing, unexpected = model.load_state_dict(named, strict=False)
    assert (missing, unexpected) == (["positions"], [])


@pytest.mark.parametrize("dtype", DTYPES)
def test_published_model(dtype):
    case = load_case(GOLDEN / "videomae/finetune_small.pt")
    config = case["config"]
    widths = {name: config[name] for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    model = ViT(spec_of(config["frames"], config["img_size"], config["num_classes"]), **widths).to(dtype)
    load(model, case["state_dict"])
    outputs = model(case["inputs"]["video"].to(dtype))
    loss = F.cross_entropy(outputs["logits"], case["inputs"]["labels"])
    loss.backward()
    grads = {name.replace("projection.", ""): p.grad for name, p in model.named_parameters()}
    norms = {name: float(grad.double().norm()) for name, grad in grads.items()}
    full = {name: grads[name] for name in case["expected"]["train"]["full"]}
    train = {"loss": loss, "no_grad": [], "norm": norms, "full": full}
    if dtype == torch.float32:
        check(case, {**outputs, "train": train})
        assert sum(p.numel() for p in model.parameters()) == case["case"]["parameters"]
    else:
        assert_close(outputs["logits"], case["expected64"]["logits"], *limits(case, "float64"))
        assert_close(train, case["expected64"]["train"], *limits(case, "float64_gradients"))


@pytest.mark.slow
def test_published_size():
    case = load_case(GOLDEN / "videomae/finetune_small_patch16_full.pt")
    model = ViT(spec_of(16, 224, case["config"]["num_classes"]), embed_dim=384, num_heads=6).eval()
    load(model, case["state_dict"])
    with torch.no_grad():
        check(case, {"logits": model(case["inputs"]["video"])["logits"]})
    assert sum(p.numel() for p in model.parameters()) == case["case"]["parameters"]


def test_published_positions():
    case = load_case(GOLDEN / "videomae/sincos_positions.pt")
    check(case, {"table": sincos_positions((4, 4, 4), 48).flatten(0, 2)[None]})
    check(case, {"full_1568x384": sincos_positions((8, 14, 14), 384).flatten(0, 2)[None]})


def from_transformers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Their names, of pre-training and of fine-tuning, as those of our VideoMAE."""
    parts = {
        "videomae.embeddings.patch_embeddings.projection": "encoder.patch_embed.proj",
        "videomae.encoder.layer": "encoder.blocks",
        "videomae.layernorm": "encoder.norm",
        "decoder.decoder_layers": "decoder.blocks",
        "attention.attention.query.weight": "attn.qkv.weight",
        "attention.attention.query.bias": "attn.q_bias",
        "attention.attention.value.bias": "attn.v_bias",
        "attention.output.dense": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "classifier": "head.projection",
    }
    named = {}
    for name, value in weights.items():
        if name.endswith(("key.weight", "value.weight")):
            continue
        if name.endswith("query.weight"):
            value = torch.cat([weights[name.replace("query", part)] for part in ("query", "key", "value")])
        for theirs, ours in parts.items():
            name = name.replace(theirs, ours)
        named[name] = value
    return named


@pytest.mark.slow
def test_equals_transformers():
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    shape = {"image_size": 16, "patch_size": 4, "num_frames": 4, "hidden_size": 24, "num_hidden_layers": 3}
    shape |= {"num_attention_heads": 2, "intermediate_size": 96, "num_labels": 5, "layer_norm_eps": 1e-6}
    theirs = VideoMAEForVideoClassification(VideoMAEConfig(**shape)).eval()
    theirs.fc_norm.eps = 1e-6  # the published value, which its config does not reach
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    model = tiny().eval()
    weights = {name.removeprefix("encoder."): value for name, value in from_transformers(theirs.state_dict()).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["positions"], [])
    video = torch.randn(2, 3, 4, 16, 16, generator=generator)
    expected = theirs(video.transpose(1, 2)).logits
    torch.testing.assert_close(model(video)["logits"], expected, atol=1e-5, rtol=1e-5)


def test_resizes_time_linearly():
    table = torch.randn(2, 3, 3, 4)
    weight = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    torch.testing.assert_close(resize_table(table, (4, 3, 3)), torch.einsum("st,thwd->shwd", weight, table))


def test_resizes_space_as_torchvision():
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    table = torch.randn(2, 4, 3, 5)
    cubic = InterpolationMode.BICUBIC
    expected = resize(table.permute(0, 3, 1, 2), [6, 5], cubic, antialias=False).permute(0, 2, 3, 1)
    torch.testing.assert_close(resize_table(table, (2, 6, 5)), expected)


def test_fixed_positions_are_made_new_for_another_clip_shape():
    """VideoMAE's own code makes them anew for the number of tokens."""
    source, target = tiny(), tiny(frames=8, size=24)
    for given in (source.state_dict(), {n: v.half() for n, v in source.state_dict().items()}, {}):
        weights, interpolated, new = target.resize_positions(given)
        assert (interpolated, new) == ([], ["positions"])
        assert torch.equal(weights["positions"], sincos_positions((4, 6, 6), 24))
    assert target.resize_positions(target.state_dict())[1:] == ([], [])
    assert tiny(embed_dim=32).resize_positions(source.state_dict())[1:] == ([], [])  # another width is another model


def test_other_positions_are_interpolated_from_the_grid_of_their_clips():
    target, learned = tiny(frames=8, size=24), torch.randn(2, 4, 4, 24)  # clips of 4 x 16 x 16
    wanted = resize_table(learned, (4, 6, 6))
    for given, clip in ((learned, None), (learned.view(1, 1, -1, 24), (4, 16, 16))):
        weights, interpolated, new = target.resize_positions({"positions": given}, clip)
        assert (interpolated, new) == (["positions"], [])
        assert torch.equal(weights["positions"], wanted)
    flat = torch.randn(1, 1, 144, 24)
    assert torch.equal(target.resize_positions({"positions": flat})[0]["positions"], flat.view(4, 6, 6, 24))
    for clip, words in ((None, "clips here have 144"), ((4, 24, 24), r"clips of \(4, 24, 24\) .* have 72")):
        with pytest.raises(UserError, match=f"a learned table of 32 tokens, but {words}; set MODEL.CHECKPOINT_CLIP"):
            target.resize_positions({"positions": learned.view(1, 1, -1, 24)}, clip)


@pytest.mark.parametrize(("dim", "ratio", "hidden"), [(32, 48 / 11, 139), (384, 4, 1536), (1408, 48 / 11, 6144)])
def test_hidden_layers_are_rounded_down(dim, ratio, hidden):
    assert hidden_width(dim, ratio) == hidden
    assert hidden_width(dim, float(f"{ratio:.6f}")) == hidden
    mlp = tiny(embed_dim=dim, depth=1, num_heads=1, mlp_ratio=round(ratio, 6)).blocks[0].mlp
    assert mlp.fc1.out_features == hidden


def test_layers():
    model = tiny()
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert {name for name, layer in layers.items() if layer == 0} == {
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    }
    assert {layer for name, layer in layers.items() if name.startswith("blocks.1.")} == {2}
    assert {layers[name] for name in ("fc_norm.weight", "head.projection.bias")} == {4}
    assert model.no_weight_decay() == set()


def test_drop_path_rises_from_block_to_block():
    assert [block.drop_path.rate for block in tiny(droppath_rate=0.2).blocks] == pytest.approx([0.0, 0.1, 0.2])


def test_activation_checkpointing_changes_nothing():
    video = torch.randn(2, 3, 4, 16, 16)
    plain, checkpointed = tiny(droppath_rate=0.5), tiny(droppath_rate=0.5, act_checkpoint=True)
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        model(video)["logits"].square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_bfloat16_stays_near_float32():
    model, video = tiny(), torch.randn(2, 3, 4, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(video)["logits"]
    torch.testing.assert_close(rough.float(), model(video)["logits"], atol=0.02, rtol=0.05)


def test_several_label_spaces():
    spec = Spec(Clip(4, 1, 16, 16), {"a": 3, "b": 4}, patch=(2, 4, 4), head=Head(hidden=6))
    assert ViT(spec, **SMALL)(torch.randn(2, 3, 4, 16, 16))["logits"].shape == (2, 7)


@pytest.mark.slow
def test_compiles_into_one_graph():
    model, video = tiny(), torch.randn(2, 3, 4, 16, 16)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(video)["logits"], model(video)["logits"])


def test_start_of_published_model():
    model = tiny(embed_dim=64, head_init_scale=0.001)
    assert model.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.head.projection.weight.std().item() == pytest.approx(0.02 * 0.001, rel=0.2)
    zero = ("blocks.0.mlp.fc1.bias", "blocks.2.attn.q_bias", "head.projection.bias")
    assert all(model.get_parameter(name).eq(0).all() for name in zero)


def test_errors_say_what_to_change():
    with pytest.raises(
        UserError, match=r"\(5, 16, 16\): expected multiples of MODEL.PATCH_SIZE \(2, 4, 4\); change DATA"
    ):
        tiny(frames=5)
    with pytest.raises(UserError, match=r"\(4, 18, 18\): expected multiples"):
        tiny(size=18)
    with pytest.raises(UserError, match="5 attention heads do not divide a width of 24; change NUM_HEADS"):
        tiny(num_heads=5)
    with pytest.raises(UserError, match=r"built for clips \(3, 4, 16, 16\), found \(3, 8, 16, 16\): .*NUM_FRAMES"):
        tiny()(torch.zeros(1, 3, 8, 16, 16))


def test_every_key_is_documented():
    assert [name for name, key in MODELS["ViT"].keys.items() if not key.doc] == []
