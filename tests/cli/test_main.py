"""The command `videorl`: it knows all sub-commands, answers without torch, and the configs come with it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import videorl
from videorl import settings
from videorl.cli import configs, main

ROOT = Path(__file__).parents[2]


def said(capsys, *words) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main.main(list(words))
    return end.value.code or 0, *capsys.readouterr()


def test_every_module_is_a_command_and_has_a_door_where_it_had_one():
    modules = {file.stem.replace("_", "-") for file in (ROOT / "videorl/cli").glob("*.py")}
    assert modules - {"--init--", "main", "command"} == set(main.COMMANDS)
    for door in (ROOT / "tools").glob("*.py"):
        (name,) = re.findall(r"from videorl\.cli\.(\w+) import main", door.read_text())
        assert name.replace("_", "-") in main.COMMANDS


def test_help_lists_all_commands_without_torch():
    script = """if True:
        import sys
        from videorl.cli.main import main
        try:
            main(["--help"])
        finally:
            print({*sys.modules} & {"torch"})"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout.endswith("\nset()\n"), run.stderr
    assert all(re.search(rf"^  {name} ", run.stdout, re.MULTILINE) for name in main.COMMANDS)


def test_version(capsys):
    assert said(capsys, "--version")[:2] == (0, f"videorl {videorl.__version__}\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["exract"], "there is no command exract; did you mean extract?"),
        ([], "the following arguments are required: COMMAND"),
        (["configs", "nix"], "none of "),
    ],
)
def test_a_wrong_command_is_told_in_one_line(capsys, words, line):
    code, _, err = said(capsys, *words)
    assert code == 2
    assert line in err.splitlines()[-1]


def test_a_command_gets_its_own_words(capsys):
    main.main(["configs", "KINETICS", "mvitv2-s"])
    assert capsys.readouterr().out.startswith("videorl:Kinetics/MVITv2_S_16x4  MViTv2-S on Kinetics-400")


def test_every_config_begins_with_what_it_is():
    for name, file in settings.packaged().items():
        assert re.match(r"# [A-Z]", file.read_text()), name
        assert "python " not in configs.describe(file), name


def test_the_wheel_has_every_config_and_the_command():
    (call,) = (n for n in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if getattr(n, "func", None) and
               getattr(n.func, "id", "") == "setup")  # fmt: skip
    given = {k.arg: k.value for k in call.keywords}
    patterns = ast.literal_eval(given["package_data"])["videorl.configs"]
    folder = ROOT / ast.literal_eval(given["package_dir"])["videorl.configs"]
    assert {file for pattern in patterns for file in folder.glob(pattern)} == set(folder.rglob("*.yaml"))
    assert ast.literal_eval(given["entry_points"]) == {"console_scripts": ["videorl = videorl.cli.main:main"]}
