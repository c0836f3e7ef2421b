"""The package as installed: every module imports alone, and everything that is imported or read is declared."""

import ast
import fnmatch
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted(ROOT.glob("videorl/**/*.py"))
TOOLS = sorted(ROOT.glob("tools/**/*.py"))

# Import names that differ from the name of their distribution
DISTRIBUTIONS = {
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "open_clip": "open-clip-torch",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
}

IMPORT_ALL = """
import importlib, json, runpy, sys, traceback
modules, tools = json.load(sys.stdin)
failed = {}
for name in modules + tools:
    try:
        importlib.import_module(name) if name in modules else runpy.run_path(name, run_name="imported")
    except BaseException:
        failed[name] = traceback.format_exc(limit=-3)
print(json.dumps({"failed": failed, "loaded": sorted(name for name in sys.modules if "." not in name)}))
"""


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What one fresh interpreter, outside the repository, says after importing every module and tool."""
    run = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", IMPORT_ALL],
        input=json.dumps([[_module(path) for path in PACKAGE], [str(path) for path in TOOLS]]),
        capture_output=True,
        text=True,
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_every_module_and_tool_imports(imported):
    assert not imported["failed"], "\n".join(f"{name}: {trace}" for name, trace in imported["failed"].items())


def test_importing_loads_no_decoder_that_may_be_missing(imported):
    """decord crashes when it is loaded before torch, torchcodec fails without FFmpeg: both wait for a video."""
    assert not {"decord", "torchcodec"} & set(imported["loaded"])


def _setup() -> dict:
    """The constants and the keyword arguments of setup.py that are plain literals."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    found, literal = {}, (ast.Dict, ast.List, ast.Constant)
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, literal):
            found[node.targets[0].id] = ast.literal_eval(node.value)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            found |= {k.arg: ast.literal_eval(k.value) for k in node.value.keywords if isinstance(k.value, literal)}
    return found


def _distribution(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement).group().lower().replace("_", "-")


def _third_party(path: Path, nodes) -> dict[str, str]:
    """Distribution -> `file:line` for each absolute import among the nodes that is neither ours nor Python's."""
    found = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        else:
            continue
        for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"videorl"}:
            found[DISTRIBUTIONS.get(top, top)] = f"{path.relative_to(ROOT)}:{node.lineno}"
    return found


def _undeclared(nodes_of, declared: set[str]) -> dict[str, str]:
    used = {}
    for path in PACKAGE + TOOLS:
        used |= _third_party(path, nodes_of(ast.parse(path.read_text(encoding="utf-8"))))
    return {name: where for name, where in used.items() if name.lower().replace("_", "-") not in declared}


def test_imports_are_declared():
    setup = _setup()
    lists = [setup["INSTALL_REQUIRES"], *setup["EXTRAS_REQUIRE"].values()]
    declared = {_distribution(requirement) for requirements in lists for requirement in requirements}
    assert _undeclared(ast.walk, declared) == {}, "not declared in setup.py"


def test_imports_at_the_top_are_always_installed():
    """What a module needs to be imported must not be an extra, nor a dependency of some machines only."""
    always = {_distribution(r) for r in _setup()["INSTALL_REQUIRES"] if ";" not in r}
    assert _undeclared(lambda tree: tree.body, always) == {}, "import it inside the function that needs it"


def test_data_files_are_packaged():
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, names in _setup()["package_data"].items()
        for pattern in names
    ]
    files = [path for path in ROOT.glob("videorl/**/*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    names = [path.relative_to(ROOT).as_posix() for path in files]
    assert [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []


def test_each_folder_with_code_is_a_package():
    """find_packages sees only folders with an `__init__.py`: without one an installed videorl lacks the folder."""
    assert {path.parent for path in PACKAGE} <= {path.parent for path in PACKAGE if path.name == "__init__.py"}


def test_the_image_has_all_that_setup_reads():
    read = re.findall(r'HERE / "([^"/]+)', (ROOT / "setup.py").read_text())
    copied = re.findall(r"^COPY (.*) \S+$", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)
    assert read
    assert {*read, *_setup()["package_dir"].values()} <= set(" ".join(copied).split())
