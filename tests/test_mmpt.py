"""MMPT's project files: they give what the shipped configs say, and what is not here is refused."""

from pathlib import Path

import pytest

from videorl import config, registry
from videorl.registry import UserError

ROOT = Path(__file__).parents[1]
FILES, SHIPPED = ROOT / "tests/dialect", ROOT / "configs/HowTo100M"

registry.discover()


def differences(published: Path, shipped: str, words: str) -> dict:
    """Keys whose values are not those of a shipped config with some words behind it."""
    found = config.flat(config.load([published]))
    expected = config.flat(config.load([SHIPPED / shipped], words.split()))
    keys = {key for key in {*found, *expected} if found.get(key) != expected.get(key)}
    return {key: (found.get(key), expected.get(key)) for key in keys}


# File: the shipped config, what the published file says beside it, and keys without an effect on results.
PAIRS = {
    "mmpt_pretrain": (
        "NORTON.yaml",
        "TRAIN.CHECKPOINT_FILE_PATH runs/videoclip.pt TRAIN.CHECKPOINT_EPOCH_RESET True OUTPUT_DIR runs/norton"
        " FEATURES.ROOT features/how2_s3d_shard FEATURES.CAPTIONS text/sentencified_htm_1200k.bert-base-uncased."
        " TRAIN.BATCH_SIZE 64 TRAIN.KEEP_CHECKPOINTS 50",
    ),
    "mmpt_ft": (
        "NORTON_MSRVTT_FT.yaml",
        "TRAIN.CHECKPOINT_FILE_PATH runs/norton.pt TRAIN.CHECKPOINT_EPOCH_RESET True"
        " MSRVTT_FEATURES.ROOT features/msrvtt MSRVTT_FEATURES.ANNOTATIONS data/MSRVTT_train.9k.csv"
        " MSRVTT_FEATURES.SENTENCES data/MSRVTT_data.json OUTPUT_DIR ./tmp",
    ),
    "mmpt_youcook_ft": (
        "NORTON_YOUCOOK2_FT.yaml",
        "TRAIN.CHECKPOINT_FILE_PATH runs/norton.pt TRAIN.CHECKPOINT_EPOCH_RESET True OUTPUT_DIR runs/youcook"
        " YOUCOOK2_FEATURES.ROOT features/youcook"
        " YOUCOOK2_FEATURES.ANNOTATIONS data/youcookii_annotations_trainval.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_they_say_what_the_shipped_configs_say(name):
    shipped, words = PAIRS[name]
    found = differences(FILES / f"{name}.yaml", shipped, words)
    elsewhere = ("LOG_PERIOD", "DATA_LOADER.", "NUM_GPUS")
    # Of the pre-training that a shipped fine-tuning goes on from, and of what a published one includes
    elsewhere += () if name == "mmpt_pretrain" else ("FEATURES.", "MSRVTT_FEATURES.SENTENCES")
    assert {key: values for key, values in found.items() if not key.startswith(elsewhere)} == {}


@pytest.mark.parametrize(
    ("name", "node", "kind"),
    [
        ("mmpt_test_background", "youcook2_windows", "full_video"),
        ("mmpt_test_align", "htm_align", "alignment"),
    ],
)
def test_files_of_tests_evaluate_alone(name, node, kind):
    cfg = config.load([FILES / f"{name}.yaml"])
    assert (cfg.TRAIN.ENABLE, cfg.TEST.ENABLE) == (False, True)
    assert list(cfg.EVALS) == [node]
    assert (kind, node, 63) == (cfg.EVALS[node].NAME, cfg.EVALS[node].DATASET, cfg.TEXT.MAX_WORDS)
    assert cfg[node.upper()].ROOT.startswith("features/")
    assert cfg[node.upper()].ANNOTATIONS.endswith(".json")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("model.model_cls MMFusionJoint", "MMFusionJoint is not here: expected one of MMFusionSeparate"),
        ("loss.loss_cls MTM", "loss.loss_cls MTM is not here: expected one of MMContraLoss"),
        ("dataset.meta_processor DiDeMoMetaProcessor", "DiDeMoMetaProcessor is not here"),
        ("dataset.aligner MFMMLMAligner", "dataset.aligner MFMMLMAligner is not here"),
        ("fairseq.optimization.lr_scheduler cosine", "cosine is not here: expected one of polynomial_decay"),
        ("fairseq.optimization.lr [1e-4,1e-5]", "expected one rate"),
        ("dataset.subsampling 4", "is not supported: set FEATURES.CLIPS"),
        ("loss.sequence_contrast 3", "loss.sequence_contrast: expected null, or its own keys below it"),
        ("dataset.max_vide_len 4", "unknown key dataset.max_vide_len; did you mean dataset.max_video_len"),
    ],
)
def test_what_is_not_here_is_refused(words, said):
    with pytest.raises(UserError) as error:
        config.load([FILES / "mmpt_pretrain.yaml"], words.split())
    assert said in str(error.value)


def test_a_null_behind_its_keys_ends_the_comparison_of_sequences(tmp_path):
    loaded = config.load([FILES / "mmpt_pretrain.yaml"], ["loss.sequence_contrast", "null"])
    assert (loaded.LOSSES.norton.SEQUENCE_WEIGHT, loaded.LOSSES.norton.SOFT_TARGETS) == (0.0, 0.3)
    (tmp_path / "base.yaml").write_text("loss: {loss_cls: MMContraLoss, beta: 0.3, sequence_contrast: null}")
    (tmp_path / "a.yaml").write_text("includes: base.yaml\nloss: {sequence_contrast: {threshold: 8}}")
    weights = [config.load([tmp_path / name]).LOSSES.norton.SEQUENCE_WEIGHT for name in ("base.yaml", "a.yaml")]
    assert weights[0] == 0.0 < weights[1]


def test_a_tokenizer_is_a_path_where_there_is_one_and_else_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for name, ours in (("google/bert", "hub:google/bert"), ("here", "here")):
        assert ours == config.load([FILES / "mmpt_pretrain.yaml"], ["dataset.bert_name", name]).TEXT.TOKENIZER


def test_an_included_file_is_looked_for_from_the_file_up(tmp_path):
    (tmp_path / "projects/task").mkdir(parents=True)
    (tmp_path / "projects/task/a.yaml").write_text("fairseq: {optimization: {max_epoch: 3, warmup_updates: 5}}")
    file = tmp_path / "projects/task/b.yaml"
    file.write_text("includes: projects/task/a.yaml\nfairseq: {optimization: {max_epoch: 4}}")
    cfg = config.load([file])
    assert (cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.WARMUP_STEPS) == (4, 5)
    file.write_text("includes: projects/task/c.yaml")
    with pytest.raises(UserError, match="includes 'projects/task/c.yaml' names no file"):
        config.load([file])
