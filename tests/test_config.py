"""The config tree: what is read, what is refused and with which words, and that it says the same when read again."""

import ast
import json
import logging
import re
import subprocess
import sys
import time
import typing
from pathlib import Path

import pytest

from videorl import config, registry
from videorl.registry import BATCHES, DATASETS, EVALS, LOSSES, MODELS, UserError

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(ROOT.glob("configs/**/*.yaml")) + sorted(ROOT.glob("projects/*/*.yaml"))


@pytest.fixture
def written(tmp_path):
    """Writes a YAML file and gives its path."""

    def write(text: str, name: str = "run.yaml") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "videorl")
    return caplog


def refusal(*files, overrides=()) -> str:
    """The one line with which `load` refuses."""
    with pytest.raises(UserError) as error:
        config.load(files, overrides)
    line = str(error.value)
    assert "\n" not in line
    return line


# --- what is read ----------------------------------------------------------------------------------------------------


def test_defaults_are_complete_and_typed():
    cfg = config.load()
    for path, key in config.global_schema().items():
        value = config.flat(cfg).get(".".join(path))
        if typing.get_origin(key.type) is typing.Literal:
            assert value in typing.get_args(key.type), path
        elif value is not None:
            assert isinstance(value, typing.get_origin(key.type) or key.type), path
    assert cfg.MODEL.MODEL_NAME == "MViT"
    assert MODELS["MViT"].keys["DEPTH"].default == cfg.MVIT.DEPTH


def test_base_is_read_first_and_relative_to_the_file_that_names_it(written):
    written("TRAIN: {BATCH_SIZE: 2, EVAL_PERIOD: 3}\n", "family/base.yaml")
    written("_BASE_: ../family/base.yaml\nTRAIN: {BATCH_SIZE: 5}\nLOG_PERIOD: 7\n", "other/middle.yaml")
    cfg = config.load([written("_BASE_: other/middle.yaml\nLOG_PERIOD: 8\n")])
    assert (cfg.TRAIN.BATCH_SIZE, cfg.TRAIN.EVAL_PERIOD, cfg.LOG_PERIOD) == (5, 3, 8)


def test_order_is_defaults_files_overrides_flags(written):
    files = [written("LOG_PERIOD: 2\nNUM_SHARDS: 3\n"), written("LOG_PERIOD: 3\n", "second.yaml")]
    assert config.load(files).LOG_PERIOD == 3
    cfg = config.load(files, ["LOG_PERIOD", "4", "NUM_SHARDS", "5"], NUM_SHARDS=6, SHARD_ID=None)
    assert (cfg.LOG_PERIOD, cfg.NUM_SHARDS, cfg.SHARD_ID) == (4, 6, 0)


@pytest.mark.parametrize("text", ["", "# nothing but this\n", "---\n", "TRAIN: {}\n", "LOSSES: {}\nEVALS: {}\n"])
def test_an_empty_file_or_node_changes_nothing(written, text):
    assert config.load([written(text)]) == config.load()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("SOLVER.BASE_LR", "1e-4", 1e-4),
        ("SOLVER.BASE_LR", "4", 4.0),
        ("SOLVER.BASE_LR", "+.5", 0.5),
        ("TRAIN.BATCH_SIZE", "4", 4),
        ("TRAIN.BATCH_SIZE", "4.0", 4),
        ("TRAIN.ENABLE", "true", True),
        ("TRAIN.ENABLE", "False", False),
        ("OUTPUT_DIR", "123", "123"),
        ("OUTPUT_DIR", "runs/a b", "runs/a b"),
        ("TRAIN.CHECKPOINT_FILE_PATH", "None", ""),
        ("MVIT.PATCH_KERNEL", "(3, 7, 7)", [3, 7, 7]),
        ("MVIT.PATCH_KERNEL", "[3,7,7]", [3, 7, 7]),
        ("MVIT.DIM_MUL", "[[1, 2.0], (3, 2)]", [[1, 2.0], [3, 2.0]]),
        ("SOLVER.STEPS", "[0, 10]", [0.0, 10.0]),
    ],
)
def test_overrides_take_the_key_s_type(key, text, value):
    got = config.flat(config.load(overrides=[key, text]))[key]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("SOLVER: {BASE_LR: 1e-4}", "SOLVER.BASE_LR", 1e-4),  # YAML 1.1 takes this for text
        ("SOLVER: {BASE_LR: 1}", "SOLVER.BASE_LR", 1.0),
        ("TRAIN: {BATCH_SIZE: 8.0}", "TRAIN.BATCH_SIZE", 8),
        ("OUTPUT_DIR: 123", "OUTPUT_DIR", "123"),
        ("TRAIN: {CHECKPOINT_FILE_PATH: null}", "TRAIN.CHECKPOINT_FILE_PATH", ""),
        ("MVIT: {PATCH_KERNEL: [1, 2, 3]}", "MVIT.PATCH_KERNEL", [1, 2, 3]),
        ("TRAIN: &t {BATCH_SIZE: 3}\nTEST: {<<: *t, NUM_SPATIAL_CROPS: 1}", "TEST.BATCH_SIZE", 3),
    ],
)
def test_files_take_the_key_s_type(written, text, key, value):
    got = config.flat(config.load([written(text)]))[key]
    assert got == value
    assert type(got) is type(value)


def test_none_for_a_key_that_may_be_none():
    optional = [
        (path, key)
        for path, key in config.component_schema().items()
        if type(None) in getattr(key.type, "__args__", ())
    ]
    for path, _ in optional:
        assert config.flat(config.load(overrides=[".".join(path), "None"]))[".".join(path)] is None
    assert config.convert("None", list[int] | None, "A.B", "here") is None
    assert config.convert("[1, 2]", list[int] | None, "A.B", "here") == [1, 2]


def test_a_key_given_twice_counts_last_and_is_told(written, said):
    cfg = config.load([written("TRAIN:\n  BATCH_SIZE: 3\n  EVAL_PERIOD: 2\n  BATCH_SIZE: 4\n")])
    assert cfg.TRAIN.BATCH_SIZE == 4
    assert [r.message.partition("run.yaml")[2] for r in said.records] == [
        ":4: TRAIN.BATCH_SIZE stands on line 2 too; the last one counts"
    ]


def test_a_node_given_twice_counts_last_as_in_yaml(written, said):
    cfg = config.load([written("TRAIN:\n  BATCH_SIZE: 3\nTRAIN:\n  EVAL_PERIOD: 2\n")])
    assert (cfg.TRAIN.BATCH_SIZE, cfg.TRAIN.EVAL_PERIOD) == (config.load().TRAIN.BATCH_SIZE, 2)
    assert "TRAIN stands on line 1 too" in said.text


# --- maps of components ----------------------------------------------------------------------------------------------


def test_sugar_gives_entries_that_overrides_reach():
    cfg = config.load(overrides=["TRAIN.EVAL_PERIOD", "4", "EVALS.val.CLIPS", "2", "EVALS.test.CROPS", "1"])
    assert (cfg.EVALS.val.EVERY, cfg.EVALS.val.CLIPS, cfg.EVALS.val.SPLIT) == (4, 2, "val")
    assert (cfg.EVALS.test.CLIPS, cfg.EVALS.test.CROPS) == (0, 1)  # 0: as TEST says
    assert list(cfg.LOSSES) == [cfg.MODEL.LOSS_FUNC]


def test_whoever_writes_losses_names_all_of_them(written):
    cfg = config.load([written("LOSSES:\n  contrast: {NAME: infonce, WEIGHT: 2}\n")])
    assert list(cfg.LOSSES) == ["contrast"]
    assert cfg.LOSSES.contrast.WEIGHT == 2.0


def test_another_name_in_a_child_starts_the_entry_afresh(written):
    written("LOSSES:\n  a: {NAME: milnce, WEIGHT: 5.0}\n  b: {NAME: milnce, WEIGHT: 6.0}\n", "base.yaml")
    cfg = config.load([written("_BASE_: base.yaml\nLOSSES:\n  a: {NAME: infonce}\n  b: {NAME: milnce}\n")])
    assert (cfg.LOSSES.a.NAME, cfg.LOSSES.a.WEIGHT) == ("infonce", 1.0)
    assert (cfg.LOSSES.b.NAME, cfg.LOSSES.b.WEIGHT) == ("milnce", 6.0)


def test_in_one_file_the_order_of_name_and_keys_does_not_matter(written):
    cfg = config.load([written("LOSSES:\n  a:\n    WEIGHT: 3\n    NAME: infonce\n")])
    assert cfg.LOSSES.a.WEIGHT == 3.0


def test_a_named_data_set_can_be_trained_and_tested_on(written):
    text = "DATASETS:\n  mine: {NAME: kinetics, NUM_CLASSES: 3}\nTRAIN: {DATASET: mine}\nTEST: {DATASET: mine}\n"
    cfg = config.load([written(text)])
    assert cfg.EVALS.test.DATASET == "mine"
    assert config.component(cfg, DATASETS, "mine")[1]["NUM_CLASSES"] == 3
    assert config.spec(cfg).labels == {"mine": 3}


# --- what is refused, and with which words ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("TRAIN:\n  BATCHSIZE: 3\n", 2, "unknown key TRAIN.BATCHSIZE; did you mean TRAIN.BATCH_SIZE?"),
        ("LOG_PERIOD: 1\nTRIAN:\n  BATCH_SIZE: 3\n", 3, "unknown key TRIAN.BATCH_SIZE; did you mean TRAIN.BATCH_SIZE?"),
        ("MVIT:\n  DEPHT: 3\n", 2, "unknown key MVIT.DEPHT; did you mean MVIT.DEPTH?"),
        ("MODEL:\n  MODEL_NAME: MVits\n", 2, "MODEL.MODEL_NAME: unknown model 'MVits'; did you mean MViT?"),
        ("MODEL:\n  LOSS_FUNC: cross_entrop\n", 2, "unknown loss 'cross_entrop'; did you mean cross_entropy?"),
        ("LOSSES:\n  a:\n    NAME: infonse\n", 3, "LOSSES.a.NAME: unknown loss 'infonse'; did you mean infonce?"),
        ("LOSSES:\n  a:\n    NAME: infonce\n    WIGHT: 2\n", 4, "LOSSES.a.WIGHT; did you mean LOSSES.a.WEIGHT?"),
        ("LOSSES:\n  a:\n    WEIGHT: 2\n", 3, "LOSSES.a needs NAME: a registered loss"),
        ("LOSSES:\n  a: {}\n", 2, "LOSSES.a needs NAME: a registered loss"),
        ("TRAIN:\n  DATASET: kinetic\n", 2, "TRAIN.DATASET: unknown dataset 'kinetic'; did you mean kinetics?"),
        ("EVALS:\n  x:\n    NAME: views\n    DATASET: nix\n", 4, "EVALS.x.DATASET: unknown dataset 'nix'"),
        ("BATCHES:\n  NAME: shufled\n", 2, "BATCHES.NAME: unknown batches 'shufled'; did you mean shuffled?"),
        ("TRAIN: 3\n", 1, "TRAIN is a node and takes keys, not the value 3"),
        ("TRAIN:\n", 1, "TRAIN is a node and takes keys, not the value None"),
        ("LOSSES: 3\n", 1, "LOSSES is a node and takes keys, not the value 3"),
        ("LOSSES:\n  a: 3\n", 2, "LOSSES.a is a node and takes keys, not the value 3"),
        ("EVALS:\n  val: 3\n", 2, "EVALS.val is a node and takes keys, not the value 3"),
        ("BATCHES: shuffled\n", 1, "BATCHES is a node and takes keys, not the value 'shuffled'"),
        ("TRAIN:\n  BATCH_SIZE:\n    A: 3\n", 3, "unknown key TRAIN.BATCH_SIZE.A; did you mean TRAIN.BATCH_SIZE?"),
        ("TRAIN.BATCH_SIZE: 3\n", 1, "unknown key TRAIN.BATCH_SIZE"),
        ("TRAIN:\n  BATCH_SIZE: many\n", 2, "TRAIN.BATCH_SIZE must be int, found 'many'"),
        ("TRAIN:\n  BATCH_SIZE: 4.5\n", 2, "TRAIN.BATCH_SIZE must be int, found 4.5"),
        ("TRAIN:\n  BATCH_SIZE: true\n", 2, "TRAIN.BATCH_SIZE must be int, found True"),
        ("TRAIN:\n  BATCH_SIZE: null\n", 2, "TRAIN.BATCH_SIZE must be int, found None"),
        ("TRAIN:\n  ENABLE: 1\n", 2, "TRAIN.ENABLE must be bool, found 1"),
        ("OUTPUT_DIR: on\n", 1, "OUTPUT_DIR must be str, found True"),
        ("OUTPUT_DIR: [a]\n", 1, "OUTPUT_DIR must be str, found ['a']"),
        ("SOLVER:\n  BASE_LR: .nan\n", 2, "SOLVER.BASE_LR must be float, found nan"),
        ("SOLVER:\n  BASE_LR: -.inf\n", 2, "SOLVER.BASE_LR must be float, found -inf"),
        ("DATA:\n  MEAN: [a]\n", 2, "DATA.MEAN must be list[float], found ['a']"),
        ("DATA:\n  MEAN: [.nan]\n", 2, "DATA.MEAN must be list[float], found [nan]"),
        ("DATA:\n  MEAN: 0.5\n", 2, "DATA.MEAN must be list[float], found 0.5"),
        ("1: 2\n", 1, "unknown key 1"),
        ("TRIAN: {}\n", 1, "unknown key TRIAN; did you mean TRAIN?"),
        ("TRAIN: {BATCH_SIZE: {}}\n", 1, "TRAIN.BATCH_SIZE must be int, found {}"),
    ],
)
def test_mistakes_in_a_file(written, text, line, words):
    file = written(text)
    said = refusal(file)
    assert said.startswith(f"{file}:{line}: ")
    assert words in said


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["TRAIN.BATCH_SIZE"], "overrides are pairs KEY VALUE; found an odd number of words"),
        (["TRAIN.BATCHSIZE", "3"], "command line: unknown key TRAIN.BATCHSIZE; did you mean TRAIN.BATCH_SIZE?"),
        (["TRAIN.BATCH_SIZE.A", "3"], "command line: unknown key TRAIN.BATCH_SIZE.A"),
        (["TRAIN", "3"], "command line: TRAIN is a node and takes keys"),
        (["EVALS", "3"], "command line: EVALS is a node and takes keys"),
        (["EVALS.val", "3"], "command line: EVALS.val is a node and takes keys"),
        (["EVALS.other.CLIPS", "3"], "command line: EVALS.other needs NAME"),
        (["DATASETS.mine.NAME", "kinetics"], "DATASETS.mine: NUM_CLASSES must be given"),
        (["EVALS.other.NAME", "views"], "EVALS.other: DATASET must be given"),
        (["MODEL.MODEL_NAME", "MVit2"], "command line: MODEL.MODEL_NAME: unknown model 'MVit2'; did you mean MViT?"),
        (["SOLVER.BASE_LR", "inf"], "command line: SOLVER.BASE_LR must be float, found 'inf'"),
        (["SOLVER.BASE_LR", "1e400"], "command line: SOLVER.BASE_LR must be float"),
        (["TRAIN.BATCH_SIZE", "-" * 30_000], "command line: TRAIN.BATCH_SIZE must be int"),
        (["DATA.MEAN", "-" * 9_000], "command line: DATA.MEAN must be list[float]"),
        (["DATA.MEAN", "[" * 9_000], "command line: DATA.MEAN must be list[float]"),
        (["DATA.MEAN", "__import__('os')"], "command line: DATA.MEAN must be list[float]"),
        (["", "3"], "command line: unknown key"),
        (["_BASE_", "x.yaml"], "command line: unknown key _BASE_"),
    ],
)
def test_mistakes_on_the_command_line(overrides, words):
    said = refusal(overrides=overrides)
    assert words in said
    assert len(said) < 400 + sum(map(len, overrides)) * (len(overrides) % 2)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("http://example.org/a.yaml", "expected the path of a file, or videorl:FOLDER/NAME"),
        ("file:a.yaml", "expected the path of a file, or videorl:FOLDER/NAME"),
        ("/etc/a.yaml", "names no file"),
        ("videorl:toy/mvitt", "no config videorl:toy/mvitt comes with this package; did you mean toy/mvit?"),
        ("videorl:../setup", "no config videorl:../setup comes with this package"),
        ("nix.yaml", "names no file"),
        ("[a]", "names no file"),
        ("''", "names no file"),
        ("run.yaml", "goes round in a circle: run.yaml -> run.yaml"),
        ("there.yaml", "goes round in a circle: run.yaml -> there.yaml -> run.yaml"),
        ("code.py", "expected a .yaml file, or the run.json of a run; nothing else is read"),
    ],
)
def test_bases_that_are_refused(written, base, words):
    written("_BASE_: run.yaml\n", "there.yaml")
    written("raise SystemExit\n", "code.py")
    assert words in refusal(written(f"_BASE_: {base}\n"))


@pytest.mark.parametrize("base", ["videorl:toy/mvit", "videorl:toy/mvit.yaml", str(ROOT / "configs/toy/mvit.yaml")])
def test_a_config_of_the_package_is_a_base_and_a_config(written, base):
    expected = config.load([ROOT / "configs/toy/mvit.yaml"])
    assert config.load([base]) == config.load([written(f"_BASE_: {base}\n")]) == expected


def test_missing_or_foreign_files(written, tmp_path):
    assert "does not exist" in refusal(tmp_path / "nix.yaml")
    assert "expected a .yaml file" in refusal(written("TRAIN: {}\n", "a.json"))
    (tmp_path / "latin.yaml").write_bytes(b"OUTPUT_DIR: caf\xe9\n")
    assert "not UTF-8 text (byte 15)" in refusal(tmp_path / "latin.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "does not exist" in refusal(tmp_path / "folder.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1\n", "expected `KEY: value` lines, found a sequence"),
        ("hello\n", "expected `KEY: value` lines, found a scalar"),
        ("TRAIN:\n\tBATCH_SIZE: 3\n", "line 2"),
        ("TRAIN: [1\n", "not valid YAML"),
        ("A: \x00\n", "not valid YAML"),
        ("TRAIN: {}\n---\nTEST: {}\n", "not valid YAML"),
        ("".join(" " * i + "a:\n" for i in range(30)), "nested more than 20 deep"),
        ("[" * 600, "nested too deeply"),
        ("A: " + "{a: " * 600, "nested too deeply"),
        ("A: &a [*a]\n", "recursive"),
        ("A: &a\n  B: *a\n", "nested more than 20 deep"),
        ("A: &a\n  <<: *a\n", "unknown key A"),
        (" " * 1_000_001, "a config has at most"),
    ],
)
def test_what_is_no_config(written, text, words):
    assert words in refusal(written(text))


def test_aliases_that_would_fill_the_memory(written):
    """Ten levels, each of nine aliases of the level before: 9 ** 9 leaves if they were written out."""
    nodes = "A0: &a0 {x: 1}\n" + "".join(
        f"A{n}: &a{n} {{{', '.join(f'k{i}: *a{n - 1}' for i in range(9))}}}\n" for n in range(1, 10)
    )
    assert "more than 10000 keys" in refusal(written(nodes))
    lists = ", ".join(["&a0 [1]", *(f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))])
    for key in ("OUTPUT_DIR", "TRAIN", "DATA: {MEAN"):
        said = refusal(written(f"{key}: [{lists}]" + "}" * ("{" in key)))
        assert len(said) < 400


def test_merges_that_would_fill_the_memory(written):
    """Eight levels, each of ninety merges of the level before, which PyYAML before 6.0.4 writes out."""
    first = "a0: &a0 {" + ", ".join(f"x{i}: 1" for i in range(500)) + "}\n"
    levels = [f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 90)}]\n" for n in range(1, 9)]
    assert len(refusal(written(first + "".join(levels)))) < 500
    assert "<< names more than 100 nodes" in refusal(
        written(f"A: &a {{x: 1}}\nB: {{<<: [{', '.join(['*a'] * 101)}]}}\n")
    )


@pytest.mark.parametrize(
    "value", ["0123", "1:30", "2024-01-01", "2024-13-45", "1_000", "0x10", "9" * 4301, "1e3", "12.50"]
)
def test_a_plain_word_is_the_text_that_it_looks_like(written, value):
    shown = {"12.50": "12.5"}.get(value, value)  # a number all the same
    assert shown == config.load([written(f"OUTPUT_DIR: {value}\n")]).OUTPUT_DIR


@pytest.mark.parametrize(
    "text",
    [
        "LOG_PERIOD: " + "9" * 5000,
        "LOG_PERIOD: 0x" + "f" * 5000,
        "LOG_PERIOD: 1:30:00",
        "LOG_PERIOD: 2024-13-45",
        "LOG_PERIOD: !!int abc",
        "LOG_PERIOD: !!int ''",
        "SOLVER: {BASE_LR: !!float abc}",
        "USE_TQDM: !!bool maybe",
        "OUTPUT_DIR: !!timestamp abc",
        "OUTPUT_DIR: !!timestamp 2024-13-45",
        "OUTPUT_DIR: !!binary '***'",
        'OUTPUT_DIR: "a\\0b"',
        'OUTPUT_DIR: "\\e[31mred"',
        'OUTPUT_DIR: "\\ud800"',
        "MODEL: {MODEL_NAME: [MViT]}",
        "TRAIN: {<<: 3}",
        "? [a, b]\n: 3",
        "~: 3",
        "A: " + "[" * 20_000 + "]" * 20_000,
        "- " * 5000 + "a",
    ],
)
def test_odd_values_are_told_in_a_line(written, text):
    said = refusal(written(text))
    assert len(said) < 700
    assert said.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "EVALS: {../../x: {NAME: views, DATASET: kinetics}}",
        "EVALS: {/tmp/x: {NAME: views, DATASET: kinetics}}",
        f"EVALS: {{? {'a' * 101} : {{NAME: views, DATASET: kinetics}}}}",
        "LOSSES: {a/b: {NAME: infonce}}",
        "LOSSES: {a.b: {NAME: infonce}}",
        "DATASETS: {..: {NAME: kinetics, NUM_CLASSES: 2}}",
        "DATASETS: {/x: {NAME: kinetics, NUM_CLASSES: 2}}",
        "TRAIN: {DATASET: ../x}",
        "TEST: {DATASET: ../x}",
        "TENSORBOARD: {LOG_DIR: ../../x}",
        "TENSORBOARD: {LOG_DIR: a/../../x}",
        "TENSORBOARD: {LOG_DIR: /tmp/x}",
    ],
)
def test_no_name_leads_out_of_the_folder_of_the_run(written, text):
    said = refusal(written(text))
    assert any(
        word in said for word in ("expected a name of at most 100", "expected a folder below", "unknown dataset")
    )


PAYLOAD = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{}']]"


@pytest.mark.parametrize(
    "text",
    [
        "OUTPUT_DIR: " + PAYLOAD,
        "DATA:\n  MEAN: [" + PAYLOAD + "]",
        PAYLOAD + ": 3",
        PAYLOAD,
        "TRAIN: !!python/object/new:pathlib.Path {{BATCH_SIZE: 3}}",
        "TRAIN: !mine {{BATCH_SIZE: 3}}",
        "OUTPUT_DIR: !!python/name:os.system",
        "OUTPUT_DIR: !!python/module:antigravity",
        "!!python/dict {{LOG_PERIOD: 3}}",
        "TRAIN: !!set {{ENABLE}}",
    ],
)
def test_yaml_tags_are_refused_and_not_run(written, tmp_path, text):
    said = refusal(written(text.format(tmp_path / "ran")))
    assert "tag" in said or "found a sequence" in said
    assert not (tmp_path / "ran").exists()


def test_python_configs_are_refused_and_not_run(written, tmp_path):
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\ncfg = {{}}\n"
    assert "expected a .yaml file" in refusal(written(code, "config.py"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("module", ["config", "registry", "dialect/__init__", "dialect/rules", "dialect/multitrain"])
def test_nothing_is_checked_by_assert(module):
    """`python -O` removes assertions, and with them the checks."""
    tree = ast.parse((ROOT / f"videorl/{module}.py").read_text())
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def test_a_misspelt_key_is_found_at_once(written):
    registry.discover()
    file = written("_BASE_: base.yaml\nTRAIN: {BATCHSIZE: 1}\n")
    written(SHIPPED[0].read_text(), "base.yaml")
    begun = time.process_time()
    refusal(file)
    assert time.process_time() - begun < 1.0


# --- after loading ---------------------------------------------------------------------------------------------------


def test_the_tree_is_frozen():
    cfg = config.load()
    for node, key in ((cfg, "LOG_PERIOD"), (cfg.TRAIN, "BATCH_SIZE"), (cfg.EVALS.test, "CLIPS"), (cfg.MVIT, "NEW")):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(node, key, 1)


@pytest.mark.parametrize("file", [None, *SHIPPED], ids=lambda f: f.stem if f else "defaults")
def test_a_dumped_tree_reads_back_equal(written, file):
    cfg = config.load([file] if file else [])
    again = config.load([written(config.dump(cfg))])
    assert again == cfg
    assert config.dump(again) == config.dump(cfg)
    assert config.flat(again) == config.flat(cfg)


def test_a_dumped_tree_with_odd_values_reads_back_equal(written):
    text = """
    OUTPUT_DIR: "0123"
    AUG: {AA_TYPE: "null"}
    DATA: {CLASS_NAMES: "a: b #c", PATH_LABEL_SEPARATOR: "\\t", TRAIN_JITTER_SCALES_RELATIVE: []}
    SOLVER: {BASE_LR: 1.0e-30}
    LOSSES:
      1: {NAME: infonce}
      yes: {NAME: milnce, WEIGHT: 0}
    EVALS:
      test: {NAME: views, CLIPS: 3}
      extra: {NAME: views, DATASET: ssv2}
    """
    cfg = config.load([written(text)])
    assert config.load([written(config.dump(cfg), "again.yaml")]) == cfg
    assert cfg.OUTPUT_DIR == "0123"


def test_ranks_compare_all_but_their_own_number():
    one, two = (config.flat(config.load(SHARD_ID=i, NUM_SHARDS=2)) for i in range(2))
    assert one == two
    assert one["NUM_SHARDS"] == 2
    assert one != config.flat(config.load(NUM_SHARDS=2, overrides=["SOLVER.BASE_LR", "0.3"]))


# --- the keys themselves ---------------------------------------------------------------------------------------------


def _reads(file: Path) -> set[str]:
    """Names of attributes and dotted text (bound keys) in a file."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return names | {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def test_every_global_key_is_read():
    """A key NODE.KEY is read where a file holds `.NODE` and `.KEY`, or the text "NODE.KEY"."""
    files = [*ROOT.glob("videorl/**/*.py")]
    read = [_reads(file) for file in files]
    unread = [
        ".".join(path)
        for path in config.global_schema()
        if not any(".".join(path) in names or set(path) <= names for names in read)
    ]
    assert not unread


def test_every_global_key_has_a_comment_of_readable_lines():
    bare = [".".join(path) for path, key in config.global_schema().items() if len(key.doc) < 4]
    assert not bare
    assert not [line for line in config.DEFAULTS.read_text().splitlines() if len(line) > 120]


def test_help_joins_the_lines_of_a_meaning():
    text = config.describe("TRAIN.NONFINITE").splitlines()
    assert text[1].startswith("    raise: stop before")
    assert text[1].endswith("at most 10 in a row")
    assert len(text) == 2


@pytest.mark.parametrize("what", [DATASETS, BATCHES, MODELS, LOSSES, EVALS], ids=lambda r: r.kind)
def test_every_key_of_every_component_is_documented(what):
    registry.discover()
    keys = [(name, key) for name in what for key in what[name].keys.values() if not key.bound]
    assert not [f"{name}.{key.name}" for name, key in keys if len(key.doc) < 4]


def test_bound_keys_exist_and_have_the_parameter_s_type():
    """A parameter of the type `dict` is bound to a whole node of another component."""
    registry.discover()
    schema, nodes = config.global_schema(), {path[0] for path in config.component_schema()}
    for what in (DATASETS, BATCHES, MODELS, LOSSES, EVALS):
        for key in (key for name in what for key in what[name].keys.values() if key.bound):
            path = tuple(key.bound.split("."))
            if key.type is dict:
                assert key.bound in nodes
                continue
            assert path in schema, key.bound
            assert not isinstance(key.type, type) or isinstance(schema[path].default, key.type), key.bound


def test_help_names_type_default_and_meaning():
    text = config.describe("TRAIN.BATCH_SIZE")
    assert text.startswith("TRAIN.BATCH_SIZE  (int >= 1, default 64)\n    videos in one micro-batch")
    node = config.describe("mvit")
    assert all(f"MVIT.{name}  (" in node for name in MODELS["MViT"].keys if not MODELS["MViT"].keys[name].bound)
    assert "EVALS.<name>.DATASET  (str, default required)" in config.describe("EVALS")
    everything = config.describe("")
    assert all(".".join(path) in everything for path in config.global_schema())


def test_help_on_an_unknown_name_offers_the_nearest():
    with pytest.raises(
        UserError, match=re.escape("unknown node or key TRAIN.BATCHSIZE; did you mean TRAIN.BATCH_SIZE?")
    ):
        config.describe("TRAIN.BATCHSIZE")
    with pytest.raises(UserError, match=re.escape("did you mean SOLVER?")):
        config.describe("SOLVR")


def test_named_evaluations_are_all_there_are_but_for_those_with_a_key(written):
    file = written("EVALS: {own: {NAME: views, DATASET: ssv2, EVERY: 2}}\n")
    assert list(config.load([file]).EVALS) == ["own"]
    assert list(config.load([file], ["EVALS.test.CLIPS", "4"]).EVALS) == ["test", "own"]
    assert list(config.load([file], ["EVALS.val.EVERY", "1"]).EVALS) == ["val", "own"]
    assert list(config.load([], ["EVALS.val.CLIPS", "2"]).EVALS) == ["val", "test"]


@pytest.mark.parametrize("text", ["['/data/a', '/data/b']", "[/data/a, /data/b]", "[/data/a,/data/b]"])
def test_a_list_of_words_may_be_written_bare(text):
    words = ["DATASETS.aaa.NAME", "kinetics", "DATASETS.aaa.NUM_CLASSES", "2", "TRAIN.DATASET", "aaa"]
    lists = [
        "MODEL.USE_MULTI_HEAD",
        "True",
        "MODEL.MULTI_DATASETS",
        "[kinetics, mit]",
        "MODEL.MULTI_NUM_CLASSES",
        "[2, 3]",
    ]
    lists += [
        "MODEL.MULTI_LOSS_FUNCS",
        "[soft_cross_entropy, soft_cross_entropy]",
        "MODEL.MULTI_HEAD_ACT",
        "[softmax,softmax]",
    ]
    lists += ["MODEL.MULTI_PATH_TO_DATA_DIR", text, "TRAIN.DATASET", "multi_dataset_seq"]
    assert [node.ANNOTATIONS for node in config.load([], lists).DATASETS.values()] == ["/data/a", "/data/b"]
    assert list(config.load([], words).DATASETS) == ["aaa"]
    with pytest.raises(UserError, match="did you mean aaa"):
        config.load([], [*words, "TEST.DATASET", "aa"])


def test_help_config_knows_what_a_project_adds():
    assert "FRAMEPOOL." in config.describe("FRAMEPOOL", [ROOT / "projects/example/example.yaml"])


def test_the_config_of_a_run_is_read_from_its_run_json(tmp_path):
    cfg = config.load(overrides=["SOLVER.BASE_LR", "0.5", "LOSSES.a.NAME", "cross_entropy"])
    (tmp_path / "run.json").write_text(json.dumps({"argv": ["x"], "config": config.dump(cfg)}))
    assert config.load([tmp_path / "run.json"]) == cfg
    for text in ("{", "[]", '{"argv": 1}', "null"):
        (tmp_path / "other.json").write_text(text)
        assert "other.json: expected a .yaml file, or the run.json of a run" in refusal(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("TRAIN.EVAL_PERIOD 1", "TRAIN.EVAL_PERIOD 1 does not change EVALS.val.EVERY, which is given in full: 5"),
        ("TRAIN.EVAL_PERIOD 0", "TRAIN.EVAL_PERIOD 0 does not change EVALS.val.EVERY, which is given in full: 5"),
        (
            "TRAIN.DATASET ssv2",
            "TRAIN.DATASET ssv2 does not change EVALS.val.DATASET, which is given in full: kinetics",
        ),
        ("MODEL.LOSS_FUNC bce_logit", "MODEL.LOSS_FUNC bce_logit is not read: LOSSES names the losses: a"),
        ("TRAIN.EVAL_PERIOD 5", ""),
        ("TRAIN.DATASET ssv2 EVALS.val.DATASET ssv2", ""),
        ("MODEL.LOSS_FUNC infonce", ""),
    ],
)
def test_words_typed_in_vain_are_told(written, caplog, words, said):
    given = written("EVALS: {val: {NAME: views, DATASET: kinetics, EVERY: 5}}\nLOSSES: {a: {NAME: infonce}}")
    cfg = config.load([given], words.split())
    assert cfg.EVALS.val.AT_TEST, "nothing is put under an evaluation that is given by name"
    assert [line[: len(said) + 14] for line in caplog.messages] == [f"command line: {said}"] * bool(said)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("AUG: {NUM_SAMPLE: 2}", "AUG.NUM_SAMPLE: not read, for AUG.ENABLE is off"),
        ("AUG: {ENABLE: false, NUM_SAMPLE: 2}", ""),
        ("AUG: {ENABLE: true, NUM_SAMPLE: 2}", ""),
        ("MIXUP: {LABEL_SMOOTH_VALUE: 0.1}", "MIXUP.LABEL_SMOOTH_VALUE: not read, for MIXUP.ENABLE is off; to smooth"),
        ("MIXUP: {ENABLE: false, LABEL_SMOOTH_VALUE: 0.1, PROB: 1.0}", ""),
        ("EMA: {DECAY: 0.99}", "EMA.DECAY: not read, for EMA.ENABLED is off"),
        ("SOLVER: {CLIP_GRAD_VAL: 0.5, CLIP_GRAD_L2NORM: 1.0}", "CLIP_GRAD_L2NORM 1 is not read: CLIP_GRAD_VAL 0.5"),
        ("SOLVER: {CLIP_GRAD_L2NORM: 1.0}", ""),
        (
            "MIXUP: {ENABLE: true}\nLOSSES: {a: {NAME: cross_entropy, LABEL_SMOOTHING: 0.1}}",
            "labels are smoothed twice: by LOSSES.a.LABEL_SMOOTHING and MIXUP.LABEL_SMOOTH_VALUE",
        ),
    ],
)
def test_pairs_of_keys_of_which_one_does_nothing_are_told(written, caplog, text, words):
    cfg = config.load([written(text)])
    assert any(words in line for line in caplog.messages) if words else not caplog.messages
    if "is off" in words:
        caplog.clear()
        config.load([written(config.dump(cfg), "again.yaml")])
        assert not caplog.messages
        key = words.split(":")[0]
        config.load([written(text)], [key, "3" if "NUM" in key else "0.5"])
        assert caplog.messages[0].startswith(f"command line: {key}: not read")


def test_one_key_of_the_one_loss_may_be_given():
    cfg = config.load([], ["LOSSES.cross_entropy.LABEL_SMOOTHING", "0.1"])
    assert dict(cfg.LOSSES.cross_entropy) == {
        "NAME": "cross_entropy",
        "WEIGHT": 1.0,
        "LABEL_SMOOTHING": 0.1,
        "CLASS_WEIGHTS": [],
    }


def test_words_typed_and_read_need_no_line(caplog):
    words = "TRAIN.EVAL_PERIOD 1 TRAIN.DATASET ssv2 TEST.DATASET ssv2 MODEL.LOSS_FUNC bce_logit"
    config.load([], words.split(" "))
    assert not caplog.messages


@pytest.mark.parametrize(
    ("text", "holder"),
    [
        ("LOSSES: {loss: {NAME: infonce}}", "LOSSES.loss: the sum of all losses in the log"),
        ("DATASETS: {all: {NAME: kinetics, NUM_CLASSES: 2}}", "DATASETS.all: what EVALS calls all data sets"),
    ],
)
def test_a_name_that_is_taken_is_refused(written, text, holder):
    assert f"{holder} has that name; give the entry another" in refusal(written(text))


QUICK = """
import contextlib, sys
from videorl.cli import train
for words in (["--help"], *(line.split() for line in sys.argv[1:])):
    with contextlib.suppress(SystemExit):
        train.main(words)
print("torch" in sys.modules)
"""


def test_mistakes_that_need_no_component_are_told_without_torch():
    said = {
        "TRAIN.BATCHSIZE 3": "unknown key TRAIN.BATCHSIZE; did you mean TRAIN.BATCH_SIZE?",
        "TRIAN.BATCH_SIZE 3": "unknown key TRIAN.BATCH_SIZE; did you mean TRAIN.BATCH_SIZE?",
        "TRAIN.BATCH_SIZE a": "TRAIN.BATCH_SIZE must be int, found 'a'",
        "TRAIN.BATCH_SIZE 0": "TRAIN.BATCH_SIZE 0: expected >= 1",
        "MODEL.MODEL_NAME MVit2": "MODEL.MODEL_NAME: unknown model 'MVit2'; did you mean MViT? (known: DualEncoder, ",
        "TEST.DATASET kinetcs": "TEST.DATASET: unknown dataset 'kinetcs'; did you mean kinetics? (known: activitynet, ",
        "LOSSES.a.NAME infonec": "LOSSES.a.NAME: unknown loss 'infonec'; did you mean infonce? (known: ",
        "LOSSES.loss.NAME infonce": "LOSSES.loss: the sum of all losses in the log has that name; give the entry ",
        "EVALS.a/b.NAME views": "EVALS.a/b: expected a name of at most 100 letters, digits, '_' and '-'",
        "EVALS.../../x.TYPE a": "unknown key 'EVALS.../../x.TYPE': expected names joined by one dot each",
    }
    ran = subprocess.run([sys.executable, "-c", QUICK, *said], capture_output=True, text=True, cwd=ROOT, check=True)
    starts = [f"error: command line: {words}" for words in said.values()]
    assert [line[: len(start)] for line, start in zip(ran.stderr.splitlines(), starts, strict=True)] == starts
    assert ran.stdout.splitlines()[-1] == "False"


def test_names_declared_in_the_text_are_those_registered():
    config.load()
    names, nodes = registry.declared()
    kinds = (DATASETS, BATCHES, MODELS, LOSSES, EVALS)
    ours = {what: [n for n in what if what[n].build.__module__.startswith("videorl.")] for what in kinds}
    assert names == {what.kind: set(found) for what, found in ours.items()}
    assert nodes == {what[name].node for what, found in ours.items() for name in found} - {""}


def test_home_is_found_in_values(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    cfg = config.load(overrides=["OUTPUT_DIR", "~/runs", "DATA.PATH_PREFIX", "~me", "TEXT.DICT", "a~/b"])
    assert (cfg.OUTPUT_DIR, cfg.DATA.PATH_PREFIX, cfg.TEXT.DICT) == ("/home/me/runs", "~me", "a~/b")
