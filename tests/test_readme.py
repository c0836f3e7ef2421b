"""The READMEs' commands: each one parses and its config loads; the small ones are run, on a toy set of a few clips."""

import argparse
import functools
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from videorl import config
from videorl.cli import main as cli
from videorl.toy import scenes

ROOT = Path(__file__).parents[1]
READMES = [ROOT / name for name in ("README.md", "projects/README.md", "datasets/README.md")]
TEXT = "\n".join(file.read_text() for file in [*READMES, *sorted(ROOT.glob("configs/*/README.md"))])
LINES = re.findall(r"^(?: *python (?=tools/)| +(?=videorl [a-z]))(.*)$", re.sub(r" \\\n\s+", " ", TEXT), re.MULTILINE)
COMMANDS = [shlex.split(line, comments=True) for line in LINES]
SMALL = ["TRAIN.BATCH_SIZE", "4", "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "DATA_LOADER.NUM_WORKERS", "0"]
SMALL += ["NUM_GPUS", "0", "TEST.NUM_ENSEMBLE_VIEWS", "1", "TEST.NUM_SPATIAL_CROPS", "1"]


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """A toy set of 16 + 8 + 8 clips."""
    out = tmp_path_factory.mktemp("toy") / "set"
    scenes.make_set(out, counts={"train": 16, "val": 8, "test": 8})
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
    tools = {file.relative_to(ROOT).as_posix() for file in (ROOT / "tools").glob("**/*.py")}
    assert tools - {words[0] for words in COMMANDS} <= {"tools/bench/spans.py"}


class Parsed(Exception):
    """Carries what a tool has read of its command, before it does anything."""


def parsed(words: list[str], monkeypatch) -> dict:
    def stop(parse):
        def parse_and_stop(*args):
            raise Parsed(parse(*args))

        return parse_and_stop

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stop(getattr(argparse.ArgumentParser, name)))
    monkeypatch.setattr(cli, "parse", lambda given: argparse.Namespace(command=given[0]))
    monkeypatch.setattr(sys, "argv", words)
    if words[0] == "videorl":
        main = functools.partial(cli.main, words[1:])
    else:
        main = tool(words[0].removeprefix("tools/").removesuffix(".py")).main
    with pytest.raises(Parsed) as stopped:
        main()
    return vars(stopped.value.args[0])


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_parses_and_its_config_loads(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = parsed(words, monkeypatch)
    if args.get("help_config") is not None:
        assert config.describe(args["help_config"], args["cfg"] or [])
    elif args.get("cfg") and "X.yaml" not in words:
        files = [args["cfg"]] if isinstance(args["cfg"], str) else args["cfg"]
        assert config.load(files, args["overrides"] if "overrides" in args else args["opts"]).MODEL.MODEL_NAME


# README with a table of published flags -> the config that its settings are for.
FLAGS = {
    "HowTo100M": "HowTo100M/S3D_MILNCE.yaml",
    "SSv2": "SSv2/VIDEOMAE_VITB_16x2_FT.yaml",
    "Ego4D": "Ego4D/TSF_B_CLIP.yaml",
}
ROWS = [
    (folder, row.split("|")[2])
    for folder in FLAGS
    for row in re.findall(
        r"^\| [^|]*`--[^|]*\|[^|]*\|$", (ROOT / f"configs/{folder}/README.md").read_text(), re.MULTILINE
    )
]


def test_tables_of_flags_were_found():
    assert {folder for folder, _ in ROWS} == set(FLAGS)
    assert len(ROWS) > 60


@pytest.mark.parametrize(("folder", "cell"), ROWS)
def test_what_stands_for_a_flag_are_settings(folder, cell):
    """Each key is one, and takes the value beside it; a capital letter is any value."""
    for text in re.findall(r"`([A-Z][A-Z_0-9]*(?:\.\w+)* [^`]*)`", cell):
        words = shlex.split(text)
        given = [
            "1" if re.fullmatch("[A-Z]", w) and not words[k - 1].endswith("SIZE") else w for k, w in enumerate(words)
        ]
        config.load([ROOT / "configs" / FLAGS[folder]], given)
    for key in re.findall(r"`([A-Z_0-9]+\.[A-Z_0-9.]+)`", cell):
        assert key.startswith("EVALS.") or config.describe(key)


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
    pytest.importorskip("torchcodec")
    found = json.loads(run(monkeypatch, capsys, "bench/data", "--baseline", "decoder", *words))
    assert found["cpu_seconds_per_sample"]["pyav"]["total"] > 0
    assert found["samples_per_second"]["pyav"]["ratio"] > 0
    assert found["loader"]["clips_per_second"] > 0


def test_bench_step_prints_json(monkeypatch, capsys):
    found = json.loads(run(monkeypatch, capsys, "bench/step", "--cfg", "configs/toy/mvit.yaml", "--steps", 1, *SMALL))
    assert found["models"]["videorl float32"]["seconds"]["step"] > 0


def test_bench_step_times_masked_models(monkeypatch, capsys):
    words = ["--cfg", "configs/toy/videomae_pt.yaml", "--batch", 2, "--steps", 1, "NUM_GPUS", 0]
    found = json.loads(run(monkeypatch, capsys, "bench/step", *words))
    assert found["models"]["videorl float32"]["seconds"]["step"] > 0
    assert found["giga_multiply_adds"] > 0


def test_bench_narrate_prints_json(monkeypatch, capsys):
    words = ("--returns", 2, "--tokens", 4, "--rounds", 1, "--layers", 1)
    found = json.loads(run(monkeypatch, capsys, "bench/narrate", *words))
    assert found["texts_a_second"].keys() == {"ours", "uncached", "transformers"}


def test_bench_train_prints_json(few, monkeypatch, capsys):
    words = ["--cfg", "configs/toy/mvit.yaml", "--steps", 1, "--peak", 0.5, "DATA.PATH_TO_DATA_DIR", few, *SMALL]
    words += ["AUG.ENABLE", "True", "AUG.NUM_SAMPLE", 2]
    found = json.loads(run(monkeypatch, capsys, "bench/train", *words))
    assert (found["videos_a_step"], found["copies"], found["workers"]) == (4, 2, 0)
    assert set(found["synthetic"]) == {"trained_per_second", "mfu"}
    assert set(found["loader"]) == {"decoded_per_second", "made_per_second"}
    both = found["training"]
    assert both["trained_per_second"] == pytest.approx(2 * both["decoded_per_second"], abs=0.02)
    used = 3 * 2 * found["giga_multiply_adds"] * 1e9 * both["trained_per_second"]
    assert both["mfu"] == pytest.approx(used / 0.5e12, rel=0.05)
