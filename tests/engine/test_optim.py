"""Learning rates, weight decay and parameter groups against the golden figures of PySlowFast and VideoMAE."""

import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from videorl import config
from videorl.engine.build import precision
from videorl.engine.optim import (
    align,
    build_optimizer,
    lr_at,
    lr_factor,
    parameter_groups,
    set_rates,
    weight_decay_at,
)
from videorl.registry import MODELS, UserError

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import assert_close, limits, load_case  # noqa: E402

SCHEDULES = load_case(GOLDEN / "mvit/lr_schedules.pt")
GROUPS = load_case(GOLDEN / "mvit/optimizer_groups.pt")
MILNCE = load_case(GOLDEN / "milnce/lr_schedule.pt")
COSINES = load_case(GOLDEN / "videomae/cosine_schedule.pt")
VIT_GROUPS = load_case(GOLDEN / "videomae/optimizer_groups.pt")


def solver(**changes) -> SimpleNamespace:
    return SimpleNamespace(**{**config.load().SOLVER, **changes})


# --- learning rate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(SCHEDULES["inputs"]["schedules"])))
def test_learning_rates_as_published(number):
    given, expected = SCHEDULES["inputs"]["schedules"][number], SCHEDULES["expected"]["lr"][number]
    node = solver(**given["solver"])
    got = torch.tensor([lr_at(node, float(epoch)) for epoch in given["epochs"]], dtype=torch.float64)
    assert ((got - expected).abs() <= 1e-12 * expected.abs()).all()
    assert_close(got, expected, *limits(SCHEDULES))
    assert got.numel() >= 200


@pytest.mark.parametrize("number", range(3))
def test_learning_rates_of_milnce(number):
    """Up to the end of training; past it, where the published cosine turns up again, nothing trains."""
    given, expected = MILNCE["inputs"]["cases"][number], MILNCE["expected"]["lr"][number]
    node = solver(
        **{"BASE_LR": given["base"], "WARMUP_START_LR": 0.0, "WARMUP_EPOCHS": float(given["warmup"])},
        **{"COSINE_AFTER_WARMUP": True, "COSINE_END_LR": 0.0, "MAX_EPOCH": given["total"]},
    )
    got = torch.tensor([lr_at(node, float(step)) for step in range(given["total"] + 1)], dtype=torch.float64)
    assert_close(got, expected[: len(got)], 1e-18, limits(MILNCE)[1])
    steps = next(k for k in range(2, given["total"] + 1) if given["total"] % k == 0)  # the same, in longer epochs
    node.MAX_EPOCH, node.WARMUP_EPOCHS, node.WARMUP_STEPS = given["total"] // steps, 0.0, given["warmup"]
    counted = torch.tensor([lr_at(node, k / steps, steps) for k in range(given["total"] + 1)], dtype=torch.float64)
    assert_close(counted, expected[: len(got)], 1e-15, 1e-9)


def test_warm_up_meets_the_policy_where_it_ends():
    node = solver(BASE_LR=1.0, WARMUP_EPOCHS=4.0, WARMUP_START_LR=0.1, MAX_EPOCH=20)
    assert lr_at(node, 0.0) == pytest.approx(0.1)
    assert lr_at(node, 4.0 - 1e-9) == pytest.approx(lr_at(node, 4.0), rel=1e-6)
    assert lr_at(solver(WARMUP_EPOCHS=0.0), 0.0) == config.load().SOLVER.BASE_LR


@pytest.mark.parametrize("number", range(len(COSINES["inputs"]["cases"])))
def test_learning_rates_and_weight_decay_of_videomae(number):
    given, expected = COSINES["inputs"]["cases"][number], COSINES["expected"]["values"][number]
    steps, epochs = given["iterations"], given["epochs"]
    warmup = given["warmup_steps"] / steps if given["warmup_steps"] > 0 else given["warmup_epochs"]
    node = solver(
        **{"BASE_LR": given["base"], "COSINE_END_LR": given["final"], "COSINE_AFTER_WARMUP": True, "MAX_EPOCH": epochs},
        **{"WARMUP_EPOCHS": float(warmup), "WARMUP_START_LR": 0.0, "WARMUP_INCLUSIVE": True},
        **{"WEIGHT_DECAY": given["base"], "WEIGHT_DECAY_END": given["final"]},
    )
    positions = [epoch + step / steps for epoch in range(epochs) for step in range(steps)]  # as the loop has them
    got = torch.tensor([lr_at(node, epoch, steps) for epoch in positions], dtype=torch.float64)
    assert ((got - expected).abs() <= 1e-12 * expected.abs()).all()
    if not warmup:
        got = torch.tensor([weight_decay_at(node, epoch) for epoch in positions], dtype=torch.float64)
        assert ((got - expected).abs() <= 1e-12 * expected.abs()).all()


def test_the_two_ends_of_warm_up():
    """W steps: VideoMAE's linspace(start, base, W), PySlowFast's without its last point."""
    settings = {"BASE_LR": 1.0, "COSINE_AFTER_WARMUP": True, "WARMUP_EPOCHS": 2.0, "WARMUP_START_LR": 0.1}
    inclusive, usual = (solver(**settings, WARMUP_INCLUSIVE=flag) for flag in (True, False))
    steps = [k / 3 for k in range(6)]
    assert [lr_at(inclusive, e, 3) for e in steps] == pytest.approx(np.linspace(0.1, 1.0, 6))
    assert [lr_at(usual, e, 3) for e in steps] == pytest.approx(np.linspace(0.1, 1.0, 7)[:6])
    assert lr_at(inclusive, 2.0, 3) == lr_at(usual, 2.0, 3) == 1.0
    one = solver(**{**settings, "WARMUP_EPOCHS": 1.0}, WARMUP_INCLUSIVE=True)
    assert [lr_at(one, e, 1) for e in (0.0, 1.0)] == [0.1, 1.0]


def test_a_straight_line_is_that_of_fairseq():
    """Its polynomial_decay of power 1: (1 - (n - warmup) / (total - warmup)) * rate, in steps."""
    given = {"LR_POLICY": "linear", "BASE_LR": 2.0, "MAX_EPOCH": 5, "WARMUP_STEPS": 4, "WARMUP_START_LR": 0.0}
    for total, node in ((40, solver(**given, DECAY_STEPS=40)), (15, solver(**given))):
        expected = [2.0 * n / 4 if n < 4 else 2.0 * (1 - (n - 4) / (total - 4)) for n in range(15)]
        assert [lr_at(node, n / 3, 3) for n in range(15)] == pytest.approx(expected)
    assert lr_at(solver(**given, DECAY_STEPS=6, COSINE_END_LR=0.1), 4.0, 3) == 0.1


@pytest.mark.parametrize(("settings", "factor"), [({"BASE_LR_SCALE_NUM_SHARDS": True}, 4), ({"BASE_LR_BATCH": 256}, 8)])
def test_machines_or_clips_a_step_scale_every_rate(settings, factor):
    assert lr_factor(solver(), 4, 2048) == 1.0
    node = solver(WARMUP_EPOCHS=5.0, COSINE_END_LR=0.01, **settings)
    assert lr_factor(node, 4, 2048) == factor
    for epoch in (0.0, 3.0, 7.5, 299.0):
        assert lr_at(node, epoch, 10, factor) == pytest.approx(factor * lr_at(node, epoch, 10))


def test_two_ways_of_scaling_are_refused():
    settings = {"BASE_LR_BATCH": 8, "BASE_LR_SCALE_NUM_SHARDS": True}
    with pytest.raises(UserError, match="SOLVER.BASE_LR_BATCH 8: expected clips in a step, or 0; it scales the"):
        lr_factor(solver(**settings), 4, 64)


def test_weight_decay_is_constant_unless_an_end_is_named():
    assert {weight_decay_at(solver(WEIGHT_DECAY=0.05), epoch) for epoch in (0.0, 7.3, 299.0)} == {0.05}
    node = solver(WEIGHT_DECAY=0.05, WEIGHT_DECAY_END=0.0, MAX_EPOCH=10)
    assert [weight_decay_at(node, epoch) for epoch in (0, 5, 10)] == pytest.approx([0.05, 0.025, 0.0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"COSINE_AFTER_WARMUP": True, "WARMUP_EPOCHS": 30.0, "MAX_EPOCH": 30}, "WARMUP_EPOCHS 30 must be below"),
        ({"LR_POLICY": "steps_with_relative_lrs"}, "SOLVER.STEPS [] must begin with 0"),
        ({"LR_POLICY": "steps_with_relative_lrs", "STEPS": [3, 9], "LRS": [1, 0.1]}, "STEPS [3, 9] must begin with 0"),
        ({"LR_POLICY": "steps_with_relative_lrs", "STEPS": [0, 9], "LRS": [1]}, "have one of SOLVER.LRS [1] each"),
    ],
)
def test_impossible_schedules_are_refused(changes, said):
    with pytest.raises(UserError, match=re.escape(said)):
        lr_at(solver(**changes), 1.0)


# --- parameter groups ------------------------------------------------------------------------------------------------


def tree(parameters) -> nn.Module:
    """Modules with parameters of these names and shapes; a pair of 1-D weight and bias alone is a batch norm."""
    root = nn.Module()
    members: dict[str, dict] = {}
    for name, shape in parameters:
        module, _, leaf = name.rpartition(".")
        members.setdefault(module, {})[leaf] = shape
    for name, leaves in members.items():
        module = root
        for part in name.split(".")[:-1] if name else ():
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        is_norm = set(leaves) == {"weight", "bias"} and len(leaves["weight"]) == 1
        made = nn.BatchNorm3d(leaves["weight"][0], device="meta") if is_norm else nn.Module()
        for leaf, shape in leaves.items() if not is_norm else ():
            made.register_parameter(leaf, nn.Parameter(torch.empty(shape, device="meta")))
        module.add_module(name.split(".")[-1], made)
    return root


def build(given) -> nn.Module:
    """The model of the case on the meta device, with our own rules for layers and weight decay if it is an MViT."""
    if "X3D" in given["yaml"]:
        return tree(given["parameters"])
    overrides = [w for key, value in flat(given["settings"]) if key in known_keys() for w in (key, value)]
    cfg = config.load(overrides=overrides)
    entry, values = config.component(cfg, MODELS, "MViT")
    with torch.device("meta"):
        return entry(config.spec(cfg), values=values)


def flat(settings, path=()):
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, (*path, key))
        else:
            yield ".".join((*path, key)), value


def known_keys() -> set[str]:
    return {".".join(path) for path in config.global_schema() | config.component_schema()} - {"MODEL.MODEL_NAME"}


@pytest.mark.parametrize("number", range(len(GROUPS["inputs"]["models"])))
def test_weight_decay_and_layer_decay_as_published(number):
    given, expected = GROUPS["inputs"]["models"][number], GROUPS["expected"]["groups"][number]
    model = build(given)
    assert {n: list(p.shape) for n, p in model.named_parameters()} == {n: list(s) for n, s in given["parameters"]}
    groups = parameter_groups(model, solver(**given["solver"]), given["bn_weight_decay"])
    got = {n: (g["weight_decay"], g["lr_scale"]) for g in groups for n in g["names"]}
    wanted = {n: (g["weight_decay"], g["lr_scale"]) for g in expected for n in g["names"]}
    assert got.keys() == wanted.keys()
    assert sum(len(g["names"]) for g in groups) == len(got), "each parameter stands in one group"
    for name, pair in wanted.items():
        assert got[name] == pytest.approx(pair, rel=1e-9, abs=1e-12), name


VIDEOMAE = {
    "vit_base_patch16_224": "MODEL_NAME ViT MODEL.NUM_CLASSES 174",
    "pixel_pretrain_videomae_small_patch16_224": "MODEL_NAME VideoMAE MASK.RATIO 0.9 VIDEOMAE.EMBED_DIM 384"
    " VIDEOMAE.NUM_HEADS 6 VIDEOMAE.DECODER_DIM 192 VIDEOMAE.DECODER_HEADS 3",
}
# Ours to published; that V-SWIFT decays the mask token, and VideoMAE and we do not, is the one difference.
PUBLISHED = {"head.projection.weight": "head.weight", "head.projection.bias": "head.bias"}
PUBLISHED["mask_token"] = "decoder.mask_token"


@pytest.mark.parametrize("number", range(len(VIT_GROUPS["inputs"]["models"])))
def test_weight_decay_and_layer_decay_of_videomae(number):
    given, expected = VIT_GROUPS["inputs"]["models"][number], VIT_GROUPS["expected"]["groups"][number]
    cfg = config.load(overrides=f"DATA.NUM_FRAMES 16 MODEL.{VIDEOMAE[given['model']]}".split())
    entry, values = config.component(cfg, MODELS, cfg.MODEL.MODEL_NAME)
    with torch.device("meta"):
        model = entry(config.spec(cfg), values=values)
    node = solver(WEIGHT_DECAY=given["weight_decay"], LAYER_DECAY=given["layer_decay"], ZERO_WD_1D_PARAM=True)
    got = {PUBLISHED.get(n, n): pair for n, pair in by_name(parameter_groups(model, node)).items()}
    wanted = {n: (g["weight_decay"], g["lr_scale"]) for g in expected for n in g["names"]}
    assert got.keys() == wanted.keys()
    for name, pair in wanted.items():
        pair = (0.0, pair[1]) if name == "decoder.mask_token" else pair
        assert got[name] == pytest.approx(pair, rel=1e-9, abs=1e-12), name


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.table = nn.Parameter(torch.ones(5, 4))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


class Layered(Small):
    def no_weight_decay(self):
        return {"table"}

    def layer_of(self, name):
        return 0 if name.startswith("embed") else 2


def by_name(groups) -> dict:
    return {n: (g["weight_decay"], g["lr_scale"]) for g in groups for n in g["names"]}


def test_frozen_parameters_are_left_out_and_names_spare_from_decay():
    node = solver(WEIGHT_DECAY=0.1, ZERO_WD_1D_PARAM=False)
    plain = by_name(parameter_groups(Small(), node, bn_weight_decay=0.3))
    assert plain == {
        "embed.weight": (0.1, 1.0),
        "embed.bias": (0.1, 1.0),
        "norm.weight": (0.3, 1.0),
        "norm.bias": (0.3, 1.0),
        "table": (0.1, 1.0),
    }
    assert by_name(parameter_groups(Layered(), node, 0.3))["table"] == (0.0, 1.0)
    one_dimensional = by_name(parameter_groups(Small(), solver(WEIGHT_DECAY=0.1, ZERO_WD_1D_PARAM=True), 0.3))
    assert one_dimensional["embed.bias"] == (0.0, 1.0)
    assert one_dimensional["norm.bias"] == (0.3, 1.0)


def test_layer_decay_counts_from_the_top():
    groups = parameter_groups(Layered(), solver(LAYER_DECAY=0.5), 0.0)
    scales = {name: scale for name, (_, scale) in by_name(groups).items()}
    assert scales["embed.weight"] == 0.25
    assert scales["table"] == 1.0
    with pytest.raises(UserError, match=r"LAYER_DECAY needs a model with layer_of\(name\); Small has none"):
        parameter_groups(Small(), solver(LAYER_DECAY=0.5))


# --- the optimizer ---------------------------------------------------------------------------------------------------


class Temperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))


def cfg_with(**changes) -> SimpleNamespace:
    return SimpleNamespace(SOLVER=solver(**changes), BN=SimpleNamespace(WEIGHT_DECAY=0.0))


def test_learnable_loss_parameters_are_trained_without_decay():
    optimizer = build_optimizer(cfg_with(OPTIMIZING_METHOD="adamw", WEIGHT_DECAY=0.1), Small(), Temperature())
    own = optimizer.param_groups[-1]
    assert (own["names"], own["weight_decay"], own["lr_scale"]) == (["loss.scale"], 0.0, 1.0)


def test_the_rate_is_set_times_the_scale_of_each_group():
    optimizer = build_optimizer(cfg_with(LAYER_DECAY=0.5), Layered(), nn.Module())
    set_rates(optimizer, 0.8, 0.1)
    assert {group["lr"] for group in optimizer.param_groups} == {0.8, 0.2}


def test_scheduled_weight_decay_leaves_batch_norm_and_what_is_spared_alone():
    cfg = cfg_with(WEIGHT_DECAY=0.1, ZERO_WD_1D_PARAM=True)
    cfg.BN.WEIGHT_DECAY = 0.1
    optimizer = build_optimizer(cfg, Layered(), Temperature())
    for decay in (0.3, 0.0, 0.2):  # also back from 0
        set_rates(optimizer, 0.8, decay)
        assert {n: d for n, (d, _) in by_name(optimizer.param_groups).items()} == {
            "embed.weight": decay,
            "embed.bias": 0.0,
            "norm.weight": 0.1,
            "norm.bias": 0.1,
            "table": 0.0,
            "loss.scale": 0.0,
        }


@pytest.mark.parametrize("method", ["sgd", "adam", "adamw"])
def test_a_first_step_that_overflows_leaves_no_trace(method):
    scaler, moved = torch.amp.GradScaler("cpu", init_scale=8.0), []
    for gradients in ([float("inf"), 1.0], [1.0]):
        model = nn.Linear(2, 2)
        nn.init.ones_(model.weight)
        optimizer = build_optimizer(cfg_with(OPTIMIZING_METHOD=method), model, nn.Module())
        for gradient in gradients:
            for p in model.parameters():
                p.grad = torch.full_like(p, gradient) * scaler.scale(torch.ones(()))
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        moved.append(model.weight)
        assert all(bool(v.isfinite().all()) for entry in optimizer.state.values() for v in entry.values() if v.ndim)
    assert torch.equal(*moved)


@pytest.mark.parametrize("method", ["sgd", "adam", "adamw"])
def test_fused_steps_are_those_of_plain_torch(method):
    """Also for a gradient that lies in memory in another order than its parameter."""
    torch.manual_seed(0)
    model, other = Small(), Small()
    other.load_state_dict(model.state_dict())
    optimizer = build_optimizer(cfg_with(OPTIMIZING_METHOD=method, WEIGHT_DECAY=0.1), model, nn.Module())
    plain = type(optimizer)([{k: v for k, v in g.items() if k != "fused"} for g in optimizer.param_groups])
    for group, names in zip(plain.param_groups, (g["names"] for g in optimizer.param_groups)):
        group |= {"params": [other.get_parameter(n) for n in names], "fused": False, "foreach": False}
    for _ in range(3):
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.grad = torch.randn(p.shape[::-1]).permute(*range(p.ndim)[::-1])
                other.get_parameter(name).grad = p.grad.clone(memory_format=torch.contiguous_format)
        align([p for group in optimizer.param_groups for p in group["params"]])
        optimizer.step()
        plain.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, other.get_parameter(name), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "kind", "settings"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.7, "dampening": 0.0, "nesterov": True}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.95), "eps": 1e-8}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.95), "eps": 1e-8}),
    ],
)
def test_the_kinds_of_optimizer(method, kind, settings):
    optimizer = build_optimizer(
        cfg_with(OPTIMIZING_METHOD=method, MOMENTUM=0.7, BETAS=[0.8, 0.95]), Small(), nn.Module()
    )
    assert type(optimizer) is kind
    assert {key: optimizer.param_groups[0][key] for key in settings} == settings


def test_nesterov_without_momentum_is_plain_sgd():
    optimizer = build_optimizer(cfg_with(OPTIMIZING_METHOD="sgd", MOMENTUM=0.0), Small(), nn.Module())
    assert not optimizer.param_groups[0]["nesterov"]


@pytest.mark.parametrize(("amx", "kind"), [(True, torch.bfloat16), (False, None), (None, None)])
def test_mixed_precision_on_the_cpu_is_bfloat16_where_that_is_faster(monkeypatch, caplog, amx, kind):
    caplog.set_level(logging.INFO, "videorl")
    if amx is None:
        monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    train = ["TRAIN.MIXED_PRECISION", "True", "TRAIN.AMP_DTYPE"]
    assert precision(config.load([], [*train, "auto"])).dtype is kind
    assert ("float32, for this CPU has no AMX" in caplog.text) is (kind is None)
    assert precision(config.load([], [*train, "bfloat16"])).dtype is torch.bfloat16
    assert precision(config.load()).dtype is None
