"""Heads for several label spaces against MultiTrain's golden figures."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from videorl.convert import multitrain as multitrain_layout
from videorl.engine.optim import parameter_groups
from videorl.losses.informative import Informative
from videorl.losses.multi_head import MultiHead as MultiHeadLoss
from videorl.models.heads import MultiHead, class_head
from videorl.models.mvit import MViT
from videorl.registry import MODELS, UserError
from videorl.spec import Clip, Head, Spec

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import assert_close, limits, load_case  # noqa: E402

NAMES = ("kinetics", "mit", "ssv2")
LABELS = {"kinetics": 7, "mit": 5, "ssv2": 4}


def spec_of(case: dict, **head) -> Spec:
    data = case["config"]["settings"]["DATA"]
    size = data["TRAIN_CROP_SIZE"]
    return Spec(Clip(data["NUM_FRAMES"], 1, size, size), LABELS, head=Head(hidden=2048, **head))


def multitrain(case: dict, spec: Spec) -> MViT:
    """The published model: its MViT variant written in this toolkit's keys, weights under this toolkit's names."""
    settings = case["config"]["settings"]["MVIT"]
    own = {name.lower(): value for name, value in settings.items() if name in MODELS["MViT"].keys}
    strides = {row[0]: row[1:] for row in settings["POOL_Q_STRIDE"]}
    own["pool_q_stride"] = [[i, *strides.get(i, (1, 1, 1))] for i in range(settings["DEPTH"])]
    variant = {"dim_mul_in_att": True, "skip_proj_raw": True, "residual_pooling": True, "pool_norm_eps": 1e-5}
    model = MViT(spec, **{**own, **variant})
    model.load_state_dict(multitrain_layout.rename(case["state_dict"], model))
    return model


def split(values: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip(NAMES, values.split(list(LABELS.values()), dim=1), strict=True))


def split_projected(values: torch.Tensor) -> dict[str, torch.Tensor]:
    blocks = values.split([2 * LABELS[b] for b in NAMES], dim=1)
    pairs = [[a for a in NAMES if a != b] for b in NAMES]
    parts = [zip(others, block.chunk(2, 1)) for others, block in zip(pairs, blocks)]
    return {f"{a}_{b}": part for b, found in zip(NAMES, parts) for a, part in found}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_equals_multitrain(dtype):
    case = load_case(GOLDEN / "multitrain/model_train.pt")
    expected, video, own = case["expected"], case["inputs"]["video"], case["inputs"]["dataset"]
    if dtype == torch.float64:
        case["state_dict"] = {k: v.to(dtype) for k, v in case["state_dict"].items()}
    spec = spec_of(case, projection=True, expander=4096)
    model = multitrain(case, spec).to(dtype).train()
    found = model(video.to(dtype))
    labels = [torch.zeros(4, c, dtype=dtype) for c in LABELS.values()]
    for i, d in enumerate(own.tolist()):
        labels[d][i, i % list(LABELS.values())[d]] = 1
    spaces = torch.eye(3, dtype=dtype)[own]
    head = MultiHeadLoss(spec)(found["logits"], torch.cat(labels, 1), spaces, found["projected"]) / 4
    informative = Informative(spec)(found["features"], found["expanded"])
    total = head + 0.1 * informative
    total.backward()
    gradients = {_published_name(n): p.grad for n, p in model.named_parameters()}
    if dtype == torch.float32:
        got = {**split(found["logits"]), **split_projected(found["projected"])}
        atol, rtol = limits(case)
        assert got.keys() == expected["predictions"].keys()
        for name, value in expected["predictions"].items():
            assert_close(got[name], value, atol, rtol, name)
        assert_close(found["expanded"], expected["embedding"], atol, rtol)
        for name, value in (("head", head), ("informative", informative), ("total", total)):
            assert_close(value, expected["losses"][name], atol, rtol, name)
        train, tolerance = expected["train"], case["case"]["tolerance"]["train"]
    else:
        train, tolerance = case["expected64"]["train"], case["case"]["tolerance"]["float64_gradients"]
    assert_close(total, train["loss"], tolerance["atol"], tolerance["rtol"])
    for name, value in train["full"].items():
        assert_close(gradients[name], value, tolerance["atol"], tolerance["rtol"], name)
    assert gradients.keys() == train["norm"].keys()
    for name, norm in train["norm"].items():
        scale = max(train["norm"].values())
        assert float(gradients[name].norm()) == pytest.approx(norm, rel=tolerance["rtol"], abs=1e-6 * scale), name


def _published_name(name: str) -> str:
    if name.startswith("head.projections."):
        _, _, a, b, weight = name.split(".")
        return f"head.cross_dataset_heads.{a}_{b}.{weight}"
    name = name.replace("head.expander.", "expander.")
    # The skip projection of blocks that grow; `attn.proj` and `patch_embed.proj` keep their name.
    return name.replace(".proj.", ".proj_max_pool.") if name.count(".") == 3 and name.startswith("blocks.") else name


def test_testing_equals_multitrain():
    case = load_case(GOLDEN / "multitrain/model_test.pt")
    model = multitrain(case, spec_of(case)).eval()
    with torch.no_grad():
        found = model(case["inputs"]["video"])
    assert found.keys() == {"logits", "features"}, "projections and expander are for training"
    atol, rtol = limits(case)
    for name, logits in split(found["logits"]).items():
        assert_close(logits, case["expected"]["logits"][name], atol, rtol)
        assert_close(logits.softmax(1), case["expected"]["probabilities"][name], atol, rtol)


@pytest.mark.slow
def test_the_published_size_equals_multitrain():
    """24 blocks, 32 x 224 x 224, 400 + 305 + 174 classes: a minute and several GB."""
    case = load_case(GOLDEN / "multitrain/model_multi_full.pt")
    settings = case["config"]["settings"]
    labels = dict(zip(NAMES, settings["MODEL"]["MULTI_NUM_CLASSES"], strict=True))
    model = multitrain(case, replace(spec_of(case), labels=labels)).eval()
    with torch.no_grad():
        logits = model(case["inputs"]["video"])["logits"]
    atol, rtol = limits(case)
    for name, part in zip(NAMES, logits.split(list(labels.values()), 1), strict=True):
        assert_close(part, case["expected"]["logits"][name], atol, rtol, name)
        assert_close(part.softmax(1), case["expected"]["probabilities"][name], atol, rtol, name)


def test_weight_decay_is_that_of_multitrain():
    """One thing is left out: its group of projections, which has the same weight decay, is no group of its own."""
    case = torch.load(GOLDEN / "multitrain/optimizer_groups.pt", weights_only=True)
    expected = {name: group["weight_decay"] for group in case["expected"]["groups"] for name in group["names"]}
    train = load_case(GOLDEN / "multitrain/model_train.pt")
    model = multitrain(train, spec_of(train, projection=True, expander=4096))
    solver = SimpleNamespace(
        WEIGHT_DECAY=case["inputs"]["weight_decay"], ZERO_WD_1D_PARAM=case["inputs"]["zero_wd_1d"], LAYER_DECAY=1.0
    )
    model.zero_decay_pos_cls = False  # as in the published YAML files
    found = {_published_name(n): g["weight_decay"] for g in parameter_groups(model, solver) for n in g["names"]}
    assert found == expected


def test_class_axes_name_each_parameter_with_classes():
    head = MultiHead({"a": 3, "b_c": 4}, 8, hidden=0, dropout=0.0, projection=True, expander=5, drop_logits=False)
    axes = head.class_axes()
    sizes = {"a": 3, "b_c": 4, None: 8}
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters() if not name.startswith("expander")}
    assert {name: tuple(sizes[s] for s in spaces) for name, spaces in axes.items()} == shapes
    one = class_head(Spec(Clip(2, 1, 4, 4), {"x": 6}), 8)
    assert {n: tuple({"x": 6, None: 8}[s] for s in v) for n, v in one.class_axes().items()} == {
        n: tuple(p.shape) for n, p in one.named_parameters()
    }


def test_dropout_on_logits_is_the_published_quirk():
    torch.manual_seed(0)
    features = torch.randn(64, 8)
    make = {"hidden": 0, "dropout": 0.5, "projection": False, "expander": 0}
    right = MultiHead({"a": 3, "b": 4}, 8, **make, drop_logits=False).train()(features)["logits"]
    quirk = MultiHead({"a": 3, "b": 4}, 8, **make, drop_logits=True).train()(features)["logits"]
    assert not (right == 0).any()
    assert 0.4 < (quirk == 0).float().mean() < 0.6


def test_no_label_space_is_an_error():
    with pytest.raises(UserError, match="needs a label space"):
        class_head(Spec(Clip(2, 1, 4, 4)), 8)
