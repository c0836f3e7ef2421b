"""MViT against the golden figures of PySlowFast and MultiTrain, torchvision's own, and slow references."""

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch.utils.flop_counter import FlopCounterMode

from videorl.convert import torchvision_mvit
from videorl.models.mvit import (
    Attention,
    DepthwiseConv,
    DropPath,
    MViT,
    block_plans,
    conv3d_depthwise,
    resize_positions,
    resize_table,
)
from videorl.registry import MODELS, UserError
from videorl.spec import Clip, Spec

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
sys.path.insert(0, str(GOLDEN))
from recipe import assert_close, check, limits, load_case  # noqa: E402

DTYPES = (torch.float32, torch.float64)
TINY = {
    "patch_padding": (1, 3, 3),
    "embed_dim": 16,
    "depth": 3,
    "dim_mul": [[1, 2.0]],
    "head_mul": [[1, 2.0]],
    "dim_mul_in_att": True,
    "pool_q_stride": [[0, 1, 1, 1], [1, 1, 2, 2], [2, 1, 1, 1]],
    "pool_kv_stride_adaptive": (1, 4, 4),
    "pool_kvq_kernel": (3, 3, 3),
    "residual_pooling": True,
    "use_abs_pos": False,
    "rel_pos_spatial": True,
    "rel_pos_temporal": True,
    "droppath_rate": 0.0,
}


def spec_of(frames: int, size: int, classes: int, **facts) -> Spec:
    return Spec(Clip(frames, 1, size, size), {"labels": classes}, **facts)


def tiny(*, frames: int = 4, size: int = 32, act_checkpoint: bool = False, **keys) -> MViT:
    torch.manual_seed(0)
    return MViT(spec_of(frames, size, 5, act_checkpoint=act_checkpoint), **{**TINY, **keys})


def from_settings(settings: dict, **keys) -> MViT:
    """The model of a golden case: its MVIT settings that are keys here."""
    own = {name.lower(): value for name, value in settings["MVIT"].items() if name in MODELS["MViT"].keys}
    data, head = settings["DATA"], settings["MODEL"]
    spec = spec_of(data["NUM_FRAMES"], data["TRAIN_CROP_SIZE"], head["NUM_CLASSES"])
    return MViT(spec, **{**own, **keys})


def from_config(path: str) -> tuple[MViT, dict]:
    """The model of a published config, without memory for its weights."""
    config = yaml.safe_load((ROOT / "configs" / path).read_text())
    with torch.device("meta"):
        return from_settings(config).eval(), config["DATA"]


def taps_of(model: MViT, video: torch.Tensor) -> tuple[dict, dict]:
    """Outputs, and the tokens after the patch embedding and each block."""
    taps = {}
    for name, module in [("patch_embed", model.patch_embed), *((f"blocks.{i}", b) for i, b in enumerate(model.blocks))]:
        module.register_forward_hook(lambda module, inputs, output, name=name: taps.__setitem__(name, output))
    return model(video), taps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "path", ["mvit/mvitv1_small", "mvit/mvitv2_small", "mvit/mvitv2_maskfeat_finetune", "vit_mae/vit_finetune"]
)
def test_pyslowfast(path, dtype):
    case = load_case(GOLDEN / f"{path}.pt")
    model = from_settings(case["config"]["settings"]).to(dtype)
    assert list(model.state_dict()) == list(case["state_dict"])
    model.load_state_dict(case["state_dict"])
    video, labels = case["inputs"]["video"].to(dtype), case["inputs"]["labels"]
    outputs, taps = taps_of(model, video)
    loss = F.cross_entropy(outputs["logits"], labels)
    loss.backward()
    norms = {name: float(p.grad.double().norm()) for name, p in model.named_parameters()}
    full = {name: model.get_parameter(name).grad for name in case["expected"]["train"]["full"]}
    train = {"loss": loss, "no_grad": [], "norm": norms, "full": full}
    if dtype == torch.float32:
        probabilities = outputs["logits"].softmax(-1)
        check(case, {"logits": outputs["logits"], "probabilities": probabilities, "taps": taps, "train": train})
    else:
        assert_close(outputs["logits"], case["expected64"]["logits"], *limits(case, "float64"))
        assert_close(train, case["expected64"]["train"], *limits(case, "float64_gradients"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_multitrain(dtype):
    case = load_case(GOLDEN / "multitrain/model_single_head.pt")
    settings = case["config"]["settings"]
    listed = {row[0]: row for row in settings["MVIT"]["POOL_Q_STRIDE"]}
    model = from_settings(
        settings,
        dim_mul_in_att=True,
        residual_pooling=True,
        skip_proj_raw=True,
        pool_norm_eps=1e-5,
        pool_q_stride=[listed.get(i, [i, 1, 1, 1]) for i in range(settings["MVIT"]["DEPTH"])],
    )
    model.to(dtype).eval()
    weights = {name.replace("proj_max_pool", "proj"): value for name, value in case["state_dict"].items()}
    assert list(model.state_dict()) == list(weights)
    model.load_state_dict(weights)
    outputs, taps = taps_of(model, case["inputs"]["video"].to(dtype))
    if dtype == torch.float32:
        probabilities = outputs["logits"].softmax(-1)
        check(case, {"logits": outputs["logits"], "probabilities": probabilities, "taps": taps})
    else:
        assert_close(outputs["logits"], case["expected64"]["logits"], *limits(case, "float64"))


@pytest.mark.slow
def test_published_size():
    case = load_case(GOLDEN / "mvit/mvitv2_s_16x4_full.pt")
    model = from_settings(case["config"]["settings"]).eval()
    model.load_state_dict(case["state_dict"])
    with torch.no_grad():
        outputs, taps = taps_of(model, case["inputs"]["video"])
    check(case, {"logits": outputs["logits"], "taps": taps})
    assert sum(p.numel() for p in model.parameters()) == case["case"]["parameters"]


@pytest.mark.parametrize("kind", ["rel_pos", "sep_pos"])
def test_checkpoint_of_another_clip_shape(kind):
    case = load_case(GOLDEN / f"mvit/checkpoint_resize_{kind}.pt")
    model = from_settings(case["config"]["target"]["settings"]).eval()
    before = dict(case["state_dict"])
    weights, names, _ = resize_positions(case["state_dict"], model)
    assert case["state_dict"] == before
    assert set(names) == set(case["expected"]["resized"])
    model.load_state_dict(weights)
    logits = model(case["inputs"]["video"])["logits"]
    check(case, {"resized": {name: weights[name] for name in names}, "logits": logits})


def test_joint_positions_of_another_clip_shape():
    joint = {"use_abs_pos": True, "sep_pos_embed": False}
    source, target = tiny(frames=4, size=32, **joint), tiny(frames=8, size=48, **joint)
    weights = source.state_dict()
    table = weights["pos_embed"]
    fitted, names, _ = target.resize_positions(weights, (4, 32, 32))
    assert names[0] == "pos_embed"
    assert torch.equal(fitted["pos_embed"][:, :1], table[:, :1]), "the class token's"
    grid = resize_table(table[0, 1:].view(*source.grid, -1), target.grid)
    assert torch.equal(fitted["pos_embed"][0, 1:], grid.flatten(0, 2))
    for clip in (None, (4, 48, 48)):
        with pytest.raises(UserError, match=r"pos_embed: found a table of \d+ tokens, .* set MODEL.CHECKPOINT_CLIP"):
            target.resize_positions(weights, clip)
    source, target = (tiny(frames=f, size=s, use_fixed_sincos_pos=True, **joint) for f, s in ((4, 32), (8, 48)))
    fitted, _, new = target.resize_positions(source.state_dict())
    assert new == ["pos_embed"]
    assert torch.equal(fitted["pos_embed"], target.pos_embed)


def test_layers_and_weight_decay():
    case = load_case(GOLDEN / "mvit/optimizer_groups.pt")
    for given, groups in zip(case["inputs"]["models"][:2], case["expected"]["groups"][:2]):
        model = from_settings(given["settings"])
        decay = given["solver"]["LAYER_DECAY"]
        expected = {name: group["lr_scale"] for group in groups for name in group["names"]}
        scales = {name: decay ** (len(model.blocks) + 1 - model.layer_of(name)) for name in expected}
        assert scales == pytest.approx(expected)
        assert set(expected) == {name for name, _ in model.named_parameters()}
        assert model.no_weight_decay() == set()


def test_names_without_weight_decay():
    relative = {"rel_pos_h", "rel_pos_w", "rel_pos_t", "cls_token"}
    assert tiny(zero_decay_pos_cls=True).no_weight_decay() == relative
    separate = {"pos_embed", "pos_embed_spatial", "pos_embed_temporal"}
    assert (
        tiny(use_abs_pos=True, sep_pos_embed=True, cls_embed_on=False).no_weight_decay()
        == relative - {"cls_token"} | separate
    )


def load_from_torchvision(model: MViT, theirs: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    weights = torchvision_mvit.rename(theirs.state_dict(), model)
    model.load_state_dict({name: value.view_as(model.get_parameter(name)) for name, value in weights.items()})


def test_equals_torchvision_narrow():
    from torchvision.models.video.mvit import MSBlockConfig
    from torchvision.models.video.mvit import MViT as TorchvisionMViT

    shapes = [(1, 16, 16, (1, 1, 1), (1, 4, 4)), (2, 16, 32, (1, 2, 2), (1, 2, 2)), (2, 32, 32, (1, 1, 1), (1, 2, 2))]
    blocks = [MSBlockConfig(h, i, o, [3] * 3, [3] * 3, list(q), list(kv)) for h, i, o, q, kv in shapes]
    form = {"residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": True, "proj_after_attn": True}
    theirs = TorchvisionMViT((32, 32), 4, blocks, num_classes=5, **form).eval()
    model = tiny().eval()
    load_from_torchvision(model, theirs)
    video = torch.randn(2, 3, 4, 32, 32)
    torch.testing.assert_close(model(video)["logits"], theirs(video), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_equals_torchvision_mvit_v2_s():
    from torchvision.models.video import mvit_v2_s

    case = load_case(GOLDEN / "mvit/mvitv2_s_16x4_full.pt", weights=False)
    model, theirs = from_settings(case["config"]["settings"]).eval(), mvit_v2_s().eval()
    load_from_torchvision(model, theirs)
    with torch.no_grad():
        video = case["inputs"]["video"]
        torch.testing.assert_close(model(video)["logits"], theirs(video), atol=1e-4, rtol=0)


FIGURES = {  # parameters, and multiply-adds of one view in units of 1e9, as published or measured with PySlowFast
    "Kinetics/MVITv2_S_16x4.yaml": (34_537_744, 64.22),
    "Kinetics/MVITv2_B_32x3.yaml": (51_230_128, 224.47),
    "Kinetics/MVITv2_L_40x3_test.yaml": (213_390_112, 2823.4),
    "Kinetics/MVIT_B_16x4_CONV.yaml": (36_610_672, 70.60),
    "Kinetics/MVIT_B_32x3_CONV.yaml": (53_115_280, 235.78),
    "SSv2/MVITv2_S_16x4.yaml": (34.36e6, 64.22),
    "SSv2/MVITv2_B_32x3.yaml": (51.06e6, 224.47),
    "SSv2/MVITv2_L_40x3.yaml": (213.13e6, 2823.4),
}


@pytest.mark.parametrize("path", FIGURES)
def test_size_of_published_models(path):
    model, data = from_config(path)
    parameters, giga = FIGURES[path]
    found = sum(p.numel() for p in model.parameters())
    assert found == parameters if isinstance(parameters, int) else found == pytest.approx(parameters, abs=5e3)
    video = torch.empty(1, *model.clip, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(video)
    # The columns that carry relative positions are a way to compute them, not part of the published count.
    folded = 0
    for attention in (block.attn for block in model.blocks if block.attn.axes):
        keys, width = attention.coordinates.shape
        folded += 2 * attention.plan.heads * (math.prod(attention.grid_q) + 1) * keys * width
    assert counter.get_total_flops() / 2e9 - folded / 1e9 == pytest.approx(giga, rel=2e-4)


def test_every_config_key_is_known():
    for path in FIGURES:
        text = (ROOT / "configs" / path).read_text()
        assert f"tools/run_net.py --cfg configs/{path}" in text.splitlines()[1]
        assert set(yaml.safe_load(text)["MVIT"]) <= set(MODELS["MViT"].keys)


def slow_attention(attention: Attention, x: torch.Tensor) -> torch.Tensor:
    """Pooling attention with its relative positions written out, one query and one key at a time."""
    plan, lead = attention.plan, attention.lead
    q, k, v = (attention._pool(n, y) for n, y in zip("qkv", attention.qkv(x).chunk(3, dim=-1)))
    queries = [(-1,) * 3] * lead + torch.cartesian_prod(*map(torch.arange, attention.grid_q)).tolist()
    sizes_kv = [-(-size // step) for size, step in zip(plan.grid, plan.stride_kv)]
    keys = [(-1,) * 3] * lead + torch.cartesian_prod(*map(torch.arange, sizes_kv)).tolist()
    logits = torch.einsum("bqhc,bkhc->bhqk", q, k) / attention.channels**0.5
    for i, place_q in enumerate(queries):
        for j, place_k in enumerate(keys):
            for axis, name in enumerate("thw"):
                if min(place_q) >= 0 and min(place_k) >= 0:
                    number_q, number_k = attention.grid_q[axis], sizes_kv[axis]
                    step_q, step_k = max(number_k / number_q, 1.0), max(number_q / number_k, 1.0)
                    row = place_q[axis] * step_q + (number_k - 1 - place_k[axis]) * step_k
                    table = getattr(attention, f"rel_pos_{name}")
                    rows = 2 * max(number_q, number_k) - 1
                    table = F.interpolate(table.T[None], size=rows, mode="linear")[0].T
                    logits[:, :, i, j] += q[:, i] @ table[int(row + 1e-9)]
    out = torch.einsum("bhqk,bkhc->bqhc", logits.softmax(-1), v)
    out[:, lead:] += q[:, lead:]
    return attention.proj(out.flatten(2))


@pytest.mark.parametrize(("lead", "stride_q"), [(1, (1, 1, 1)), (0, (1, 2, 2))])
def test_folded_positions_equal_the_slow_form(lead, stride_q):
    # 5 rounds up to 3 where it is pooled and down to 2 for the tables, so these tables are stretched as well.
    (plan,) = block_plans(
        1, 8, 2, (2, 5, 5), (2, 5, 5), dim_mul=(), head_mul=(), widen_in_attention=True,
        stride_q=[[0, *stride_q]], stride_kv=(1, 2, 2), kernel=(3, 3, 3),
    )  # fmt: skip
    attention = Attention(plan, lead, qkv_bias=True, axes="hwt", residual=True, eps=1e-6, dropout=0.0).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in attention.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(2, lead + 50, 8, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(attention(x), slow_attention(attention, x), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 4, 4), (2, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize(("kernel", "frames"), [((3, 3, 3), 5), ((1, 3, 3), 2), ((5, 3, 3), 1)])
def test_depthwise_gradients(batch, stride, kernel, frames):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, frames, 7, 6, 4, generator=generator, dtype=torch.float64)
    x = x.permute(0, 4, 1, 2, 3).requires_grad_()
    weight = torch.randn(4, 1, *kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = conv3d_depthwise(x, weight, stride)
    found = DepthwiseConv.apply(x, weight, stride)
    grad = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, (x, weight), grad), torch.autograd.grad(expected, (x, weight), grad)
    )


def test_activation_checkpointing_changes_nothing():
    video = torch.randn(2, 3, 4, 32, 32)
    plain, checkpointed = tiny(droppath_rate=0.5), tiny(droppath_rate=0.5, act_checkpoint=True)
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        model(video)["logits"].square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    path, x = DropPath(0.25), torch.ones(4000, 2, 3)
    kept = path(x)
    assert kept.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (kept == kept[:, :1, :1]).all()
    assert kept.mean().item() == pytest.approx(1, abs=0.05)
    assert path.eval()(x) is x


@pytest.mark.parametrize(("frames", "size"), [(2, 24), (6, 52), (4, 44)])
def test_other_clip_shapes(frames, size):
    outputs = tiny(frames=frames, size=size)(torch.randn(1, 3, frames, size, size))
    assert outputs["logits"].shape == (1, 5)
    assert outputs["features"].shape == (1, 32)
    assert outputs["logits"].isfinite().all()


def test_bfloat16_stays_near_float32():
    model, video = tiny(), torch.randn(2, 3, 4, 32, 32)
    exact = model(video)["logits"]
    exact.sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(video)["logits"]
    rough.float().sum().backward()
    torch.testing.assert_close(rough.float(), exact, atol=0.02, rtol=0.05)
    total, error = (
        math.hypot(*(float(t.norm()) for t in ts))
        for ts in (grads, [p.grad - g for p, g in zip(model.parameters(), grads)])
    )
    assert error < 0.05 * total


@pytest.mark.slow
def test_compiles_into_one_graph():
    model, video = tiny(), torch.randn(1, 3, 4, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(video)["logits"], model(video)["logits"])


def test_start_of_published_model():
    model = tiny(head_init_scale=0.001, layer_scale_init_value=0.1)
    assert model.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (model.blocks[0].norm1.bias == 0.02).all()
    assert (model.blocks[0].attn.qkv.bias == 0.02).all()
    assert (model.blocks[1].gamma_1 == 0.1).all()
    assert model.blocks[0].attn.rel_pos_h.std().item() == pytest.approx(0.02, rel=0.3)
    assert model.head.projection.bias.tolist() == pytest.approx([0.02 * 0.001] * 5)


def test_errors_say_what_to_change():
    with pytest.raises(UserError, match=r"MVIT.MODE: expected 'conv'"):
        tiny(mode="max")
    with pytest.raises(UserError, match="must be odd"):
        tiny(pool_kvq_kernel=(2, 2, 2))
    with pytest.raises(UserError, match=r"built for clips \(3, 4, 32, 32\), found \(3, 8, 32, 32\): .*NUM_FRAMES"):
        tiny()(torch.zeros(1, 3, 8, 32, 32))
    weights = {"pos_embed_spatial": torch.zeros(1, 60, 16)}
    with pytest.raises(UserError, match="square grids"):
        resize_positions(weights, tiny(use_abs_pos=True, sep_pos_embed=True))


def test_every_key_is_documented():
    undocumented = [name for name, key in MODELS["MViT"].keys.items() if not key.doc]
    assert undocumented == []
