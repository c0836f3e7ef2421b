"""Learning rates and parameter groups against the golden figures of PySlowFast."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from videorl import config
from videorl.engine.optim import build_optimizer, lr_at, parameter_groups, set_lr
from videorl.registry import MODELS, UserError

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import assert_close, limits, load_case  # noqa: E402

SCHEDULES = load_case(GOLDEN / "mvit/lr_schedules.pt")
GROUPS = load_case(GOLDEN / "mvit/optimizer_groups.pt")


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


def test_warm_up_meets_the_policy_where_it_ends():
    node = solver(BASE_LR=1.0, WARMUP_EPOCHS=4.0, WARMUP_START_LR=0.1, MAX_EPOCH=20)
    assert lr_at(node, 0.0) == pytest.approx(0.1)
    assert lr_at(node, 4.0 - 1e-9) == pytest.approx(lr_at(node, 4.0), rel=1e-6)
    assert lr_at(solver(WARMUP_EPOCHS=0.0), 0.0) == config.load().SOLVER.BASE_LR


def test_machines_scale_every_rate_where_asked():
    for epoch in (0.0, 3.0, 7.5):
        on, off = (solver(WARMUP_EPOCHS=5.0, BASE_LR_SCALE_NUM_SHARDS=flag) for flag in (True, False))
        assert lr_at(on, epoch, shards=4) == pytest.approx(4 * lr_at(off, epoch, shards=4))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"LR_POLICY": "linear"}, "SOLVER.LR_POLICY 'linear': expected cosine or steps_with_relative_lrs"),
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
    set_lr(optimizer, 0.8)
    assert {group["lr"] for group in optimizer.param_groups} == {0.8, 0.2}


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


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(UserError, match=r"SOLVER\.OPTIMIZING_METHOD 'lamb': expected sgd, adam or adamw"):
        build_optimizer(cfg_with(OPTIMIZING_METHOD="lamb"), Small(), nn.Module())
