"""The README's commands: each one parses and its config loads; the small ones are run, on a toy set of a few clips."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from videorl import config
from videorl.data import toy

ROOT = Path(__file__).parents[1]
COMMANDS = re.sub(r" \\\n\s+", " ", (ROOT / "README.md").read_text())
COMMANDS += (ROOT / "projects/README.md").read_text()
COMMANDS = [shlex.split(line, comments=True) for line in re.findall(r"^\s+python (tools/.*)$", COMMANDS, re.MULTILINE)]
SMALL = ["TRAIN.BATCH_SIZE", "4", "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "DATA_LOADER.NUM_WORKERS", "0"]
SMALL += ["NUM_GPUS", "0", "TEST.NUM_ENSEMBLE_VIEWS", "1", "TEST.NUM_SPATIAL_CROPS", "1"]


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """A toy set of 16 + 8 + 8 clips."""
    out = tmp_path_factory.mktemp("toy") / "set"
    toy.make_set(out, counts={"train": 16, "val": 8, "test": 8})
    return out


def tool(name: str):
    """The module of tools/`name`.py."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run(monkeypatch, capsys, name: str, *words) -> str:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, words)])
    tool(name).main()
    return capsys.readouterr().out


def test_commands_were_found():
    assert {Path(words[0]).stem for words in COMMANDS} >= {
        "run_net",
        "make_toy",
        "check_dataset",
        "bench_data",
        "bench_step",
    }


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_names_what_exists(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert Path(words[0]).is_file()
    if "run_net" in words[0] and "X.yaml" not in words:
        args = tool("run_net").parse(words[1:])
        if args.help_config is not None:
            assert config.describe(args.help_config)
        else:
            assert config.load(args.cfg, args.overrides).MODEL.MODEL_NAME


def test_example_project_trains_and_reports(few, tmp_path, monkeypatch, capsys):
    words = [
        "--cfg",
        "projects/example/example.yaml",
        "DATA.PATH_TO_DATA_DIR",
        few,
        "OUTPUT_DIR",
        tmp_path / "run",
        *SMALL,
    ]
    run(monkeypatch, capsys, "run_net", *words)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["evals"]["test"]["n"] == results["evals"]["test"]["of"] == 8
    assert "focal" in (tmp_path / "run/metrics.jsonl").read_text()
    assert (tmp_path / "run/report.html").stat().st_size > 10_000


def test_help_config_says_type_default_and_meaning(monkeypatch, capsys):
    shown = run(monkeypatch, capsys, "run_net", "--help-config", "MVIT.DEPTH")
    assert "MVIT.DEPTH" in shown
    assert "int" in shown
    assert "blocks" in shown


def test_bench_data_prints_json(few, monkeypatch, capsys):
    words = ["--cfg", "configs/toy/mvit.yaml", "--samples", 2, "DATA.PATH_TO_DATA_DIR", few, *SMALL]
    found = json.loads(run(monkeypatch, capsys, "bench_data", *words))
    assert found["cpu_seconds_per_sample"]["auto"]["total"] > 0
    assert found["loader"]["clips_per_second"] > 0


def test_bench_step_prints_json(monkeypatch, capsys):
    found = json.loads(run(monkeypatch, capsys, "bench_step", "--cfg", "configs/toy/mvit.yaml", "--steps", 1, *SMALL))
    assert found["models"]["videorl float32"]["seconds"]["step"] > 0
