"""The rules of the house, read from the syntax trees: who imports whom, no unsafe loads, no cfg in components."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted(ROOT.glob("videorl/**/*.py"))
SOURCES = PACKAGE + sorted(ROOT.glob("tools/**/*.py")) + sorted(ROOT.glob("projects/**/*.py"))

# What each part of videorl may import of videorl, besides itself: packages (`data`), modules (`data.video`) or names.
MAY_IMPORT = {
    "spec": set(),
    "registry": set(),
    "atomic": set(),
    "console": {"registry"},
    "exits": {"registry", "console"},
    "dist": {"registry", "console", "exits"},
    "log": {"registry", "console", "atomic"},
    "metrics": set(),
    "settings": {"registry"},
    "config": {"registry", "spec", "dialect", "settings"},
    "dialect": {"registry", "settings"},
    "untrusted": {"registry"},
    "checkpoint": {"registry", "untrusted"},
    "convert": {"registry", "settings", "dialect"},
    # The way of a sample: file -> frames -> clip -> sample -> batch
    "video": {"registry", "spec"},
    "clip": {"registry", "spec"},
    "data": {"atomic", "registry", "spec", "video", "clip", "metrics.choice"},
    "loading": {"atomic", "registry", "spec", "video.errors", "clip.regions"},
    "models": {"registry", "spec", "untrusted", "metrics.pixels", "clip.masks.token_grid"},
    "losses": {"registry", "spec", "dist", "metrics"},
    "evals": {"registry", "spec", "metrics"},
    "report": {"atomic", "video", "metrics", "spec"},
    "toy": {"registry"},
    "prepare": {"atomic", "registry", "spec", "log", "video", "clip", "data", "loading"},
    "features": {
        *("atomic", "registry", "spec", "log", "video", "clip", "data.listed", "data.shards", "loading", "prepare"),
        *("config", "checkpoint", "engine.build", "engine.determinism", "engine.step", "engine.weights", "metrics"),
    },
    "fit": {"registry", "config", "data.lines", "video.folder", "prepare.files"},
    "predict": {
        *("registry", "spec", "config", "dist", "checkpoint", "convert", "report", "video", "data.listed", "loading"),
        *(
            "engine.best",
            "engine.build",
            "engine.determinism",
            "engine.evaluate",
            "engine.given",
            "engine.weights",
            "features",
        ),
        *("prepare.chunks", "atomic"),
    },
    "narrate": {
        *("registry", "spec", "config", "data", "video", "features", "loading.pool", "models.text", "prepare"),
        *("report", "engine.build", "engine.step", "atomic", "dist", "log"),
    },
    "align": {"registry", "spec", "data", "evals.alignment", "metrics"},
    "search": {
        *("atomic", "registry", "spec", "log", "report", "video", "data.text", "loading", "features", "engine.step"),
    },
    # The engine reaches components through the registries; these are none, but the way from samples to a step
    "engine": {
        *("registry", "spec", "settings", "config", "console", "exits", "dist", "checkpoint", "convert", "log"),
        *("metrics", "report", "atomic"),
        *("clip.masks", "clip.mixup", "clip.regions", "data.joint", "loading"),
    },
}
MAY_IMPORT["cli"] = set(MAY_IMPORT)
MAY_IMPORT["__main__"] = {"cli.main"}

# Calls that run code or read files that an input names. Methods of these names on other objects are not meant.
UNSAFE = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open"),
    *("joblib.load", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all"),
    *("torch.hub.load", "torch.distributed.checkpoint.load"),
}
UNSAFE_METHODS = {"merge_from_file", "load_cfg", "add_safe_globals"}

# (file, call): why it is safe there. One wrapper for each kind of file.
SAFE_WRAPPERS = {
    ("videorl/data/pickles.py", "pickle.Unpickler"): "its subclass calls nothing that the file names",
}

# Why a file renames files by itself. All others write whole files with `atomic`.
RENAMES = {
    "videorl/atomic.py": "it is the one",
    "videorl/checkpoint.py": "two files, the second of which commits the first",
    "videorl/prepare/chunks.py": "moves what was cut",
    "videorl/toy/scenes.py": "an encoder that takes names, and a mark that gets another one",
    "videorl/video/frame_cache.py": "counts the bytes of drafts, too",
}

LONGEST_FUNCTION = 70
# `file:function`: why it reads better in one piece.
LONG_FUNCTIONS = {}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _module(path: Path) -> str:
    """`videorl/video/reader.py` -> `videorl.video.reader`; a package's `__init__.py` -> the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path, tree: ast.Module) -> list[tuple[int, str]]:
    """(line, full dotted name) of every import in a file, lazy and relative ones included."""
    found = []
    package = _module(path) if path.name == "__init__.py" else _module(path).rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_module_of_ours(node.value):
            found.append((node.lineno, node.value))  # importlib.import_module("videorl.…")
    return found


def _is_module_of_ours(text: str) -> bool:
    if not text.startswith("videorl.") or not all(part.isidentifier() for part in text.split(".")):
        return False
    path = ROOT / text.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def _allowed(importer: str, imported: str) -> bool:
    """Whether module `importer` may import the name `imported` (both dotted, within videorl)."""
    own = importer.split(".")[1]
    target = imported.split(".")[1:]
    if not target or target[0] == own:
        return True
    return any(target[: len(rule.split("."))] == rule.split(".") for rule in MAY_IMPORT[own])


def _forbidden_imports(path: Path) -> list[str]:
    bad = []
    for line, imported in _imports(path, _tree(path)):
        top = imported.split(".")[0]
        if top in ("tools", "projects", "tests"):
            bad.append(f"{_name(path)}:{line} imports {imported}: videorl may not import {top}")
        elif top == "videorl" and not _allowed(_module(path), imported):
            bad.append(
                f"{_name(path)}:{line} imports {imported}: not among {sorted(MAY_IMPORT[_module(path).split('.')[1]])}"
            )
    return bad


def test_package_has_a_rule_for_each_module():
    units = {_module(path).split(".")[1] for path in PACKAGE if "." in _module(path)}
    assert units <= set(MAY_IMPORT), "add a rule to MAY_IMPORT"


def test_imports_follow_the_design():
    bad = [line for path in PACKAGE if "." in _module(path) for line in _forbidden_imports(path)]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("videorl.data.labelled", "videorl.video.reader.Video", True),
        ("videorl.data.labelled", "videorl.engine.train", False),
        ("videorl.models.mvit", "videorl.config.load", False),
        ("videorl.report.page", "videorl.video.reader.Video", True),
        ("videorl.report.page", "videorl.data.labelled", False),
        ("videorl.engine.train", "videorl.models.mvit.MViT", False),
        ("videorl.engine.train", "videorl.data.labelled.Kinetics", False),
        ("videorl.registry", "videorl.spec", False),
    ],
)
def test_import_rule_tells_allowed_from_forbidden(importer, imported, allowed):
    assert _allowed(importer, imported) is allowed


def test_what_others_wrote_reaches_no_terminal_as_it_is():
    """Names of files, labels, tensors go through `log.say` and log lines, which escape what a terminal would obey."""
    may_print = {"videorl/log.py", "videorl/console.py"}
    printing = {
        _name(path)
        for path in SOURCES
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    }
    assert {name for name in printing if not name.startswith("tools/bench/")} <= may_print


def test_no_drawers_for_leftovers():
    drawers = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert [_name(path) for path in SOURCES if path.stem in drawers or path.parent.name in drawers] == []


def test_each_module_says_what_it_is():
    silent = [_name(path) for path in SOURCES if _tree(path).body and not ast.get_docstring(_tree(path))]
    assert not silent, f"no docstring: {silent}"


def _aliases(path: Path, tree: ast.Module) -> dict[str, str]:
    """Local name -> full dotted name, for everything a file imports."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, aliases)}.{node.attr}"
    return "?"


def _is_unsafe(call: ast.Call, name: str) -> bool:
    """Whether a call of the function `name` may run code from a file or through a shell."""
    keywords = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
    given = {k.arg for k in call.keywords}
    if name == "torch.load":
        return keywords.get("weights_only") is not True
    if name in ("numpy.load", "np.load"):
        return "allow_pickle" in given and keywords.get("allow_pickle") is not False
    if "shell" in given and keywords.get("shell") is not False:
        return True
    return name in UNSAFE or ("." in name and name.rpartition(".")[2] in UNSAFE_METHODS)


def _unsafe_calls(path: Path, tree: ast.Module) -> list[tuple[int, str]]:
    aliases = _aliases(path, tree)
    calls = [(node, _dotted(node.func, aliases)) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    bases = [base for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases]
    found = [(call.lineno, name) for call, name in calls if _is_unsafe(call, name)]
    return found + [(base.lineno, _dotted(base, aliases)) for base in bases if _dotted(base, aliases) in UNSAFE]


def test_unsafe_loads_stand_in_their_wrappers_only():
    found = {(_name(path), name): line for path in SOURCES for line, name in _unsafe_calls(path, _tree(path))}
    bad = [f"{file}:{line} calls {name}" for (file, name), line in found.items() if (file, name) not in SAFE_WRAPPERS]
    assert not bad, "\n".join(bad)
    assert set(SAFE_WRAPPERS) <= set(found), "SAFE_WRAPPERS names calls that are gone"


def test_whole_files_are_written_by_atomic():
    found = set()
    for path in PACKAGE:
        tree = _tree(path)
        aliases = _aliases(path, tree)
        calls = {_dotted(node.func, aliases) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        found |= {_name(path)} if calls & {"os.replace", "os.rename"} else set()
    assert found == set(RENAMES)


@pytest.mark.parametrize(
    "line",
    [
        "import torch; torch.load('x.pt')",
        "import torch; torch.load('x.pt', weights_only=False)",
        "import torch as t; t.load('x.pt', weights_only=flag)",
        "from torch import load; load('x.pt')",
        "import pickle; pickle.loads(data)",
        "from pickle import load as read; read(file)",
        "import pickle\nclass U(pickle.Unpickler): pass",
        "import numpy as np; np.load('x.npy', allow_pickle=True)",
        "import yaml; yaml.load(text, yaml.Loader)",
        "eval(text)",
        "import os; os.system('ls')",
        "import subprocess; subprocess.run('ls', shell=True)",
        "cfg.merge_from_file('x.py')",
    ],
)
def test_unsafe_load_is_seen(line):
    assert len(_unsafe_calls(ROOT / "videorl/x.py", ast.parse(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "import torch; torch.load('x.pt', weights_only=True)",
        "model.eval()",
        "import re; re.compile('x')",
        "import numpy as np; np.load('x.npy')",
        "import yaml; yaml.safe_load(text)",
        "import subprocess; subprocess.run(['ls'])",
    ],
)
def test_safe_load_is_let_through(line):
    assert _unsafe_calls(ROOT / "videorl/x.py", ast.parse(line)) == []


def _functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_no_component_sees_the_config():
    bad = []
    for path in PACKAGE:
        if path.relative_to(ROOT).parts[1] not in ("data", "models", "losses", "evals", "metrics"):
            continue
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.arg) and node.arg in ("cfg", "config"):
                bad.append(f"{_name(path)}:{node.lineno} has a parameter {node.arg}")
    assert not bad, "\n".join(bad)


def _length(function: ast.FunctionDef) -> int:
    """Lines of the body without the docstring. A signature does not count: a component's is the list of its keys."""
    statements = function.body[ast.get_docstring(function) is not None :]
    return function.end_lineno - statements[0].lineno + 1 if statements else 0


def test_functions_are_short():
    lengths = {f"{_name(path)}:{f.name}": _length(f) for path in SOURCES for f in _functions(_tree(path))}
    long = {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION}
    assert set(long) == set(LONG_FUNCTIONS), f"longer than {LONGEST_FUNCTION} lines: {long}; listed: {LONG_FUNCTIONS}"
