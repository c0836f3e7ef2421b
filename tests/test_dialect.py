"""Published names: every key of every table, the files and commands of each toolkit, and what is refused."""

import logging
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml

from videorl import config, dialect, registry
from videorl.cli import train
from videorl.dialect import multitrain, rules
from videorl.engine import build
from videorl.registry import DATASETS, MODELS, UserError
from videorl.settings import Setting

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/golden"))
from recipe import load_case  # noqa: E402

FIXTURES = sorted((ROOT / "tests/dialect").glob("*.yaml"))
MULTITRAIN = {
    *ROOT.glob("configs/*/MVITV2_*.yaml"),
    ROOT / "configs/Multi_dataset/MVITV2_FULL_B_32x3_CONV_k400+mit+ssv2_docker.yaml",
}
DOCKER = ROOT / "configs/Multi_dataset/MVITV2_FULL_B_32x3_CONV_k400+mit+ssv2_docker.yaml"
OURS = ROOT / "configs/Multi_dataset/MVITv2_B_32x3_multitrain.yaml"
HEADS = ROOT / "tests/dialect/multitrain_heads.yaml"
SINGLE = ROOT / "tests/dialect/multitrain_single.yaml"
ON = ("MODEL.USE_MULTI_HEAD", "MODEL.MULTI_ADD_CROSS_PROJ", "MODEL.USE_INF_LOSS")

registry.discover()


def of_kind(kind: type) -> list[str]:
    return [name for name, rule in dialect.RULES.items() if isinstance(rule, kind)]


def setting(name: str, value: object, line: int = 7) -> Setting:
    return Setting(tuple(name.split(".")), value, "x.yaml", line)


def switches(name: str) -> list[Setting]:
    """What must be on for a key to be read."""
    needs = dialect.RULES[name].needs
    on = ON if needs in ON else filter(None, [needs])
    return [setting(switch, True, 1) for switch in on if switch != name]


def lines_of(said, name: str) -> list[str]:
    """What the log says of a key."""
    return [r.message.partition(f" {name} ")[2] for r in said.records if f": {name} " in r.message]


def available(file: Path) -> bool:
    """Whether the data set of a shipped file is registered; its folder bears the name."""
    return file.parent.name.lower() not in {"mmit", "activitynet"} - set(DATASETS)


def refusal(*files, overrides=()) -> str:
    with pytest.raises(UserError) as error:
        config.load(files, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "videorl")
    return caplog


@pytest.fixture
def with_models(monkeypatch):
    """A version in which every published model is there under the name MViT."""
    monkeypatch.setattr(dialect, "MODEL_NAMES", dict.fromkeys(dialect.MODEL_NAMES, "MViT"))


# --- every key of every table ----------------------------------------------------------------------------------------


def test_no_table_takes_a_key_of_ours_away():
    own = {".".join(path) for path in config.global_schema() | config.component_schema()}
    assert not own & set(dialect.RULES) - set(of_kind(rules.Values))
    assert set(of_kind(rules.Values)) <= own


def test_a_key_stands_in_one_table():
    assert sum(len(family.RULES) for family in dialect.FAMILIES) == len(dialect.RULES)


@pytest.mark.parametrize("name", of_kind(rules.Ignored))
def test_ignored(name, said):
    asked = setting(name, "anything")
    assert not [s for s in dialect.translate([*switches(name), asked]) if s.path == asked.path]
    assert lines_of(said, name) == [f"ignored ({dialect.RULES[name].why})"]
    assert said.records[-1].message.startswith("x.yaml:7: ")


@pytest.mark.parametrize("name", of_kind(rules.Unsupported))
def test_unsupported(name, said):
    rule = dialect.RULES[name]
    for value in rule.off:
        for written in (value, str(value)):
            assert setting(name, written) not in dialect.translate([*switches(name), setting(name, written)])
    assert set(lines_of(said, name)) <= {"ignored (always so here)"}
    said.clear()
    asked = [*switches(name), setting(name, "something")]
    if rule.refused:
        with pytest.raises(UserError, match=re.escape(f"x.yaml:7: {name} 'something' is not supported: {rule.means}")):
            dialect.translate(asked)
    else:
        assert not [s for s in dialect.translate(asked) if s.path == asked[-1].path]
    assert lines_of(said, name) == [f"unsupported ({rule.means})"]


# A value for keys that are no switches.
VALUES = {
    "AUG.MASK_RATIO": 0.5,
    "MASK.DECODER_EMBED_DIM": 128,
    "MASK.DECODER_DEPTH": 2,
    "dataset.tfeat_dir": "text/a.",
    "dataset.json_path": "a.json",
    "fairseq.common.log_interval": 7,
    "fairseq.dataset.num_workers": 3,
    "fairseq.optimization.clip_norm": 2.0,
    "fairseq.optimization.optimizer": "adam",
    "fairseq.optimization.adam_betas": [0.8, 0.9],
    "fairseq.optimization.total_num_update": 9,
    "fairseq.optimization.warmup_updates": 4,
    "fairseq.optimization.weight_decay": 0.5,
    "fairseq.optimization.max_epoch": 6,
    "fairseq.checkpoint.restore_file": "a.pt",
    "fairseq.checkpoint.save_dir": "runs/a",
    "fairseq.checkpoint.save_interval_updates": 5,
    "fairseq.checkpoint.keep_last_epochs": 8,
    "fairseq.common_eval.path": "b.pt",
    "model.num_hidden_video_layers": 2,
}


@pytest.mark.parametrize("name", of_kind(rules.Renamed))
def test_renamed(name, said):
    to = dialect.RULES[name].to
    value = VALUES.get(name, True)
    on = [word for s in switches(name) for word in (".".join(s.path), "True")] if "MASK" in name else []
    cfg = config.load(overrides=[*on, name, str(value)])
    assert [config.flat(cfg)[path] for path in to] == [value] * len(to)
    assert lines_of(said, name) == [f"mapped to {', '.join(to)}"]
    if on:
        assert not [s for s in dialect.translate([setting(name, value)]) if ".".join(s.path) in to]


@pytest.mark.parametrize("name", of_kind(rules.Values))
def test_values(name, said):
    for published, ours in dialect.RULES[name].ours.items():
        for written in (published, str(published)):
            said.clear()
            switch = [setting(multitrain.HEADS, True, 1)] if ours == "all" else []
            found = dialect.translate([*switch, setting(name, written)])
            assert [s.value for s in found if s.path == setting(name, 0).path] == [ours]
            assert lines_of(said, name) == [f"{published} mapped to {ours}"]
            assert dialect.translate([setting(name, ours)]) == [setting(name, ours)]
            assert len(lines_of(said, name)) == 1


# Key, value -> what the tree then holds, in a run with heads for two data sets.
COMBINED = {
    "MASK.ENABLE": ("True", {"MASK.KIND": "random", "MASK.TARGET": "frame"}),
    "MODEL.USE_MULTI_HEAD": ("True", {"LOSSES.heads.NAME": "multi_head", "DATASETS.mit.NAME": "mit"}),
    "MODEL.MULTI_DATASETS": ("['ssv2', 'mit']", {"DATASETS.ssv2.NUM_CLASSES": 8, "DATASETS.mit.NUM_CLASSES": 5}),
    "MODEL.MULTI_NUM_CLASSES": ("(3, 4)", {"DATASETS.kinetics.NUM_CLASSES": 3, "DATASETS.mit.NUM_CLASSES": 4}),
    "MODEL.MULTI_REPLICAS": ("[3, 1]", {"DATASETS.kinetics.REPLICAS": 3, "DATASETS.mit.REPLICAS": 1}),
    "MODEL.MULTI_LOSS_FUNCS": ("['soft_cross_entropy', 'bce_logit']", {"DATASETS.mit.MULTI_LABEL": True}),
    "MODEL.MULTI_HEAD_ACT": ("['softmax', 'sigmoid']", {"DATASETS.kinetics.MULTI_LABEL": False}),
    "MODEL.MULTI_PATH_TO_DATA_DIR": ("['/x', '/y']", {"DATASETS.mit.ANNOTATIONS": "/y"}),
    "MODEL.MULTI_PATH_PREFIX": ("['/x', '/y']", {"DATASETS.mit.ROOT": "/y"}),
    "MODEL.MULTI_LOSS_WEIGHTS": ("[2, 0.5]", {"LOSSES.heads.WEIGHTS": [2.0, 0.5]}),
    "MODEL.MULTI_USE_MTL_WEIGHT": ("False", {"LOSSES.heads.LEARN_WEIGHTS": False}),
    "MODEL.MULTI_USE_MLP": ("False", {"MULTI.HEAD_HIDDEN": 0}),
    "DATA.MODEL_DIFF_DATA": ("True", {"EVALS.test.HEAD": "kinetics"}),
    "DATA.NUM_CLASSES": ("5", {"DATASETS.mit.NUM_CLASSES": 5}),
    "MODEL.MULTI_ADD_CROSS_PROJ": ("False", {"MULTI.PROJECTION": False}),
    "MODEL.MULTI_CROSS_PROJ_ADD_TO_PRED": ("True", {"LOSSES.heads.ADD_TO_PRED": True}),
    "MODEL.MULTI_PROJ_LOSS_WEIGHT": ("0.3", {"LOSSES.heads.PROJECTION_WEIGHT": 0.3}),
    "MODEL.MULTI_PROJ_SPARSITY_LOSS_TYPE": ("L1", {"LOSSES.sparsity.NAME": "sparsity"}),
    "MODEL.MULTI_PROJ_SPARSITY_WEIGHT": ("1e-5", {"LOSSES.sparsity.WEIGHT": 1e-5}),
    "MODEL.USE_INF_LOSS": ("True", {"LOSSES.informative.NAME": "informative"}),
    "MODEL.INF_LOSS_WEIGHT": ("2", {"LOSSES.informative.WEIGHT": 2.0}),
    "MODEL.INF_STD_WEIGHT": ("3", {"LOSSES.informative.STD_WEIGHT": 3.0}),
    "MODEL.INF_COVAR_WEIGHT": ("4", {"LOSSES.informative.COVARIANCE_WEIGHT": 4.0}),
    "MODEL.USE_INF_LEARN_WEIGHT": ("False", {"LOSSES.informative.LEARN_WEIGHT": False}),
    "MODEL.USE_INF_EXPANDER": ("False", {"MULTI.EXPANDER": 0}),
    "MVIT.Q_POOL_ALL": ("True", {"MVIT.POOL_Q_STRIDE": [[0, 1, 1, 1], [1, 1, 2, 2], [2, 1, 1, 1], [3, 1, 2, 2]]}),
    "TEST.NUM_TEMPORAL_CLIPS": ("[2, 6]", {"TEST.NUM_ENSEMBLE_VIEWS": 2, "EVALS.test_6_clips.CLIPS": 6}),
    "VIDEOMAE.SIZE": ("L", {"VIDEOMAE.EMBED_DIM": 1024, "VIDEOMAE.DECODER_DIM": 512, "MODEL.PATCH_SIZE": [2, 16, 16]}),
    "VIT.SIZE": ("g", {"VIT.DEPTH": 40, "VIT.MLP_RATIO": 48 / 11, "MODEL.PATCH_SIZE": [2, 14, 14]}),
    # MMPT's: what pre-training's data set has where no other is named
    "dataset.split": ("test", {"TRAIN.ENABLE": False, "EVALS.features.NAME": "retrieval"}),
    "dataset.meta_processor": ("MSRVTTMetaProcessor", {"TRAIN.DATASET": "msrvtt_features"}),
    "dataset.aligner": ("StartClipAligner", {"FEATURES.SAMPLER": "start"}),
    "dataset.bert_name": ("a", {"TEXT.TOKENIZER": "hub:a"}),
    "dataset.vfeat_dir": ("x", {"FEATURES.ROOT": "x"}),
    "dataset.train_path": ("x.lst", {"FEATURES.ROOT": ""}),
    "dataset.test_path": ("x.lst", {"FEATURES.ROOT": ""}),
    "dataset.trainval_annotation": ("x.json", {"FEATURES.ROOT": ""}),
    "dataset.anno_path": ("x.json", {"HTM_ALIGN.ANNOTATIONS": "x.json", "EVALS.htm_align.NAME": "alignment"}),
    "dataset.max_video_len": ("9", {"FEATURES.SECONDS": 9}),
    "dataset.max_len": ("9", {"TEXT.MAX_WORDS": 20}),
    "dataset.sampled_min_len": ("9", {"FEATURES.TOKENS": [8, 32]}),
    "dataset.sampled_max_len": ("9", {"FEATURES.TOKENS": [8, 32]}),
    "dataset.sampled_video_min_len": ("9", {"FEATURES.OVERLAP_SECONDS": [3, 16]}),
    "dataset.sampled_video_max_len": ("9", {"FEATURES.OVERLAP_SECONDS": [3, 16]}),
    "dataset.num_video_per_batch": ("9", {"TRAIN.BATCH_SIZE": 9}),
    "dataset.clip_per_video": ("9", {"FEATURES.CLIPS": 9}),
    "dataset.sliding_window": ("9", {"COIN.STRIDE": 16}),
    "dataset.sliding_window_size": ("9", {"COIN.WINDOW": 32}),
    "fairseq.dataset.batch_size": ("9", {"TRAIN.BATCH_SIZE": 9}),
    "fairseq.optimization.lr": ("[3e-4]", {"SOLVER.BASE_LR": 3e-4}),
    "fairseq.optimization.lr_scheduler": ("polynomial_decay", {"SOLVER.LR_POLICY": "linear"}),
    "model.model_cls": (
        "MMFusionSeparateActionSegmentation",
        {"MODEL.MODEL_NAME": "VideoCLIPFrames", "VIDEOCLIP.ATTEND_CLS": False},
    ),
    "model.layernorm_only": ("True", {"VIDEOCLIP.TRAIN": "layer_norms"}),
    "loss.loss_cls": ("V2TContraLoss", {"LOSSES.norton.NAME": "infonce", "LOSSES.norton.DIRECTION": "v2t"}),
    "loss.beta": ("0.2", {"LOSSES.norton.SOFT_TARGETS": 0.2, "LOSSES.norton.SEQUENCE_WEIGHT": 0.0}),
    "loss.sinkhorn_iterations": ("7", {"LOSSES.norton.ITERATIONS": 7}),
    "loss.alpha_lse": ("2", {"LOSSES.norton.ALPHA": 2.0}),
    "loss.fusion_weight": ("0.1", {"LOSSES.norton.COARSE_WEIGHT": 0.1}),
    "loss.sequence_contrast": ("null", {}),  # of which loss: tests/test_mmpt.py
    "loss.sequence_contrast.sequence_contrast_weight": ("0.2", {"LOSSES.norton.SEQUENCE_WEIGHT": 0.2}),
    "loss.sequence_contrast.threshold": ("4", {"LOSSES.norton.SEQUENCE_LENGTH": 4}),
    "loss.sequence_contrast.prompt_ratio": ("None", {"LOSSES.norton.BUCKET": 0.0}),
    "loss.sequence_contrast.scale": ("0.2", {"LOSSES.norton.ENTROPY": 0.2}),
    "task": ("VideoRetriTask", {"BATCHES.NAME": "retrieval"}),
    "retri_epoch": ("2", {"BATCHES.FIRST_EPOCH": 2}),
    "num_cands": ("99", {"BATCHES.NEIGHBOURS": 99}),
    "centroids": ("9", {"BATCHES.CELLS": 9}),
    "metric": ("QAMetric", {}),
    "GLOBAL_BATCH_SIZE": ("128", {"TRAIN.GRAD_ACCU_NUM_BATCH": 4}),
    "TIMESFORMER.PRETRAINED_MODEL": (
        "k.pyth",
        {"TRAIN.CHECKPOINT_FILE_PATH": "k.pyth", "TRAIN.CHECKPOINT_EPOCH_RESET": True},
    ),
}


@pytest.mark.parametrize("name", of_kind(rules.Combined))
def test_combined(name, said):
    value, expected = COMBINED[name]
    alone = ["TRAIN.DATASET", "kinetics", "MODEL.NUM_CLASSES", "8"] if name == "DATA.MODEL_DIFF_DATA" else []
    found = config.flat(config.load([HEADS], [*alone, name, value]))
    assert {key: found[key] for key in expected} == expected
    assert lines_of(said, name) == [f"mapped to {dialect.RULES[name].into}"]


@pytest.mark.parametrize("name", [n for n, rule in dialect.RULES.items() if rule.needs])
def test_not_read_without_its_switch(name, said):
    needs = dialect.RULES[name].needs
    assert not [s for s in dialect.translate([setting(name, "[]")]) if s.path == setting(name, 0).path]
    assert lines_of(said, name) == [f"ignored ({needs} is off)"]


@pytest.mark.parametrize("name", [name for name, ours in dialect.MODEL_NAMES.items() if ours is None])
def test_models_that_are_not_here(name, said):
    asked = [setting("MODEL.MODEL_NAME", name), setting("MASK.ENABLE", True), setting("AUG.MASK_RATIO", 0.9)]
    with pytest.raises(UserError) as error:
        dialect.translate(asked)
    known = ", ".join(sorted(MODELS))
    assert str(error.value) == f"x.yaml:7: MODEL.MODEL_NAME: {name} is not available in this version (known: {known})"
    assert len(lines_of(said, "MASK.ENABLE") + lines_of(said, "AUG.MASK_RATIO")) == 2, "all keys are told before"


@pytest.mark.parametrize("name", dialect.MODEL_NAMES)
def test_a_model_becomes_available_by_one_line(name, with_models, said):
    assert config.load(overrides=["MODEL.MODEL_NAME", name]).MODEL.MODEL_NAME == "MViT"
    assert lines_of(said, "MODEL.MODEL_NAME") == [f"{name} mapped to MViT"]


def test_the_keys_of_a_registered_model_are_its_own(monkeypatch, said):
    class Other:
        """Keys:
        norm_stem: how
        """

        def __init__(self, spec, *, norm_stem: str = "a"): ...

    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    MODELS.register("Other", node="MVIT")(Other)
    cfg = config.load(overrides=["MVIT.NORM_STEM", "b", "MVIT.PATCH_2D", "False"])
    assert cfg.MVIT.NORM_STEM == "b"
    assert not lines_of(said, "MVIT.NORM_STEM")
    assert len(lines_of(said, "MVIT.PATCH_2D")) == 1


# --- published files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FIXTURES, ids=lambda file: file.stem)
def test_files_of_every_family_load(file, with_models, monkeypatch, said, tmp_path):
    """Every published key is told in one line; the tree reads back equal, without a word."""
    for name, rule in dialect.RULES.items():
        if isinstance(rule, rules.Unsupported) and rule.refused:
            unsupported = rules.Unsupported(rule.means, rule.off, needs=rule.needs)
            monkeypatch.setitem(dialect.RULES, name, unsupported)
    cfg = config.load([file])
    published = {".".join(s.path) for s in config.read_file(file)} & set(dialect.RULES) - set(of_kind(rules.Values))
    assert published
    assert {name: len(lines_of(said, name)) for name in published} == dict.fromkeys(published, 1)
    _reads_back_silently(cfg, said, tmp_path)


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_shipped_files_read_back_without_a_word(file, said, tmp_path):
    if not available(file):
        assert "DATASET: unknown dataset" in refusal(file)
        return
    cfg = config.load([file])
    assert cfg.OUTPUT_DIR not in (".", "./")
    _reads_back_silently(cfg, said, tmp_path)


def _reads_back_silently(cfg, said, folder: Path) -> None:
    dumped = folder / "dumped.yaml"
    dumped.write_text(config.dump(cfg))
    said.clear()
    assert config.load([dumped]) == cfg
    assert not said.records


def test_files_of_models_that_are_not_here_fail_in_one_line():
    assert "of the masked pre-trainings only that of MAE is here" in refusal(ROOT / "tests/dialect/maskfeat_pt.yaml")


SSV2 = {
    "MODEL": {"NUM_CLASSES": 174},
    "DATA": {
        "INV_UNIFORM_SAMPLE": True,
        "RANDOM_FLIP": False,
        "REVERSE_INPUT_CHANNEL": True,
        "PATH_PREFIX": "/path/to/ssv2/frames/",
    },
    "TRAIN": {"DATASET": "ssv2"},
    "TEST": {"DATASET": "ssv2"},
}
# TimeSformer's ten files: attention, frames, pixels, then what differs elsewhere from the first.
TIMESFORMER = {
    "Kinetics/TimeSformer_divST_8x32_224": ("divided_space_time", 8, 224, {}),
    "Kinetics/TimeSformer_divST_8x32_224_4gpus": ("divided_space_time", 8, 224, {"NUM_GPUS": 4}),
    "Kinetics/TimeSformer_divST_8x32_224_TEST": ("divided_space_time", 8, 224, {"TRAIN": {"ENABLE": False}}),
    "Kinetics/TimeSformer_divST_96x4_224": ("divided_space_time", 96, 224, {"DATA": {"SAMPLING_RATE": 4}}),
    "Kinetics/TimeSformer_divST_16x16_448": ("divided_space_time", 16, 448, {"DATA": {"SAMPLING_RATE": 16}}),
    "Kinetics/TimeSformer_jointST_8x32_224": ("joint_space_time", 8, 224, {}),
    "Kinetics/TimeSformer_spaceOnly_8x32_224": ("space_only", 8, 224, {}),
    **{
        f"SSv2/TimeSformer_divST_{name}": ("divided_space_time", frames, size, SSV2)
        for name, frames, size in (("8_224", 8, 224), ("16_448", 16, 448), ("64_224", 64, 224))
    },
}  # fmt: skip


def timesformer_settings(attention: str, frames: int, size: int, other: dict) -> dict:
    first = {
        "TRAIN": {"ENABLE": True, "DATASET": "kinetics", "BATCH_SIZE": 8, "EVAL_PERIOD": 5, "AUTO_RESUME": True},
        "DATA": {"PATH_TO_DATA_DIR": "/path/to/kinetics/", "NUM_FRAMES": frames, "SAMPLING_RATE": 32,
                 "TRAIN_JITTER_SCALES": [448, 512] if size == 448 else [256, 320], "TRAIN_CROP_SIZE": size,
                 "TEST_CROP_SIZE": size, "INPUT_CHANNEL_NUM": [3]},
        "TIMESFORMER": {"ATTENTION_TYPE": attention},
        "SOLVER": {"BASE_LR": 0.005, "LR_POLICY": "steps_with_relative_lrs", "STEPS": [0, 11, 14],
                   "LRS": [1, 0.1, 0.01], "MAX_EPOCH": 15, "WEIGHT_DECAY": "1e-4", "OPTIMIZING_METHOD": "sgd"},
        "MODEL": {"MODEL_NAME": "vit_base_patch16_224", "NUM_CLASSES": 400, "ARCH": "vit",
                  "LOSS_FUNC": "cross_entropy", "DROPOUT_RATE": 0.5},
        "TEST": {"DATASET": "kinetics", "BATCH_SIZE": 8, "NUM_ENSEMBLE_VIEWS": 1, "NUM_SPATIAL_CROPS": 3},
        "NUM_GPUS": 8, "NUM_SHARDS": 1, "RNG_SEED": 0, "OUTPUT_DIR": ".",
    }  # fmt: skip
    for node, value in other.items():
        first[node] = {**first[node], **value} if isinstance(value, dict) else value
    return first


@pytest.mark.parametrize("name", TIMESFORMER)
def test_files_of_timesformer_build_the_published_model(name, tmp_path):
    attention, frames, size, other = TIMESFORMER[name]
    file = tmp_path / f"{Path(name).stem}.yaml"
    file.write_text(yaml.safe_dump(timesformer_settings(attention, frames, size, other)))
    cfg = config.load([file])
    entry, values = config.component(cfg, MODELS, cfg.MODEL.MODEL_NAME)
    with torch.device("meta"):
        model = entry(config.spec(cfg), values=values)
    time = {"divided_space_time": 35_453_952, "joint_space_time": 0, "space_only": -8 * 768}[attention]
    places = (size // 16) ** 2 - 14**2 + (frames - 8 if attention != "space_only" else 0)
    classes = cfg.MODEL.NUM_CLASSES - 400
    found = sum(p.numel() for p in model.parameters())
    # The published count of divided attention, 8 frames of 224 pixels and 400 classes, and what differs from it.
    assert found == 121_566_352 - 35_453_952 + time + 768 * places + 769 * classes
    assert [block.drop_path.rate for block in model.blocks][-1] == 0.1
    assert cfg.MODEL.DROPOUT_RATE == 0, "its classifier has no dropout, whatever the file says"
    assert cfg.TRAIN.GRAD_ACCU_NUM_BATCH == 8


def test_what_timesformer_does_beside_its_keys_gives_way():
    file = ROOT / "tests/dialect/timesformer.yaml"
    words = [
        "MODEL.DROPOUT_RATE",
        "0.3",
        "TIMESFORMER.DROPPATH_RATE",
        "0.2",
        "TIMESFORMER.PRETRAINED_MODEL",
        "k400.pyth",
    ]
    cfg = config.load([file], words)
    assert (cfg.MODEL.DROPOUT_RATE, cfg.TIMESFORMER.DROPPATH_RATE) == (0.3, 0.2)
    assert (cfg.TRAIN.CHECKPOINT_FILE_PATH, cfg.TRAIN.CHECKPOINT_EPOCH_RESET) == ("k400.pyth", True)


@pytest.mark.parametrize("name", ["SlowFast", ""])
def test_slowfast_beside_timesformer_is_refused_in_one_line(name, tmp_path):
    """Three of its four files name the model, the one for SSv2 leaves that to a default."""
    other = {"MODEL": {"ARCH": "slowfast", "MODEL_NAME": name}, "DATA": {"INPUT_CHANNEL_NUM": [3, 3]}}
    settings = timesformer_settings("divided_space_time", 32, 224, other)
    settings |= {"SLOWFAST": {"ALPHA": 8, "BETA_INV": 8}, "RESNET": {"DEPTH": 50}, "BN": {"USE_PRECISE_STATS": True}}
    settings["MODEL"] = {key: value for key, value in settings["MODEL"].items() if value}
    file = tmp_path / "slowfast.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in settings.items() if key != "TIMESFORMER"}))
    assert "SlowFast" in (said := refusal(file))
    assert "not available in this version" in said


@pytest.mark.parametrize("name", ["mae_pretrain", "vit_finetune"])
def test_all_settings_of_published_masked_runs_build_the_published_model(name, tmp_path):
    """Every key of the nodes that shape the model, as PySlowFast itself dumps them."""
    case = load_case(ROOT / f"tests/golden/vit_mae/{name}.pt")
    file = tmp_path / "published.yaml"
    file.write_text(yaml.safe_dump({**case["config"]["settings"], "TRAIN": {"DATASET": "kinetics"}}))
    model = build.model(config.load([file], ["NUM_GPUS", "0"]))
    assert {n: p.shape for n, p in model.named_parameters()} == {n: v.shape for n, v in case["state_dict"].items()}


def test_masked_autoencoder_of_pyslowfast():
    file = ROOT / "tests/dialect/masked_ssl_vit_mae_pt.yaml"
    cfg = config.load([file], ["MVIT.PATCH_KERNEL", "(4, 16, 16)"])
    assert dict(cfg.MASK) == {
        "RATIO": 0.9, "KIND": "random", "ROUNDING": "keep", "DECODER": "all", "TARGET": "frame", "NORMALISE": True
    }  # fmt: skip
    assert (cfg.MODEL.MODEL_NAME, cfg.MODEL.PATCH_SIZE) == ("MaskMViT", [4, 16, 16])
    assert (cfg.MVIT.DECODER_DEPTH, cfg.MVIT.DECODER_EMBED_DIM) == (4, 512)
    assert cfg.LOSSES.masked_pixels.NAME == "masked_pixels"
    assert cfg.EVALS.val.NAME == "reconstruction"
    assert cfg.TRAIN.BEST_METRIC == "val/explained"
    assert (config.spec(cfg).augment.clips, config.spec(cfg).augment.copies) == (4, 4)


TRAPS = {
    "masked_ssl_vit_mae_pt": {"SOLVER.BETAS": [0.9, 0.95], "MVIT.DROPPATH_RATE": 0.0, "SOLVER.BASE_LR": 1e-4},
    "masked_ssl_vit_ft": {
        "SOLVER.LAYER_DECAY": 0.65,
        "SOLVER.WARMUP_EPOCHS": 5.0,
        "SOLVER.CLIP_GRAD_VAL": 0.0,
        "SOLVER.WARMUP_START_LR": 1e-8,
        "MVIT.PATCH_KERNEL": [2, 16, 16],
        "AUG.COLOR_JITTER": 0.0,
    },
    "maskfeat_ft": {"MVIT.PATCH_PADDING": [1, 3, 3], "MODEL.DROPOUT_RATE": 0.0, "TEST.NUM_ENSEMBLE_VIEWS": 10},
    "pyslowfast_mvitv2_ssv2": {
        "MVIT.PATCH_KERNEL": [3, 7, 7],
        "DATA.MEAN": [0.45, 0.45, 0.45],
        "SOLVER.WEIGHT_DECAY": 1e-4,
        "TEST.BATCH_SIZE": 64,
    },
    "multitrain_heads": {"TRAIN.BATCH_SIZE": 32, "LOSSES.sparsity.WEIGHT": 1e-3, "LOSSES.heads.WEIGHTS": [1.0, 10.0]},
    "multitrain_single": {"SOLVER.BASE_LR": 4e-4, "TRAIN.EVAL_PERIOD": 5, "MVIT.DROPOUT_RATE": 0.0},
    "timesformer": {"SOLVER.LRS": [1.0, 0.1, 0.01], "TRAIN.BATCH_SIZE": 8, "DATA.TRAIN_JITTER_SCALES": [256, 320]},
}


@pytest.mark.parametrize("stem", TRAPS)
def test_yaml_traps(stem, with_models):
    """Whole numbers and 1e-4 for floats, tuples, None, keys given twice."""
    found = config.flat(config.load([ROOT / f"tests/dialect/{stem}.yaml"]))
    for key, value in TRAPS[stem].items():
        assert found[key] == value
        assert type(found[key]) is type(value)


@pytest.mark.parametrize("file", sorted(MULTITRAIN), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_multitrain_files(file):
    if not available(file):
        assert "DATASET: unknown dataset" in refusal(file)
        return
    cfg = config.load([file])
    full = "FULL" in file.name or file.parent.name == "Kinetics"
    assert cfg.TRAIN.BATCH_SIZE_SCOPE == "global"
    assert (cfg.MVIT.DIM_MUL_IN_ATT, cfg.MVIT.SKIP_PROJ_RAW, cfg.MVIT.POOL_NORM_EPS) == (True, True, 1e-5)
    assert cfg.MVIT.RESIDUAL_POOLING is full
    rows = range(cfg.MVIT.DEPTH) if full else [1, 3, 14]
    assert [row[0] for row in cfg.MVIT.POOL_Q_STRIDE] == list(rows)
    assert not cfg.MVIT.REL_POS_SPATIAL
    assert not cfg.MVIT.REL_POS_TEMPORAL


def test_a_set_scope_and_epsilon_stay():
    cfg = config.load([SINGLE], ["TRAIN.BATCH_SIZE_SCOPE", "machine", "MVIT.POOL_NORM_EPS", "1e-6"])
    assert (cfg.TRAIN.BATCH_SIZE_SCOPE, cfg.MVIT.POOL_NORM_EPS) == ("machine", 1e-6)
    assert config.load([FIXTURES[0].with_stem("maskfeat_ft")]).TRAIN.BATCH_SIZE_SCOPE == "machine"
    only_accumulation = config.load(overrides=["TRAIN.GRAD_ACCU_NUM_BATCH", "8", "TEST.ENABLE_SAVE", "False"])
    assert only_accumulation.TRAIN.BATCH_SIZE_SCOPE == "machine"


def test_heads_in_full():
    cfg = config.load([HEADS])
    kinetics = {"NAME": "kinetics", "NUM_CLASSES": 8, "REPLICAS": 1, "TEST_CLIPS": 0, "TEST_CROPS": 0}
    mit = kinetics | {"NAME": "mit", "NUM_CLASSES": 5, "REPLICAS": 2}
    assert dict(cfg.DATASETS.kinetics) == kinetics | {"MULTI_LABEL": False, "ANNOTATIONS": "/a/k400", "ROOT": "/v/k400"}
    assert dict(cfg.DATASETS.mit) == mit | {"MULTI_LABEL": True, "ANNOTATIONS": "/a/mit", "ROOT": "/v/mit"}
    assert list(cfg.DATASETS) == ["kinetics", "mit"], "their order is that of the heads"
    assert dict(cfg.MULTI) == {"HEAD_HIDDEN": 2048, "PROJECTION": True, "EXPANDER": 4096, "PAPER_QUIRKS": False}
    assert {name: dict(node) for name, node in cfg.LOSSES.items()} == {
        "heads": {
            "NAME": "multi_head",
            "WEIGHT": 1.0,
            "WEIGHTS": [1.0, 10.0],
            "PROJECTION_WEIGHT": 1.0,
            "ADD_TO_PRED": False,
            "LEARN_WEIGHTS": True,
        },
        "sparsity": {"NAME": "sparsity", "WEIGHT": 1e-3},
        "informative": {
            "NAME": "informative",
            "WEIGHT": 0.1,
            "STD_WEIGHT": 25.0,
            "COVARIANCE_WEIGHT": 1.0,
            "LEARN_WEIGHT": True,
        },
    }
    assert (cfg.TRAIN.DATASET, cfg.EVALS.val.DATASET, cfg.EVALS.test.DATASET) == ("all", "all", "mit")
    assert (cfg.DATA.MULTI_LABEL, cfg.DATA.VAL_SKIP) == (False, 5)


def test_our_form_says_the_same():
    published, ours = config.load([DOCKER]), config.load([OURS])
    own = {"DATASETS", "LOSSES", "EVALS", "TEST", "OUTPUT_DIR"}
    theirs, mine = config.flat(published), config.flat(ours)
    different = {k for k in theirs.keys() | mine.keys() if theirs.get(k) != mine.get(k) and k.split(".")[0] not in own}
    assert different == {"TRAIN.AUTO_RESUME", "DATA.DECODING_BACKEND"}
    for name, node in published.DATASETS.items():
        same = {k: v for k, v in ours.DATASETS[name].items() if not k.startswith("TEST_")}
        assert same | {"MULTI_LABEL": False} == {k: v for k, v in node.items() if not k.startswith("TEST_")}
    assert {n: (d.TEST_CLIPS, d.TEST_CROPS) for n, d in ours.DATASETS.items()} == {
        "kinetics": (5, 1),
        "mit": (2, 3),
        "ssv2": (1, 3),
    }
    assert {**ours.LOSSES.heads, "WEIGHTS": [1.0] * 3} == dict(published.LOSSES.heads), "no WEIGHTS: all 1"
    assert ours.LOSSES.informative == published.LOSSES.informative


# --- published commands ----------------------------------------------------------------------------------------------

TEST_WORDS = """--cfg {cfg}_docker.yaml DATA.MULTI_LABEL False TRAIN.ENABLE False TRAIN.BATCH_SIZE 1 NUM_GPUS 2
    TEST.BATCH_SIZE 32 TEST.ENABLE True DATA_LOADER.NUM_WORKERS 8 LOG_PERIOD 100 DATA.DECODING_BACKEND decord
    LOG_MODEL_INFO False TEST.CHECKPOINT_FILE_PATH X.pyth USE_TQDM True DATA.PATH_TO_DATA_DIR D/pyslowfast_annotations/
    DATA.PATH_PREFIX D/videos_320p TEST.NUM_SPATIAL_CROPS {crops} TEST.NUM_ENSEMBLE_VIEWS {clips} TEST.DATASET {name}
    MODEL.NUM_CLASSES {classes} DATA.NUM_CLASSES {classes} TEST.ENABLE_SAVE False DATA.MODEL_DIFF_DATA False
    TRAIN.DATASET {name} MODEL.MULTI_ADD_CROSS_PROJ False MODEL.USE_INF_LOSS False"""
TRAIN_WORDS = """--cfg {cfg}_cluster_example.yaml TRAIN.ENABLE True TRAIN.BATCH_SIZE 64 TRAIN.GRAD_ACCU_NUM_BATCH 8
    NUM_GPUS 8 LOG_PERIOD 500 TRAIN.MIXED_PRECISION True DATA.DECODING_BACKEND decord MODEL.ACT_CHECKPOINT False
    LOG_MODEL_INFO False TRAIN.CHECKPOINT_FILE_PATH P TRAIN.AUTO_RESUME True TRAIN.CHECKPOINT_EPOCH_RESET True
    TENSORBOARD.ENABLE True TENSORBOARD.LOG_DIR tb_log USE_TQDM True --init_method "tcp://10.0.1.6:23456"
    --num_shards 2 --shard_id 0"""


def command(words: str, **values):
    cfg = str(DOCKER).removesuffix("_docker.yaml")
    args = train.parse(shlex.split(words.format(cfg=cfg, **values)))
    return args, config.load(args.cfg, args.overrides, NUM_SHARDS=args.num_shards, SHARD_ID=args.shard_id)


@pytest.mark.parametrize(
    ("name", "classes", "clips", "crops"), [("kinetics", 400, 5, 1), ("mit", 305, 2, 3), ("ssv2", 174, 1, 3)]
)
def test_published_test_command(name, classes, clips, crops):
    _, cfg = command(TEST_WORDS, name=name, classes=classes, clips=clips, crops=crops)
    test = cfg.EVALS.test
    assert {"DATASET": name, "CLIPS": 0, "CROPS": 0, "HEAD": ""}.items() <= dict(test).items()
    assert (clips, crops) == (cfg.TEST.NUM_ENSEMBLE_VIEWS, cfg.TEST.NUM_SPATIAL_CROPS)
    values = config.component(cfg, DATASETS, name)[1]
    assert values["ANNOTATIONS"] == "D/pyslowfast_annotations/"
    assert values["ROOT"] == "D/videos_320p"
    assert (values["NUM_CLASSES"], values["MULTI_LABEL"]) == (classes, False)
    assert {n: d.NUM_CLASSES for n, d in cfg.DATASETS.items()} == {"kinetics": 400, "mit": 305, "ssv2": 174}
    assert all("ANNOTATIONS" in d for n, d in cfg.DATASETS.items() if n != name), "the others keep theirs"
    assert dict(cfg.MULTI) == {"HEAD_HIDDEN": 2048, "PROJECTION": False, "EXPANDER": 0, "PAPER_QUIRKS": False}
    assert list(cfg.LOSSES) == ["heads"]
    assert (cfg.TRAIN.ENABLE, cfg.TEST.ENABLE) == (False, True)


def test_published_training_command():
    args, cfg = command(TRAIN_WORDS)
    assert args.init_method == "tcp://10.0.1.6:23456"
    assert (cfg.NUM_SHARDS, cfg.SHARD_ID, cfg.NUM_GPUS) == (2, 0, 8)
    train = cfg.TRAIN
    assert (train.DATASET, train.BATCH_SIZE, train.BATCH_SIZE_SCOPE) == ("all", 64, "global")
    assert (train.GRAD_ACCU_NUM_BATCH, train.MIXED_PRECISION) == (8, True)
    assert (train.AUTO_RESUME, train.CHECKPOINT_EPOCH_RESET, train.CHECKPOINT_FILE_PATH) == (True, True, "P")
    assert list(cfg.LOSSES) == ["heads", "informative"]
    assert dict(cfg.MULTI) == {"HEAD_HIDDEN": 2048, "PROJECTION": True, "EXPANDER": 4096, "PAPER_QUIRKS": False}
    assert cfg.DATASETS.ssv2.ROOT == "/shared/ssv2/videos"
    assert (cfg.TENSORBOARD.ENABLE, cfg.TENSORBOARD.LOG_DIR) == (True, "tb_log")


def test_a_head_of_one_data_set_on_the_videos_of_another():
    words = ["TRAIN.DATASET", "kinetics", "TEST.DATASET", "mit", "DATA.MODEL_DIFF_DATA", "True"]
    cfg = config.load([HEADS], [*words, "MODEL.NUM_CLASSES", "8", "DATA.NUM_CLASSES", "5"])
    assert (cfg.EVALS.test.DATASET, cfg.EVALS.test.HEAD) == ("mit", "kinetics")


# --- what stands where -----------------------------------------------------------------------------------------------


def test_the_last_one_counts():
    off = config.load([HEADS], ["MODEL.MULTI_ADD_CROSS_PROJ", "False", "MVIT.Q_POOL_ALL", "false"])
    assert not off.MULTI.PROJECTION
    assert len(off.MVIT.POOL_Q_STRIDE) == 2
    assert "sparsity" not in off.LOSSES
    back = ["MVIT.CHANNEL_EXPAND_FRONT", "False", "MVIT.CHANNEL_EXPAND_FRONT", "True"]
    assert config.load([HEADS], back).MVIT.SKIP_PROJ_RAW
    assert config.load([HEADS], ["MVIT.SKIP_PROJ_RAW", "False"]).MVIT.DIM_MUL_IN_ATT
    assert not config.load([HEADS], ["MVIT.SKIP_PROJ_RAW", "False"]).MVIT.SKIP_PROJ_RAW


def test_keys_of_ours_go_on_top_of_published_ones():
    words = ["DATASETS.mit.TEST_CLIPS", "2", "DATASETS.mit.NUM_CLASSES", "6", "LOSSES.heads.PROJECTION_WEIGHT", "0.5"]
    cfg = config.load([HEADS], [*words, "MODEL.MULTI_DATASETS", "['kinetics', 'mit']", "MULTI.EXPANDER", "16"])
    assert (cfg.DATASETS.mit.TEST_CLIPS, cfg.DATASETS.mit.NUM_CLASSES, cfg.DATASETS.mit.REPLICAS) == (2, 6, 2)
    assert cfg.DATASETS.mit.ROOT == "/v/mit"
    assert (cfg.LOSSES.heads.PROJECTION_WEIGHT, cfg.MULTI.EXPANDER) == (0.5, 16)


def test_depth_on_the_command_line_counts_for_the_pooling():
    assert len(config.load([HEADS], ["MVIT.DEPTH", "6"]).MVIT.POOL_Q_STRIDE) == 6


def test_each_number_of_clips_is_a_test():
    cfg = config.load([ROOT / "tests/dialect/masked_ssl_vit_ft.yaml"])
    tests = {name: (node.CLIPS, node.CROPS) for name, node in cfg.EVALS.items() if node.AT_TEST}
    assert tests == {"test": (0, 0), "test_7_clips": (7, 3), "test_10_clips": (10, 3)}


def test_timesformer_fills_its_step(with_models, said):
    cfg = config.load([ROOT / "tests/dialect/timesformer.yaml"], NUM_SHARDS=2)
    assert cfg.TRAIN.GRAD_ACCU_NUM_BATCH == 4
    assert cfg.TRAIN.CHECKPOINT_EPOCH_RESET
    assert cfg.MIXUP.ENABLE
    words = ["MODEL.MODEL_NAME", "vit_base_patch16_224", "TRAIN.BATCH_SIZE", "8"]
    assert config.load(overrides=words).TRAIN.GRAD_ACCU_NUM_BATCH == 8, "64 is its default"
    assert "micro-batches of a step: 8" in said.text
    assert config.load(overrides=[*words, "TRAIN.GRAD_ACCU_NUM_BATCH", "3"]).TRAIN.GRAD_ACCU_NUM_BATCH == 3
    assert config.load(overrides=[*words, "GLOBAL_BATCH_SIZE", "4"]).TRAIN.GRAD_ACCU_NUM_BATCH == 1


def test_output_dir_of_published_files(tmp_path, said):
    base, file = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text("OUTPUT_DIR: .\n")
    file.write_text("_BASE_: base.yaml\nLOG_PERIOD: 3\n")
    assert config.load([file]).OUTPUT_DIR == "runs/mine"
    assert [r.message.partition("base.yaml")[2] for r in said.records] == [":1: OUTPUT_DIR . mapped to runs/mine"]
    assert config.load([base]).OUTPUT_DIR == "runs/base"
    said.clear()
    assert config.load([file], ["OUTPUT_DIR", "out"]).OUTPUT_DIR == "out"
    here = config.load([file], ["OUTPUT_DIR", "."])
    assert Path(here.OUTPUT_DIR) == Path(".")
    file.write_text(config.dump(here))
    assert config.load([file]) == here


def test_empty_nodes_of_other_toolkits(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("RESNET: {}\nMVIT: {REV: {}}\nTRAIN: {}\nTENSORBOARD: {MODEL_VIS: {GRAD_CAM: {}}}\n")
    assert config.load([file]) == config.load()


# --- what is refused, and with which words ---------------------------------------------------------------------------

TRAIN_ONE = ["TRAIN.DATASET", "kinetics"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["MODEL.MULTI_NUM_CLASSES", "[8]"], "MODEL.MULTI_NUM_CLASSES has 1 values, MODEL.MULTI_DATASETS 2; give one"),
        (["MODEL.MULTI_REPLICAS", "[1, 1, 1]"], "MODEL.MULTI_REPLICAS has 3 values, MODEL.MULTI_DATASETS 2"),
        (["MODEL.MULTI_PATH_PREFIX", "[/v]"], "MODEL.MULTI_PATH_PREFIX has 1 values, MODEL.MULTI_DATASETS 2"),
        (["MODEL.MULTI_PATH_PREFIX", "['/v']"], "MODEL.MULTI_PATH_PREFIX has 1 values, MODEL.MULTI_DATASETS 2"),
        (["MODEL.MULTI_NUM_CLASSES", "many"], "MODEL.MULTI_NUM_CLASSES must be list[int], found 'many'"),
        (["MODEL.USE_MULTI_HEAD", "yes"], "MODEL.USE_MULTI_HEAD must be bool, found 'yes'"),
        (["MODEL.USE_MULTI_HEAD", "False"], "MODEL.USE_INF_LOSS True needs MODEL.USE_MULTI_HEAD True"),
        (
            ["MODEL.USE_MULTI_HEAD", "False", "MODEL.USE_INF_LOSS", "False"],
            "TRAIN.DATASET multi_dataset_seq needs MODEL.USE_MULTI_HEAD True",
        ),
        (
            ["MODEL.MULTI_LOSS_FUNCS", "['nce_and_rce', 'bce_logit']"],
            "MULTI_LOSS_FUNCS nce_and_rce with softmax: expected",
        ),
        (
            ["MODEL.MULTI_HEAD_ACT", "['sigmoid', 'sigmoid']"],
            "MULTI_LOSS_FUNCS soft_cross_entropy with sigmoid: expected",
        ),
        (["MODEL.MULTI_PROJ_SPARSITY_LOSS_TYPE", "L0"], "trains nothing: it has no gradient; expected L1"),
        (["MODEL.MULTI_PROJ_LOSS_FUNC", "bce"], "MODEL.MULTI_PROJ_LOSS_FUNC 'bce' is not supported"),
        (["MODEL.MULTI_USE_MOCO", "True"], "MODEL.MULTI_USE_MOCO 'True' is not supported"),
        (["MODEL.LOAD_MULTI_PROJ_INIT_FILE", "d"], "MODEL.LOAD_MULTI_PROJ_INIT_FILE 'd' is not supported"),
        (["MODEL.MULTI_USE_MOCO", "True", "DATA.TEST_SKIP", "2"], "(and 1 more, see above)"),
        (TRAIN_ONE, "MODEL.NUM_CLASSES 700, but the head kinetics has 8 classes (MODEL.MULTI_NUM_CLASSES); set"),
        ([*TRAIN_ONE, "MODEL.NUM_CLASSES", "8", "DATA.NUM_CLASSES", "8"], "DATA.NUM_CLASSES 8, but the head mit has 5"),
        (["TRAIN.DATASET", "ssv2"], "TRAIN.DATASET ssv2 has no head; MODEL.MULTI_DATASETS has kinetics, mit"),
        (["TEST.ENABLE", "True", "TEST.DATASET", "ssv2"], "TEST.DATASET ssv2 has no head"),
        (["DATA.MODEL_DIFF_DATA", "True"], "set TRAIN.DATASET to the data set whose head gives scores"),
        (["MODEL.MULTI_DATASET", "[kinetics]"], "unknown key MODEL.MULTI_DATASET"),
        (["RESNET.DEPHT", "50"], "unknown key RESNET.DEPHT"),
    ],
)
def test_contradictions(words, line):
    assert line in refusal(HEADS, overrides=words)


def test_switched_on_but_without_effect_in_the_published_code(said):
    config.load([HEADS], ["MODEL.MULTI_FIX_PROJ", "True"])
    assert "as they were in MultiTrain in spite of it" in lines_of(said, "MODEL.MULTI_FIX_PROJ")[0]
    for words in ([], ["MODEL.MULTI_ADD_CROSS_PROJ", "True"]):
        said.clear()
        config.load([SINGLE], ["MODEL.MULTI_USE_MOCO", "True", *words])
        off = "USE_MULTI_HEAD" if words else "MULTI_ADD_CROSS_PROJ"
        assert lines_of(said, "MODEL.MULTI_USE_MOCO") == [f"ignored (MODEL.{off} is off)"]


def test_a_size_stands_for_its_numbers_until_later_settings(tmp_path):
    base, own = tmp_path / "base.yaml", tmp_path / "own.yaml"
    base.write_text("VIDEOMAE: {EMBED_DIM: 768, DEPTH: 12, DECODER_DEPTH: 8}\nMODEL: {PATCH_SIZE: [2, 16, 16]}\n")
    own.write_text("_BASE_: base.yaml\nVIDEOMAE: {SIZE: g, DECODER_HEADS: 4}\n")
    node = config.load([own]).VIDEOMAE
    assert (node.EMBED_DIM, node.DEPTH, node.DECODER_HEADS, node.DECODER_DEPTH) == (1408, 40, 4, 8)
    cfg = config.load([own], ["VIDEOMAE.SIZE", "S", "VIDEOMAE.DEPTH", "2"])
    assert (cfg.VIDEOMAE.EMBED_DIM, cfg.VIDEOMAE.DEPTH, cfg.MODEL.PATCH_SIZE) == (384, 2, [2, 16, 16])
    assert "SIZE" not in cfg.VIDEOMAE
    with pytest.raises(UserError, match="VIDEOMAE.SIZE must be one of S, B, L, H, g, found 'XL'"):
        config.load([own], ["VIDEOMAE.SIZE", "XL"])
    assert config.describe("VIT.SIZE").startswith("VIT.SIZE  (one of S, B, L, H, g, default '')\n    published size")
