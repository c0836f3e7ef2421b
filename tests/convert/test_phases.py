"""Checkpoint files through the settings of a run, and through tools/convert.py."""

import importlib.util
import json
import logging
from pathlib import Path

import pytest
import torch

from videorl import checkpoint, config
from videorl.engine import build
from videorl.engine.evaluate import evaluations
from videorl.engine.state import State
from videorl.engine.test import _class_names, _load
from videorl.registry import UserError

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/toy/mvit.yaml"
NAMES = ["up", "down", "left", "right"]
SMALL = (
    "DATA.NUM_FRAMES",
    4,
    "DATA.TRAIN_CROP_SIZE",
    32,
    "DATA.TEST_CROP_SIZE",
    32,
    "DATA.TRAIN_JITTER_SCALES",
    [32, 36],
)
SMALL += ("MVIT.EMBED_DIM", 16, "TRAIN.BATCH_SIZE", 2, "NUM_GPUS", 0)
SMALL += ("MVIT.SKIP_PROJ_RAW", True, "MVIT.POOL_NORM_EPS", 1e-5)  # the variant of MultiTrain


def write_data(folder: Path, names=NAMES) -> Path:
    """Annotations alone: no video is opened when weights are loaded."""
    folder.mkdir()
    for split in ("train", "val", "test"):
        (folder / f"{split}.csv").write_text("".join(f"{name}.mp4 {i}\n" for i, name in enumerate(names)))
    (folder / "classes.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    return folder


@pytest.fixture
def settings(tmp_path):
    """`settings(KEY, value, …, names=…)`: a run of a narrow MViT on four classes in tmp_path/out."""

    def load(*overrides, names=NAMES):
        data = tmp_path / "-".join(names)
        data = data if data.is_dir() else write_data(data, names)
        words = ["DATA.PATH_TO_DATA_DIR", data, "MODEL.NUM_CLASSES", len(names), "OUTPUT_DIR", tmp_path / "out"]
        return config.load([CONFIG], map(str, [*SMALL, *words, *overrides]))

    return load


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("videorl"), "propagate", True)
    caplog.set_level(logging.INFO, "videorl")
    return caplog


@pytest.fixture
def trained(settings, tmp_path) -> tuple[Path, dict]:
    """A checkpoint of ours, its head far from any first value, and the weights in it."""
    state = State.build(settings())
    torch.nn.init.normal_(state.model.head.projection.weight)
    checkpoint.save(tmp_path / "ours.pyth", state.content())
    return tmp_path / "ours.pyth", state.model.state_dict()


def started(cfg) -> torch.nn.Module:
    state = State.build(cfg)
    state.resume()
    assert (state.epoch, state.step_in_epoch) == (0, 0)
    return state.model


def for_test(cfg, tmp_path) -> torch.nn.Module:
    model = build.model(cfg)
    _load(cfg, model, tmp_path / "out", _class_names(evaluations(cfg, at_test=True)))
    return model


START = ("TRAIN.CHECKPOINT_EPOCH_RESET", True, "TRAIN.CHECKPOINT_FILE_PATH")
TEST = ("TRAIN.ENABLE", False, "TEST.CHECKPOINT_FILE_PATH")


def test_checkpoints_carry_the_names_of_classes(trained):
    assert checkpoint.read(trained[0])["classes"] == {"kinetics": NAMES}


def test_permuted_classes_are_noticed_when_testing_and_fine_tuning(settings, trained, tmp_path, said):
    file, weights = trained
    other = NAMES[::-1]
    for model in (for_test(settings(*TEST, file, names=other), tmp_path), started(settings(*START, file, names=other))):
        assert torch.equal(model.head.projection.weight, weights["head.projection.weight"].flip(0))
        assert torch.equal(model.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])
    assert said.text.count("kinetics: the file has its classes in another order") == 2
    same = for_test(settings(*TEST, file), tmp_path)
    assert torch.equal(same.head.projection.weight, weights["head.projection.weight"])


def test_other_classes_are_an_error_when_testing_and_a_new_head_when_fine_tuning(settings, trained, tmp_path, said):
    file, weights = trained
    names = [*NAMES[:3], "round"]
    with pytest.raises(UserError, match=f"^{file}: kinetics: 1 of 4 classes are not in the file: round"):
        for_test(settings(*TEST, file, names=names), tmp_path)
    model = for_test(settings(*TEST, file, "MODEL.ALLOW_PARTIAL", True, names=names), tmp_path)
    assert torch.equal(model.head.projection.weight[:3], weights["head.projection.weight"][:3])
    five = [f"new {i}" for i in range(5)]
    model = started(settings(*START, file, names=five))
    assert len(model.head.projection.weight) == 5
    assert torch.equal(model.patch_embed.proj.weight, weights["patch_embed.proj.weight"])
    assert "5 of 5 classes are not in the file" in said.text


def test_another_clip_shape_is_interpolated_on_the_way(settings, trained, tmp_path, said):
    file, weights = trained
    larger = ("DATA.NUM_FRAMES", 8, "DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64)
    larger += ("DATA.TRAIN_JITTER_SCALES", [64, 72])
    model = started(settings(*START, file, *larger))
    table = model.state_dict()["blocks.0.attn.rel_pos_t"]
    wanted = torch.nn.functional.interpolate(weights["blocks.0.attn.rel_pos_t"].T[None], len(table), mode="linear")[0].T
    assert len(table) > len(weights["blocks.0.attn.rel_pos_t"])
    assert torch.equal(table, wanted)
    assert "interpolated" in said.text
    for_test(settings(*TEST, file, *larger), tmp_path)


def test_names_can_be_cleared(settings, trained, tmp_path):
    _, weights = trained
    file = tmp_path / "theirs.pth"
    torch.save({"state_dict": {f"module.backbone.{name}": value for name, value in weights.items()}}, file)
    with pytest.raises(UserError, match=r"0\.0 % .*expected at least 95 %"):
        started(settings(*START, file))
    model = started(settings(*START, file, "TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN", ["backbone."]))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


# --- tools/convert.py ------------------------------------------------------------------------------------------------


def convert(*words) -> None:
    spec = importlib.util.spec_from_file_location("convert_tool", ROOT / "tools/convert.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.main(list(map(str, words)))


@pytest.fixture
def theirs(trained, tmp_path) -> Path:
    """The trained weights as MultiTrain would name them, with names of classes."""
    weights = {name.replace(".proj.", ".proj_max_pool.") if name.count(".") == 3 else name: value
               for name, value in trained[1].items()}  # fmt: skip
    assert any(".proj_max_pool." in name for name in weights)
    torch.save({"epoch": 9, "model_state": weights, "classes": NAMES}, tmp_path / "theirs.pyth")
    return tmp_path / "theirs.pyth"


def test_the_tool_writes_a_checkpoint_of_ours(settings, trained, theirs, tmp_path, capsys):
    out = tmp_path / "converted.pyth"
    model = ("--cfg", CONFIG, *SMALL, "MODEL.NUM_CLASSES", 4)
    convert(theirs, out, *model, "--dry-run")
    said = capsys.readouterr().out
    assert not out.exists()
    assert "100.0 % of the model's numbers loaded" in said
    assert "layout of MultiTrain" in said
    assert "    renamed " in said
    convert(theirs, out, *model)
    assert capsys.readouterr().out.startswith(said)
    state, note = checkpoint.read(out), json.loads(out.with_suffix(".json").read_text())
    assert state["classes"] == {"kinetics": NAMES}
    assert (state["epoch"], note["layout"], note["converted_from"]) == (-1, "MultiTrain", str(theirs))
    assert state["model_state"].keys() == trained[1].keys()
    flipped = for_test(settings(*TEST, out, names=NAMES[::-1]), tmp_path)
    assert torch.equal(flipped.head.projection.weight, trained[1]["head.projection.weight"].flip(0))


@pytest.mark.parametrize(
    ("out", "overrides", "words"),
    [
        ("x.json", (), "expected a name that ends in .pyth"),
        ("theirs.pyth", (), "exists; name another file"),
        ("theirs.pyth/x.pyth", (), "cannot be written"),
        ("x.pyth", ("MVIT.EMBED_DIM", 32), "expected at least 95 %"),
        ("x.pyth", ("MODEL.NUM_CLASES", 4), "did you mean MODEL.NUM_CLASSES"),
    ],
)
def test_what_the_tool_refuses(theirs, tmp_path, capsys, out, overrides, words):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as end:
        convert(theirs, tmp_path / out, "--cfg", CONFIG, *SMALL, "MODEL.NUM_CLASSES", 4, *overrides)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert words in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_tool_can_be_forced(theirs, tmp_path):
    out = tmp_path / "x.pyth"
    convert(theirs, out, "--cfg", CONFIG, *SMALL, "MVIT.EMBED_DIM", 32, "MODEL.ALLOW_PARTIAL", True)
    assert len(checkpoint.read(out)["model_state"]) < 20
