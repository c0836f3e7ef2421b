"""Published checkpoints under their own names of tensors give the published outputs."""

import argparse
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from videorl import convert
from videorl.convert.facts import facts
from videorl.models.mvit import MViT
from videorl.registry import MODELS, UserError
from videorl.spec import Clip, Head, Spec

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
sys.path.insert(0, str(GOLDEN))
from recipe import check, load_case  # noqa: E402

SPACES = {"kinetics": 7, "mit": 5, "ssv2": 4}


def mvit(settings: dict, labels: dict[str, int] | None = None, **head) -> MViT:
    """The model of published settings."""
    own = {name.lower(): value for name, value in settings["MVIT"].items() if name in MODELS["MViT"].keys}
    if "CHANNEL_EXPAND_FRONT" in settings["MVIT"]:  # MultiTrain's variant
        strides = {row[0]: row[1:] for row in settings["MVIT"]["POOL_Q_STRIDE"]}
        own["pool_q_stride"] = [[i, *strides.get(i, (1, 1, 1))] for i in range(own["depth"])]
        own |= {"dim_mul_in_att": True, "skip_proj_raw": True, "residual_pooling": True, "pool_norm_eps": 1e-5}
    data, labels = settings["DATA"], labels or {"kinetics": settings["MODEL"]["NUM_CLASSES"]}
    clip = Clip(data["NUM_FRAMES"], 1, data["TRAIN_CROP_SIZE"], data["TRAIN_CROP_SIZE"])
    return MViT(Spec(clip, labels, head=Head(**head)), **own)


def published(weights: dict) -> dict:
    """A file as PySlowFast and MultiTrain write it."""
    return {"epoch": 199, "model_state": weights, "optimizer_state": {}, "cfg": "NUM_GPUS: 8\n"}


def logits(model: nn.Module, video: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(video)["logits"]


@pytest.mark.parametrize("name", ["mvitv1_small", "mvitv2_small", "mvitv2_maskfeat_finetune"])
def test_pyslowfast(name):
    case = load_case(GOLDEN / f"mvit/{name}.pt")
    model = mvit(case["config"]["settings"])
    convert.load(model, published(case["state_dict"]), "x.pyth", testing=True)
    check(case, {"logits": logits(model, case["inputs"]["video"])})
    assert convert.layout_of(case["state_dict"]).NAME == "PySlowFast"


def apart(weights: dict) -> dict:
    """Queries, keys and values as mae_st's releases and PySlowFast's SEPARATE_QKV store them."""
    found = {}
    for name, value in weights.items():
        parts = zip("qkv", value.chunk(3)) if ".attn.qkv." in name else [("", value)]
        found |= {name.replace(".qkv.", f".{part}."): rows for part, rows in parts}
    return found


@pytest.mark.parametrize("layout", ["PySlowFast", "mae_st"])
def test_queries_keys_and_values_apart(layout):
    case = load_case(GOLDEN / "vit_mae/vit_finetune.pt")
    settings = case["config"]["settings"]
    model, weights = mvit(settings), apart(case["state_dict"])
    assert "blocks.0.attn.q.bias" in weights
    if layout == "mae_st":
        weights = {name.replace("head.projection.", "head."): value for name, value in weights.items()}
    _, audit = convert.fit(model, {"model_state": weights}, "x.pth", testing=True)
    assert (audit.layout, audit.part, audit.unexpected) == (layout, 1.0, [])
    convert.load(model, {"model_state": weights}, "x.pth", testing=True)
    check(case, {"logits": logits(model, case["inputs"]["video"])})
    said = facts({"model_state": weights, "args": argparse.Namespace(num_frames=16, sampling_rate=4)}, "x")
    if layout == "mae_st":
        assert (said["DATA.NUM_FRAMES"], said["CLS_EMBED_ON"], said["PATCH_PADDING"]) == (16, True, [0, 0, 0])


def test_mae_st_pre_trained_for_fine_tuning():
    case = load_case(GOLDEN / "vit_mae/vit_finetune.pt")
    model, weights = mvit(case["config"]["settings"]), apart(case["state_dict"])
    weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
    weights |= {"decoder_pred.weight": torch.zeros(2, 2), "mask_token": torch.zeros(1, 1, 2)}
    weights["decoder_blocks.0.attn.q.weight"] = torch.zeros(2, 2)
    _, audit = convert.fit(model, {"model": weights}, "x.pth")
    assert (audit.layout, audit.part, audit.missing) == ("mae_st", 1.0, [])


@pytest.mark.parametrize("name", ["PySlowFast", "MultiTrain"])
def test_a_cfg_of_published_code_is_read(name):
    """MultiTrain's own keys become ours: a stride for every block, growth in the attention."""
    golden = {"PySlowFast": "mvit/mvitv2_small", "MultiTrain": "multitrain/model_single_head"}[name]
    case = load_case(GOLDEN / f"{golden}.pt")
    settings = case["config"]["settings"]
    text = yaml.safe_dump({**settings, "MODEL": {**settings["MODEL"], "MODEL_NAME": "MViT"}, "OTHER": {"KEY": 1}})
    said = facts({"model_state": case["state_dict"], "cfg": text}, "x")
    model = mvit(settings)
    assert (said["DATA.NUM_FRAMES"], said["NUM_HEADS"]) == (
        settings["DATA"]["NUM_FRAMES"],
        settings["MVIT"]["NUM_HEADS"],
    )
    assert "DROPPATH_RATE" not in said
    assert "KEY" not in said
    if name == "MultiTrain":
        assert said["DIM_MUL_IN_ATT"] is True
        assert len(said["POOL_Q_STRIDE"]) == len(model.blocks)


@pytest.mark.parametrize("cfg", [None, 3, "[1, 2]", "A: [", "MODEL: {MODEL_NAME: [1]}", "x" * 2_000_000, "MVIT: 3"])
def test_a_cfg_that_is_none_says_nothing(cfg):
    case = load_case(GOLDEN / "mvit/mvitv2_small.pt")
    assert facts({"model_state": case["state_dict"], "cfg": cfg}, "x") == {}


def test_multitrain_with_one_head():
    case = load_case(GOLDEN / "multitrain/model_single_head.pt")
    model = mvit(case["config"]["settings"])
    _, audit = convert.fit(model, published(case["state_dict"]), "x.pyth")
    assert (audit.layout, audit.part, audit.unexpected) == ("MultiTrain", 1.0, [])
    assert audit.renamed == [f"blocks.{i}.proj.{x}" for i in (1, 3) for x in ("weight", "bias")]
    convert.load(model, published(case["state_dict"]), "x.pyth", testing=True)
    check(case, {"logits": logits(model, case["inputs"]["video"])})


def test_multitrain_in_training():
    case = load_case(GOLDEN / "multitrain/model_train.pt")
    model = mvit(case["config"]["settings"], SPACES, hidden=2048, projection=True, expander=4096).train()
    convert.load(model, published(case["state_dict"]), "x.pyth", testing=True)
    found = model(case["inputs"]["video"])
    heads = dict(zip(SPACES, found["logits"].split(list(SPACES.values()), 1)))
    cross = {f"{a}_{b}": model.head.projections[a][b](heads[a]) for a in SPACES for b in SPACES if a != b}
    check(case, {"predictions": heads | cross, "embedding": found["expanded"]})


@pytest.mark.parametrize("weights", ["training", "test"])
@pytest.mark.parametrize("built", ["training", "test"])
def test_multitrain_at_test_needs_no_parts_of_the_training(weights, built):
    case = load_case(GOLDEN / "multitrain/model_test.pt")
    trained = load_case(GOLDEN / "multitrain/model_train.pt")["state_dict"]
    tested = case["state_dict"]
    trained = trained | tested
    extra = {"projection": True, "expander": 4096} if built == "training" else {}
    model = mvit(case["config"]["settings"], SPACES, hidden=2048, **extra)
    convert.load(model, published(trained if weights == "training" else tested), "x.pyth", testing=True)
    parts = logits(model, case["inputs"]["video"]).split(list(SPACES.values()), 1)
    check(case, {"logits": dict(zip(SPACES, parts))})


def test_projections_between_data_sets_with_underscores():
    names = [f"head.heads.{space}.weight" for space in ("a", "my_set", "my", "set_a")]
    weights = {name: torch.zeros(2, 3) for name in names}
    weights |= {"head.cross_dataset_heads.my_set_my.weight": torch.ones(2, 2)}
    assert convert.layout_of(weights).NAME == "MultiTrain"
    found = convert.layout_of(weights).rename(weights, None)
    assert list(found) == [*names, "head.projections.my_set.my.weight"]
    weights = {name: torch.zeros(2, 3) for name in names} | {"head.cross_dataset_heads.my_set_a.weight": torch.ones(2)}
    with pytest.raises(UserError, match="projection my_set_a: expected two of the file's heads .* found 2"):
        convert.layout_of(weights).rename(weights, None)


# --- torchvision -----------------------------------------------------------------------------------------------------

NARROW = {
    "patch_padding": (1, 3, 3),
    "embed_dim": 16,
    "depth": 3,
    "pool_q_stride": [[0, 1, 1, 1], [1, 1, 2, 2], [2, 1, 1, 1]],
    "pool_kv_stride_adaptive": (1, 4, 4),
    "pool_kvq_kernel": (3, 3, 3),
    "droppath_rate": 0.0,
}
VERSIONS = {
    "v1": {"dim_mul": [[1, 2.0]], "head_mul": [[1, 2.0]], "sep_pos_embed": True},
    "v2": {
        **{"dim_mul": [[1, 2.0]], "head_mul": [[1, 2.0]], "dim_mul_in_att": True, "residual_pooling": True},
        **{"use_abs_pos": False, "rel_pos_spatial": True, "rel_pos_temporal": True},
    },
}


def narrow(version: str, frames: int = 8, size: int = 64) -> MViT:
    return MViT(Spec(Clip(frames, 1, size, size), {"kinetics": 5}), **NARROW, **VERSIONS[version])


def theirs(version: str, frames: int = 8, size: int = 64) -> nn.Module:
    from torchvision.models.video.mvit import MSBlockConfig
    from torchvision.models.video.mvit import MViT as TorchvisionMViT

    # Version 1 widens in the MLP of the block before the one whose heads double.
    widths = [(16, 32), (32, 32), (32, 32)] if version == "v1" else [(16, 16), (16, 32), (32, 32)]
    rows = zip((1, 2, 2), widths, ((1, 1, 1), (1, 2, 2), (1, 1, 1)), ((1, 4, 4), (1, 2, 2), (1, 2, 2)))
    blocks = [MSBlockConfig(h, i, o, [3] * 3, [3] * 3, list(q), list(kv)) for h, (i, o), q, kv in rows]
    second = version == "v2"
    form = {"residual_pool": second, "rel_pos_embed": second, "proj_after_attn": second}
    model = TorchvisionMViT((size, size), frames, blocks, num_classes=5, residual_with_cls_embed=False, **form)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("version", VERSIONS)
def test_torchvision(version):
    model, other = narrow(version), theirs(version)
    weights, audit = convert.fit(model, other.state_dict(), "x.pth", testing=True)
    assert (audit.layout, audit.part, audit.unexpected) == ("torchvision", 1.0, [])
    tables = ["pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"] if version == "v1" else []
    assert set(audit.reshaped) == {"cls_token", *tables}
    model.load_state_dict(weights)
    video = torch.randn(2, 3, 8, 64, 64)
    torch.testing.assert_close(logits(model, video), other(video), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_torchvision_of_another_clip_shape(version):
    """Renaming and then resizing gives what resizing the renamed file gives."""
    other = theirs(version).state_dict()
    source, target = narrow(version), narrow(version, frames=16, size=96)
    convert.load(source, other, "x.pth", testing=True)
    weights, audit = convert.fit(target, other, "x.pth", testing=True)
    assert audit.part == 1.0
    assert audit.interpolated
    again, _ = convert.fit(target, {"model_state": source.state_dict()}, "ours.pyth", testing=True)
    assert all(torch.equal(weights[name], again[name]) for name in again)


@pytest.mark.parametrize(("config", "builder"), [("MVIT_B_16x4_CONV", "mvit_v1_b"), ("MVITv2_S_16x4", "mvit_v2_s")])
def test_torchvision_s_published_models_are_ours(config, builder):
    from torchvision.models import video

    settings = yaml.safe_load((ROOT / f"configs/Kinetics/{config}.yaml").read_text())
    with torch.device("meta"):
        model, weights = mvit(settings), getattr(video, builder)().state_dict()
    _, audit = convert.fit(model, weights, "x.pth", testing=True)
    assert (audit.part, audit.unexpected) == (1.0, [])


# --- other clip shapes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rel_pos", "sep_pos"])
def test_pyslowfast_of_another_clip_shape(kind):
    case = load_case(GOLDEN / f"mvit/checkpoint_resize_{kind}.pt")
    model = mvit(case["config"]["target"]["settings"])
    _, audit = convert.fit(model, published(case["state_dict"]), "x.pyth", testing=True)
    assert set(audit.interpolated) == set(case["expected"]["resized"])
    convert.load(model, published(case["state_dict"]), "x.pyth", testing=True)
    check(case, {"logits": logits(model, case["inputs"]["video"])})


def test_half_precision_files_are_resized_too():
    case = load_case(GOLDEN / "mvit/checkpoint_resize_sep_pos.pt")
    model = mvit(case["config"]["target"]["settings"])
    weights = {name: value.half() for name, value in case["state_dict"].items()}
    found, audit = convert.fit(model, published(weights), "x.pyth", testing=True)
    assert len(audit.interpolated) == 2
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_the_audit_names_the_layout_also_where_all_names_are_ours():
    case = load_case(GOLDEN / "mvit/mvitv2_small.pt")
    model = mvit(case["config"]["settings"])
    ours = {"model_state": case["state_dict"], "ema_state": None, "classes": {}}
    for state, layout in ((published(case["state_dict"]), "PySlowFast"), (ours, "this toolkit")):
        assert convert.fit(model, state, "x.pyth")[1].layout == layout


def test_every_golden_file_has_one_layout():
    files = ["mvit/mvitv1_small", "mvit/mvitv2_small", "multitrain/model_single_head", "multitrain/model_train"]
    weights = [load_case(GOLDEN / f"{file}.pt")["state_dict"] for file in files]
    weights += [theirs(version).state_dict() for version in VERSIONS]
    for names in weights:
        assert len([layout for layout in convert.layouts() if layout.matches(set(names))]) == 1
    own = narrow("v1").state_dict()
    assert not [layout for layout in convert.layouts() if layout.matches({"some.weight", "other.bias"})]
    assert convert.layout_of(own).NAME == "PySlowFast"
