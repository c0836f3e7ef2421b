"""MaskMViT against the golden figures of PySlowFast."""

import sys
from pathlib import Path

import pytest
import torch

from videorl import convert
from videorl.losses.pixels import MaskedPixels
from videorl.metrics.pixels import painted, patches
from videorl.models.mae import MaskMViT
from videorl.models.mvit import MViT, separable_sincos
from videorl.models.vit import ViT
from videorl.registry import MODELS, UserError
from videorl.spec import Clip, Masking, Spec

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import assert_close, check, limits, load_case  # noqa: E402

PLAIN = {"patch_kernel": (2, 4, 4), "patch_stride": (2, 4, 4), "patch_padding": (0, 0, 0), "sep_pos_embed": True}
TINY = {**PLAIN, "embed_dim": 16, "num_heads": 2, "depth": 2, "decoder_embed_dim": 64, "decoder_depth": 2}
MASKING = Masking(0.75, "random", target="frame")


def spec_of(frames: int = 4, size: int = 16, patch=(2, 4, 4), masking: Masking = MASKING, **facts) -> Spec:
    """Of clips that are normalised already, once they are divided by 255."""
    clip = Clip(frames, 1, size, size, mean=(0, 0, 0), std=(1, 1, 1))
    return Spec(clip, {"labels": 3}, patch=patch, masking=masking, **facts)


def tiny(**keys) -> MaskMViT:
    torch.manual_seed(0)
    return MaskMViT(spec_of(), **{**TINY, **keys})


def draw(visible: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(2, 32, generator=generator).argsort(1)
    pixels = torch.randint(0, 256, (2, 4, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return {"pixels": pixels, "visible": order[:, :visible].sort().values, "masked": order[:, visible:].sort().values}


def of_case(case: dict) -> MaskMViT:
    settings = case["config"]["settings"]
    own = {name.lower(): value for name, value in settings["MVIT"].items() if name in MODELS["MaskMViT"].keys}
    own |= {key: settings["MASK"][key.upper()] for key in ("decoder_embed_dim", "decoder_depth")}
    masking = Masking(settings["AUG"]["MASK_RATIO"], "random", target="frame")
    data = settings["DATA"]
    return MaskMViT(spec_of(data["NUM_FRAMES"], data["TRAIN_CROP_SIZE"], (2, 16, 16), masking), **own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_model(dtype):
    case = load_case(GOLDEN / "vit_mae/mae_pretrain.pt")
    model = of_case(case).to(dtype)
    assert sorted(model.state_dict()) == sorted(case["state_dict"])
    model.load_state_dict(case["state_dict"])
    assert sum(p.numel() for p in model.parameters()) == case["case"]["parameters"]
    loss = MaskedPixels(spec_of(patch=(2, 16, 16)))
    order = case["inputs"]["noise"].argsort(1)
    kept = order.shape[1] // 4
    pixels = 255 * case["inputs"]["video"].transpose(1, 2).to(dtype)
    batch = {"pixels": pixels, "visible": order[:, :kept].sort().values, "masked": order[:, kept:].sort().values}
    predicted = model(**batch)["predicted"]
    value = loss(predicted, **batch) / loss.count(batch)
    value.backward()
    full = {name: model.get_parameter(name).grad for name in case["expected"]["train"]["full"]}
    norms = {name: float(p.grad.double().norm()) for name, p in model.named_parameters()}
    train = {"loss": value, "no_grad": [], "norm": norms, "full": full}
    rows = predicted.flatten(0, 1)
    if dtype == torch.float32:
        target = loss.targets(pixels, batch["masked"]).flatten(0, 1)
        check(case, {"prediction": rows, "target": target, "loss": value, "train": train})
    else:
        assert_close(rows, case["expected64"]["prediction"], *limits(case, "float64"))
        assert_close(train, case["expected64"]["train"], *limits(case, "float64_gradients"))


def test_fixed_positions():
    case = load_case(GOLDEN / "vit_mae/sincos_positions.pt")
    for given, table in zip(case["inputs"]["cases"], case["expected"]["tables"], strict=True):
        grid = (given["frames"], given["grid"], given["grid"])
        found = separable_sincos(grid, given["embed_dim"], int(given["cls_token"]))
        assert_close(found, table.view_as(found), *limits(case))


@pytest.mark.parametrize(("width", "depth", "heads", "millions"), [(768, 12, 12, 100.60), (1024, 24, 16, 318.43),
                                                                  (1280, 32, 16, 646.38)])  # fmt: skip
def test_published_sizes(width, depth, heads, millions):
    patch = {"patch_kernel": (2, 16, 16), "patch_stride": (2, 16, 16), "patch_padding": (0, 0, 0)}
    with torch.device("meta"):
        spec = spec_of(16, 224, (2, 16, 16), Masking(0.9, "random", target="frame"))
        model = MaskMViT(spec, **patch, sep_pos_embed=True, embed_dim=width, depth=depth, num_heads=heads)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("positions", [{"sep_pos_embed": True}, {"sep_pos_embed": False}, {"use_abs_pos": False},
                                       {"use_fixed_sincos_pos": True}, {"cls_embed_on": False}])  # fmt: skip
def test_the_encoder_is_the_model_that_is_fine_tuned(positions):
    """What sees every token is MViT, from the weights that this model loads."""
    masked = tiny(**positions).eval()
    tuned = MViT(spec_of(), **{**PLAIN, "embed_dim": 16, "num_heads": 2, "depth": 2, **positions}).eval()
    missing, _ = tuned.load_state_dict(masked.state_dict(), strict=False)
    assert [name for name in missing if not name.startswith("head.")] == []
    batch = draw(visible=32)
    found = masked.encode(patches(batch["pixels"], batch["visible"], (2, 4, 4)), batch["visible"])
    video = batch["pixels"].transpose(1, 2) / 255
    torch.testing.assert_close(found, tuned.norm(tuned.through_blocks(tuned.embed(video))))


def test_its_weights_are_for_mvit_and_not_for_the_vit_of_videomae():
    masked, spec = tiny(), spec_of()
    tuned = MViT(spec, **{**PLAIN, "embed_dim": 16, "num_heads": 2, "depth": 2})
    convert.load(tuned, {"model_state": masked.state_dict()}, "x.pyth")
    assert torch.equal(tuned.blocks[1].mlp.fc1.weight, masked.blocks[1].mlp.fc1.weight)
    assert torch.equal(tuned.pos_embed_temporal, masked.pos_embed_temporal)
    with pytest.raises(UserError, match="a checkpoint of PySlowFast's MViT, .* set MODEL.MODEL_NAME MViT"):
        convert.load(ViT(spec, embed_dim=16, depth=2, num_heads=2), {"model_state": masked.state_dict()}, "x.pyth")


def test_a_token_sees_visible_tokens_alone():
    model, batch = tiny().eval(), draw()
    other = {**batch, "pixels": painted(batch["pixels"], batch["masked"], torch.rand(2, 24, 96), (2, 4, 4))}
    assert not torch.equal(other["pixels"], batch["pixels"])
    assert torch.equal(model(**batch)["predicted"], model(**other)["predicted"])


def test_activation_checkpoints_change_nothing():
    losses = []
    for spec in (spec_of(), spec_of(act_checkpoint=True)):
        torch.manual_seed(0)
        model = MaskMViT(spec, **TINY)
        model(**draw())["predicted"].square().sum().backward()
        losses.append(model.patch_embed.proj.weight.grad)
    assert torch.equal(*losses)


def test_weight_decay_leaves_positions_and_class_token_alone():
    assert tiny(zero_decay_pos_cls=False).no_weight_decay() == set()
    left = tiny().no_weight_decay()
    assert {"cls_token", "pos_embed"} <= left


@pytest.mark.parametrize(
    ("masking", "keys", "said"),
    [
        (Masking(), {}, "MaskMViT predicts hidden tokens, found MASK.RATIO 0"),
        (MASKING, {"patch_stride": (1, 4, 4)}, r"MVIT.PATCH_KERNEL \(2, 4, 4\), PATCH_STRIDE \(1, 4, 4\)"),
        (MASKING, {"pool_q_stride": [[1, 1, 2, 2]]}, "its blocks cannot pool: expected a plain ViT"),
        (MASKING, {"dim_mul": [[1, 2.0]]}, "its blocks cannot pool: expected a plain ViT"),
        (MASKING, {"rel_pos_spatial": True}, "its blocks cannot pool: expected a plain ViT"),
        (MASKING, {"decoder_embed_dim": 100}, "MVIT.DECODER_EMBED_DIM 100: expected a multiple of 64"),
        (MASKING, {"use_fixed_sincos_pos": True, "embed_dim": 24}, "a multiple of 16, found 24"),
    ],
)
def test_refused(masking, keys, said):
    with pytest.raises(UserError, match=said):
        MaskMViT(spec_of(masking=masking), **{**TINY, **keys})


def test_every_key_is_documented():
    keys = MODELS["MaskMViT"].keys
    assert set(MODELS["MViT"].keys) - set(keys) == {"USE_MEAN_POOLING", "HEAD_INIT_SCALE"}
    assert [name for name, key in keys.items() if not key.doc] == []


@pytest.mark.slow
def test_compiles_as_one_graph():
    model, batch = tiny().eval(), draw()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**batch)["predicted"], model(**batch)["predicted"])
