"""VideoMAE against the golden figures of V-SWIFT and VideoMAE V2, and transformers."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from videorl.losses.pixels import MaskedPixels
from videorl.models.videomae import VideoMAE
from videorl.registry import MODELS, UserError
from videorl.spec import Clip, Masking, Spec

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path[:0] = [str(GOLDEN), str(Path(__file__).parent)]
from recipe import assert_close, check, limits, load_case  # noqa: E402
from test_vit import from_transformers  # noqa: E402

TABLES = ["encoder.positions", "decoder.positions"]
MASKING = Masking(0.75)
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2, "decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def spec_of(frames: int, size: int, patch: tuple[int, int, int], **facts) -> Spec:
    """Of clips that are normalised already, once they are divided by 255."""
    return Spec(Clip(frames, 1, size, size, mean=(0, 0, 0), std=(1, 1, 1)), patch=patch, masking=MASKING, **facts)


def tiny(*, frames: int = 4, size: int = 16, act_checkpoint: bool = False, **keys) -> VideoMAE:
    torch.manual_seed(0)
    clip = Clip(frames, 1, size, size, mean=MEAN, std=STD)
    spec = Spec(clip, patch=(2, 4, 4), masking=MASKING, act_checkpoint=act_checkpoint)
    return VideoMAE(spec, **{**SMALL, **keys})


def numbers(mask: torch.Tensor) -> torch.Tensor:
    """The true places of each row, `[B, K]`."""
    return mask.nonzero()[:, 1].view(len(mask), -1)


def draw(frames: int = 4, size: int = 16) -> dict[str, torch.Tensor]:
    """A batch with a quarter of its tokens visible."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, frames, 3, size, size), dtype=torch.uint8, generator=generator)
    order = torch.rand(2, frames // 2 * (size // 4) ** 2, generator=generator).argsort(1)
    visible, masked = order.split([order.shape[1] // 4, order.shape[1] * 3 // 4], dim=1)
    return {"pixels": pixels, "visible": visible.sort().values, "masked": masked.sort().values}


def of_case(case: dict) -> tuple[VideoMAE, MaskedPixels]:
    config = case["config"]
    patch = (config["tubelet_size"], config["patch_size"], config["patch_size"])
    spec = spec_of(config["frames"], config["img_size"], patch)
    theirs = ("encoder_embed_dim", "encoder_depth", "encoder_num_heads", "mlp_ratio")
    theirs += ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")
    ours = ("embed_dim", "depth", "num_heads", "mlp_ratio", "decoder_dim", "decoder_depth", "decoder_heads")
    model = VideoMAE(spec, **{name: config[key] for name, key in zip(ours, theirs)})
    load(model, case["state_dict"])
    return model, MaskedPixels(spec)


def load(model: VideoMAE, weights: dict[str, torch.Tensor]) -> None:
    """Loads weights of V-SWIFT, which keeps its mask token in the decoder."""
    named = {name.replace("decoder.mask_token", "mask_token"): value for name, value in weights.items()}
    missing, unexpected = model.load_state_dict(named, strict=False)
    assert (sorted(missing), unexpected) == (sorted(TABLES), [])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("pretrain_small", torch.float32), ("pretrain_small", torch.float64), ("pretrain_patch16", torch.float32)],
)
def test_published_model(name, dtype):
    case = load_case(GOLDEN / f"videomae/{name}.pt")
    model, loss = of_case(case)
    model.to(dtype)
    mask = case["expected"]["mask"]
    batch = {"pixels": 255 * case["inputs"]["video"].transpose(1, 2).to(dtype)}
    batch |= {"visible": numbers(~mask), "masked": numbers(mask)}
    predicted = model(**batch)["predicted"]
    value = loss(predicted, **batch) / loss.count(batch)
    value.backward()
    grads = {name.replace("mask_token", "decoder.mask_token"): p.grad for name, p in model.named_parameters()}
    norms = {name: float(grad.double().norm()) for name, grad in grads.items()}
    full = {name: grads[name] for name in case["expected"]["train"]["full"]}
    train = {"loss": value, "no_grad": [], "norm": norms, "full": full}
    found = {"prediction_raster_order": predicted, "train": train}
    if dtype == torch.float32:
        check(case, {**found, "v2_prediction": predicted, "loss_raster_order": value})
        assert sum(p.numel() for p in model.parameters()) == case["case"]["parameters"]
    else:
        assert_close(predicted, case["expected64"]["prediction_raster_order"], *limits(case, "float64"))
        assert_close(train, case["expected64"]["train"], *limits(case, "float64_gradients"))


@pytest.mark.parametrize("name", ["pretrain_small", "pretrain_patch16"])
def test_published_model_with_a_mask_for_the_decoder(name):
    case = load_case(GOLDEN / f"videomae/{name}.pt")
    model, loss = of_case(case)
    video, mean, std = case["inputs"]["video"].transpose(1, 2), *(torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    index = {"visible": numbers(~case["expected"]["mask"]), "masked": numbers(~case["inputs"]["decoder_mask"])}
    predicted = model(255 * video, **index)["predicted"]
    total = loss(predicted, 255 * (video * std + mean), **index)
    check(
        case,
        {"v2_decoder_masked_prediction": predicted, "v2_decoder_masked_loss": total / loss.count(index)},
    )


@pytest.mark.slow
@pytest.mark.parametrize(("size", "widths"), [("small", {"embed_dim": 384, "decoder_dim": 192}), ("base", {})])
def test_published_size(size, widths):
    case = load_case(GOLDEN / f"videomae/pretrain_{size}_patch16_full.pt")
    heads = {"num_heads": 6, "decoder_heads": 3} if widths else {}
    spec = spec_of(16, 224, (2, 16, 16))
    model, loss = VideoMAE(spec, **widths, **heads), MaskedPixels(spec)
    load(model, case["state_dict"])
    kept = case["inputs"]["noise"][:, 0].argsort(1)[:, :19].sort().values  # the least of 196 places
    mask = torch.ones(1, 8, 196, dtype=torch.bool)
    mask[:, :, kept[0]] = False
    mask = mask.flatten(1)
    batch = {"pixels": 255 * case["inputs"]["video"].transpose(1, 2)}
    batch |= {"visible": numbers(~mask), "masked": numbers(mask)}
    with torch.no_grad():
        predicted = model(**batch)["predicted"]
        value = loss(predicted, **batch) / loss.count(batch)
    found = {"loss": value, "prediction": predicted, "target": loss.targets(batch["pixels"], batch["masked"])}
    check(case, {**found, "visible": batch["visible"].shape[1]})
    assert sum(p.numel() for p in model.parameters()) == case["case"]["parameters"]


@pytest.mark.slow
def test_equals_transformers():
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    shape = {"image_size": 16, "patch_size": 4, "num_frames": 4, "hidden_size": 24, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "intermediate_size": 96, "layer_norm_eps": 1e-6, "use_mean_pooling": False}
    shape |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2}
    theirs = VideoMAEForPreTraining(VideoMAEConfig(**shape, decoder_intermediate_size=64)).eval()
    theirs.decoder.norm.eps = 1e-6  # the published value, which its config does not reach
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    model, batch = tiny().eval(), draw()
    missing, unexpected = model.load_state_dict(from_transformers(theirs.state_dict()), strict=False)
    assert (sorted(missing), unexpected) == (sorted(TABLES), [])
    video = (batch["pixels"] / 255 - model.mean.view(3, 1, 1)) / model.std.view(3, 1, 1)
    mask = torch.ones(2, 32, dtype=torch.bool).scatter_(1, batch["visible"], False)
    expected = theirs(video, bool_masked_pos=mask)
    predicted = model(**batch)["predicted"]
    torch.testing.assert_close(predicted, expected.logits, atol=1e-5, rtol=1e-5)
    loss = MaskedPixels(Spec(Clip(4, 1, 16, 16), patch=(2, 4, 4)))
    torch.testing.assert_close(loss(predicted, **batch) / loss.count(batch), expected.loss, atol=1e-5, rtol=1e-5)


class Largest(TorchDispatchMode):
    """The most values of a floating tensor that any operation gives, views of inputs apart."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(found) if isinstance(t, torch.Tensor) and t.is_floating_point()]
        self.values = max([self.values, *sizes])
        return found


def test_the_clip_is_never_a_float_tensor():
    batch, loss = draw(8, 64), MaskedPixels(Spec(Clip(8, 1, 64, 64), patch=(2, 4, 4)))
    model = tiny(frames=8, size=64, embed_dim=8, decoder_dim=8, depth=1, decoder_depth=1, mlp_ratio=1.0)
    with Largest() as encoder, torch.no_grad():
        model.encoder(torch.zeros(2, 256, 96), batch["visible"])
    with Largest() as largest:
        predicted = model(**batch)["predicted"]
        loss(predicted, **batch).backward()
    assert encoder.values <= 2 * 256 * 96
    assert largest.values == batch["masked"].numel() * 96 == batch["pixels"].numel() * 3 // 4


def test_hidden_pixels_do_not_reach_the_prediction():
    model, batch = tiny().eval(), draw()
    expected = model(**batch)["predicted"]
    rows = batch["pixels"].unflatten(4, (4, 4)).unflatten(3, (4, 4)).unflatten(1, (2, 2))  # a view
    for b, token in enumerate(batch["masked"][:, 5].tolist()):
        rows[b, token // 16, :, :, token // 4 % 4, :, token % 4] = 0
    assert model(**batch)["predicted"].equal(expected)
    for b, token in enumerate(batch["visible"][:, 1].tolist()):
        rows[b, token // 16, :, :, token // 4 % 4, :, token % 4] = 0
    assert not model(**batch)["predicted"].isclose(expected).any(2).all()


def test_checkpoint_of_another_clip_shape():
    source, target = tiny(), tiny(frames=8, size=24)
    weights, interpolated, new = target.resize_positions(source.state_dict())
    assert interpolated == []
    assert sorted(new) == sorted(TABLES)
    target.load_state_dict(weights)
    assert target(**draw(8, 24))["predicted"].isfinite().all()


def test_activation_checkpointing_changes_nothing():
    batch = draw()
    plain, checkpointed = tiny(droppath_rate=0.5), tiny(droppath_rate=0.5, act_checkpoint=True)
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        model(**batch)["predicted"].square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_bfloat16_stays_near_float32():
    model, batch = tiny(), draw()
    exact = model(**batch)["predicted"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(**batch)["predicted"]
    assert (rough.float() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.slow
def test_compiles_into_one_graph():
    model, batch = tiny(), draw()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found, expected = compiled(**batch)["predicted"], model(**batch)["predicted"]
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(p.square().sum(), list(model.parameters())) for p in (found, expected)]
    torch.testing.assert_close(*grads)


def test_start_of_published_model():
    model = tiny(embed_dim=96, decoder_dim=96)
    bound = (6 / (96 + 4 * 96)) ** 0.5
    weight = model.decoder.blocks[1].mlp.fc1.weight
    assert 0.98 * bound < weight.abs().max().item() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert model.mask_token.abs().max() <= 0.02
    assert model.mask_token.std().item() > 0.005
    zero = ("encoder.blocks.0.attn.proj.bias", "encoder.blocks.0.attn.v_bias", "decoder.head.bias")
    assert all(model.get_parameter(name).eq(0).all() for name in zero)
    assert model.no_weight_decay() == {"mask_token"}
    assert {name for name, _ in model.named_buffers() if name in model.state_dict()} == set(TABLES)


def test_errors_say_what_to_change():
    with pytest.raises(UserError, match="set MASK.RATIO"):
        VideoMAE(Spec(Clip(4, 1, 16, 16), patch=(2, 4, 4)))
    with pytest.raises(UserError, match="expected multiples of MODEL.PATCH_SIZE"):
        tiny(size=18)
    with pytest.raises(UserError, match="3 attention heads do not divide a width of 16; .* DECODER_HEADS"):
        tiny(decoder_heads=3)
    with pytest.raises(UserError, match=r"built for clips \(4, 3, 16, 16\), found \(8, 3, 16, 16\): .*NUM_FRAMES"):
        tiny()(**draw(frames=8))


def test_every_key_is_documented():
    assert [name for name, key in MODELS["VideoMAE"].keys.items() if not key.doc] == []
