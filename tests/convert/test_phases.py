"""Checkpoint files through the settings of a run, and through tools/convert.py."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from videorl import checkpoint, config
from videorl.cli import convert as tool
from videorl.engine import build
from videorl.engine.evaluate import evaluations
from videorl.engine.given import load_config
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
def said(caplog):
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
    clear = ("TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN", ["backbone."])
    tested = for_test(settings(*TEST, file, *clear), tmp_path)
    for model in (started(settings(*START, file, *clear)), tested):
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


# --- what a file says of itself --------------------------------------------------------------------------------------


OTHERS = ("MVIT.NUM_HEADS", 2, "DATA.MEAN", [0.5, 0.5, 0.5], "DATA.SAMPLING_RATE", 3, "SOLVER.BASE_LR", 7.0)


@pytest.fixture
def others(settings, tmp_path) -> Path:
    """A checkpoint of a run with other heads, mean and sampling rate than configs/toy/mvit.yaml and defaults have."""
    state = State.build(settings(*OTHERS))
    checkpoint.save(tmp_path / "others.pyth", state.content())
    return tmp_path / "others.pyth"


def loaded(tmp_path, *words, base=""):
    """`load_config` with a YAML that says nothing of the model and its clips but what `base` does."""
    (tmp_path / "bare.yaml").write_text(f"NUM_GPUS: 0\nDATA: {{PATH_TO_DATA_DIR: {tmp_path}}}\n{base}")
    out = ("OUTPUT_DIR", tmp_path / "out")
    return load_config([tmp_path / "bare.yaml"], [str(word) for word in (*out, *words)])


@pytest.mark.parametrize("how", [START, TEST, ("TRAIN.CHECKPOINT_FILE_PATH",)], ids=["start", "test", "resume"])
def test_settings_that_nobody_gives_are_the_file_s(others, tmp_path, how):
    cfg, (said,) = loaded(tmp_path, *how, others, base="DATA: {SAMPLING_RATE: 2}\n")
    assert (cfg.MVIT.NUM_HEADS, cfg.MVIT.EMBED_DIM, cfg.DATA.MEAN) == (2, 16, [0.5, 0.5, 0.5])
    assert (cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE) == (4, 32)
    assert (cfg.DATA.SAMPLING_RATE, cfg.SOLVER.BASE_LR) == (2, 0.1), "the run's own"
    assert said.startswith(f"taken from {others}, for nothing else says it: ")
    assert "MVIT.NUM_HEADS 2" in said
    assert "SAMPLING_RATE" not in said
    assert loaded(tmp_path, *how, others, "MVIT.NUM_HEADS", 1)[0].MVIT.NUM_HEADS == 1


def test_the_heads_of_a_published_videomae_are_those_of_its_width(tmp_path):
    """12 heads for 6, the default for the small model, would fit every tensor."""
    weights = {"patch_embed.proj.weight": torch.zeros(384, 3, 2, 16, 16), "blocks.0.attn.q_bias": torch.zeros(384)}
    torch.save({"model": weights}, tmp_path / "vit_s.pth")
    cfg, _ = loaded(tmp_path, *TEST, tmp_path / "vit_s.pth", "MODEL.MODEL_NAME", "ViT")
    assert (cfg.VIT.NUM_HEADS, cfg.VIT.EMBED_DIM, cfg.DATA.MEAN) == (6, 384, [0.485, 0.456, 0.406])


def test_a_checkpoint_in_output_dir_says_how_it_was_trained(others, tmp_path):
    folder = tmp_path / "out" / "checkpoints"
    state = checkpoint.read(others)
    checkpoint.save(folder / checkpoint.name_of(1), state)
    for words in ((), ("TRAIN.ENABLE", False)):
        assert loaded(tmp_path, *words)[0].MVIT.NUM_HEADS == 2
    assert loaded(tmp_path, "TRAIN.AUTO_RESUME", False)[0].MVIT.NUM_HEADS == 1
    (folder / checkpoint.name_of(1)).write_bytes(b"damaged")
    assert loaded(tmp_path)[0].MVIT.NUM_HEADS == 1, "the run itself says what is wrong"


@pytest.mark.parametrize("how", [START, TEST])
def test_settings_that_differ_are_named(settings, others, tmp_path, said, how):
    cfg = settings(*how, others, "MVIT.NUM_HEADS", 2, "MVIT.RESIDUAL_POOLING", False)
    for_test(cfg, tmp_path) if how == TEST else started(cfg)
    (record,) = [record for record in said.records if "loaded" in record.message]
    assert record.levelname == "WARNING"
    lines = record.getMessage().splitlines()
    assert [line.strip() for line in lines if "the file has" in line] == [
        "DATA.SAMPLING_RATE: the file has 3, this run 6",
        "DATA.MEAN: the file has [0.5, 0.5, 0.5], this run [0.45, 0.45, 0.45]",
        "MVIT.RESIDUAL_POOLING: the file has True, this run False",
    ]


def test_what_a_file_does_not_say_is_said(settings, trained, tmp_path, said):
    torch.save({"model_state": trained[1]}, tmp_path / "bare.pth")
    for_test(settings(*TEST, tmp_path / "bare.pth"), tmp_path)
    assert (
        "the file does not say DATA.NUM_FRAMES, DATA.SAMPLING_RATE, DATA.TARGET_FPS, DATA.MEAN, DATA.STD, MVIT.NUM"
        in (said.text)
    )


def test_values_that_are_no_settings_are_not_taken(trained, tmp_path):
    cfg = "MODEL: {MODEL_NAME: MViT}\nMVIT: {NUM_HEADS: many, DEPTH: 3}\nDATA: {MEAN: 3, NUM_FRAMES: 2}\n"
    torch.save({"model_state": trained[1], "cfg": cfg}, tmp_path / "odd.pth")
    found, said = loaded(tmp_path, *TEST, tmp_path / "odd.pth")
    assert (found.MVIT.DEPTH, found.DATA.NUM_FRAMES, found.MVIT.NUM_HEADS) == (3, 2, 1)
    assert [line for line in said if "MVIT.NUM_HEADS must be int, found 'many' (not used)" in line]


def test_another_dictionary_is_named(settings, others, tmp_path, said):
    for name, words in (("dict.npy", ["cut", "mix"]), ("other.npy", ["mix", "cut"])):
        np.save(tmp_path / name, np.array(words))
    state = State.build(settings("TEXT.DICT", tmp_path / "dict.npy"))
    checkpoint.save(tmp_path / "words.pyth", state.content())
    (tmp_path / "moved").mkdir()
    moved = (tmp_path / "dict.npy").rename(tmp_path / "moved/dict.npy")
    for_test(settings(*TEST, tmp_path / "words.pyth", "TEXT.DICT", moved), tmp_path)
    assert "numbered" not in said.text
    for_test(settings(*TEST, tmp_path / "words.pyth", "TEXT.DICT", tmp_path / "other.npy"), tmp_path)
    assert re.search(
        r"TEXT.DICT: the file's words are numbered by another one \(.*/dict.npy\) than .*/other.npy", said.text
    )


def test_a_file_that_holds_no_run_gives_its_weights(settings, trained, tmp_path):
    """As published files are: the same without TRAIN.CHECKPOINT_EPOCH_RESET, and said before the model is built."""
    file = tmp_path / "theirs.pyth"
    torch.save({"epoch": 199, "model_state": trained[1], "optimizer_state": {}, "cfg": "NUM_GPUS: 8\n"}, file)
    words = ("TRAIN.CHECKPOINT_FILE_PATH", file)
    _, said = loaded(tmp_path, *words)
    assert f"{file} holds no run of this toolkit (" in said[0]
    assert said[0].endswith("its weights are taken, as with TRAIN.CHECKPOINT_EPOCH_RESET True")
    model = started(settings(*words))
    assert all(torch.equal(value, trained[1][name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        ("optimizer_state", {"param_groups": 3}, "its optimizer groups the parameters in another way"),
        ("optimizer_state", {}, "its optimizer groups the parameters in another way"),
        ("objective_state", {"a": torch.ones(1)}, "holds no whole run to resume .RuntimeError"),
        ("best", {"metric": 1}, "holds no whole run to resume .KeyError"),
        ("best", "many", "holds no whole run to resume .ValueError"),
        ("cfg", "- 1", "expected `KEY: value` lines"),
        ("model_state", {"a": torch.zeros(2)}, "expected just this model's"),
    ],
)
def test_a_run_that_is_damaged_inside_is_one_line(settings, trained, tmp_path, entry, value, words):
    checkpoint.save(tmp_path / "run.pyth", checkpoint.read(trained[0]) | {entry: value})
    with pytest.raises(UserError, match=words) as error:
        started(settings("TRAIN.CHECKPOINT_FILE_PATH", tmp_path / "run.pyth"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("clip", [[16, 224], [0, 1, 1], [1.5, 2, 2]])
def test_a_clip_of_a_file_has_three_whole_sizes(settings, trained, tmp_path, clip):
    with pytest.raises(
        UserError,
        match="MODEL.CHECKPOINT_CLIP .*: expected (0 or 3 numbers >= 1|frames, rows and columns, whole numbers)",
    ):
        for_test(settings(*TEST, trained[0], "MODEL.CHECKPOINT_CLIP", clip), tmp_path)


# --- videorl convert ------------------------------------------------------------------------------------------------


def convert(*words) -> None:
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
    convert(theirs, out, *model, "--dry-run")
    assert capsys.readouterr().out == said, "what is there is no obstacle to looking"
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
