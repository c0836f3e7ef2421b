"""Settings as the user writes them: leaves of YAML files and KEY VALUE pairs, each with its place, and their types."""

import ast
import itertools
import json
import logging
import math
import os
import re
import reprlib
import types
import typing
import unicodedata
from pathlib import Path

import yaml

from videorl import registry
from videorl.registry import UserError, did_you_mean

log = logging.getLogger("videorl")

HERE = Path(__file__).resolve().parent
PACKAGED = "videorl:"  # begins the name of a config that comes with the package
BASES = (("_BASE_",), ("includes",))  # what names the file that comes before; the second is MMPT's
MOST_KEYS = 10_000  # of one file
MOST_MERGED = 100  # nodes that one `<<` names: each can hold as many keys as a file


class Setting(typing.NamedTuple):
    """A value that a file or the command line gives to a key. `line` is 0 where there is none."""

    path: tuple[str, ...]
    value: object
    source: str
    line: int = 0

    @property
    def where(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


# --------------------------------------------------------------------------------------------------------- reading


def read_file(file: Path, seen: tuple[Path, ...] = ()) -> list[Setting]:
    """Settings of a YAML file, after those of its `_BASE_` (MMPT: `includes`); or those that a run left in run.json."""
    file = located(file).resolve()
    if file.suffix not in (".yaml", ".yml", ".json"):
        raise UserError(f"{file}: expected a .yaml file, or the run.json of a run; nothing else is read as a config")
    if not file.is_file():
        raise UserError(f"config file {file} does not exist; --cfg takes the path of a YAML file")
    if file in seen:
        raise UserError(f"{file}: _BASE_ goes round in a circle: {' -> '.join(p.name for p in (*seen, file))}")
    if file.parent.parent.name == "projects":
        registry.import_project(file.parent)
    settings = parse(file)
    base = [s for s in settings if s.path in BASES]
    inherited = read_file(_base_path(file, base[0]), (*seen, file)) if base else []
    return inherited + [s for s in settings if s.path not in BASES]


def _base_path(file: Path, setting: Setting) -> Path:
    (key,), base = setting.path, str(setting.value)
    if base.startswith(PACKAGED):
        return located(base)
    if re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]*:", base):
        raise UserError(f"{setting.where}: {key} {base!r}: expected the path of a file, or {PACKAGED}FOLDER/NAME")
    # MMPT's start from the folder that its programs are run in, which is above.
    folders = [file.parent] if key == "_BASE_" else file.parents
    found = next((folder / base for folder in folders if (folder / base).is_file()), None)
    if found is None:
        raise UserError(
            f"{setting.where}: {key} {base!r} names no file; expected an absolute path, or one from {file.parent} on"
        )
    return found


def located(file: str | Path) -> Path:
    """The file that is meant: a path as it stands, of `videorl:FOLDER/NAME` the config that comes with the package.

    Raises `UserError` where none comes under that name.
    """
    if not str(file).startswith(PACKAGED):
        return Path(file)
    name, there = str(file).removeprefix(PACKAGED).removesuffix(".yaml"), packaged()
    if name not in there:
        hint = did_you_mean(name, there) or "; `videorl configs` lists them"
        raise UserError(f"no config {PACKAGED}{name} comes with this package{hint}")
    return there[name]


def packaged() -> dict[str, Path]:
    """FOLDER/NAME to file of the configs that come with the package, or stand beside it in a clone."""
    folder = HERE / "configs" if (HERE / "configs").is_dir() else HERE.parent / "configs"
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.glob("*/*.yaml"))}


def parse(file: Path) -> list[Setting]:
    """Leaves of a YAML document, each with file and line. A key given twice: the last counts, as in PySlowFast."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    where = str(file)
    if file.suffix == ".json":
        text, where = _config_of_run(text, file), f"{file}: config"
    return parse_text(text, where)


def parse_text(text: str, where: str) -> list[Setting]:
    """Leaves of a YAML document that is called `where`. Raises `UserError` for what is none, or too large."""
    if len(text) > 1_000_000:
        raise UserError(f"{where}: {len(text)} characters; a config has at most 1,000,000")
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None or root.tag == "tag:yaml.org,2002:null":
            return []
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{where}: expected `KEY: value` lines, found a {root.id}")
        leaves = list(itertools.islice(_leaves(loader, root, (), where), MOST_KEYS + 1))
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:  # the others of odd tags
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())[:300]}") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    if len(leaves) > MOST_KEYS:
        raise UserError(f"{where}: more than {MOST_KEYS} keys, aliases counted each time")
    return leaves


class _Loader(yaml.SafeLoader):
    """YAML whose plain words are what they look like, as in YAML 1.2, and whose merges (`<<`) stay small.

    YAML 1.1 makes 83 of 0123, 90 of 1:30, a date of 2024-01-01, and Python gives up on integers of 4300 digits.
    """

    yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in known if tag.rpartition(":")[2] not in ("timestamp", "int", "float")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def flatten_mapping(self, node):
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge" and value.id == "sequence" and len(value.value) > MOST_MERGED:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: << names more than {MOST_MERGED} nodes")
        super().flatten_mapping(node)
        if len(node.value) > MOST_KEYS:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: more than {MOST_KEYS} keys, merged ones counted")


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]{0,18})$"), "-+0123456789")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?$|[-+]?\.inf$|\.nan$", re.IGNORECASE),
    "-+.0123456789",
)


def _config_of_run(text: str, file: Path) -> str:
    try:
        return str(json.loads(text)["config"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{file}: expected a .yaml file, or the run.json of a run, which holds its config") from None


def _leaves(loader, node, path, file):
    if len(path) > 20:
        raise UserError(f"{file}: nested more than 20 deep at {'.'.join(path[:5])}…")
    line = node.start_mark.line + 1
    if node.tag != loader.DEFAULT_MAPPING_TAG:
        raise UserError(f"{file}:{line}: the YAML tag {node.tag} is not read; write plain keys and values")
    _tell_doubles(node, path, file)
    loader.flatten_mapping(node)
    if not node.value and path:
        yield Setting(path, {}, str(file), line)
    last = {str(loader.construct_object(key_node)): (key_node, value_node) for key_node, value_node in node.value}
    for name, (key_node, value_node) in last.items():
        key = (*path, name)
        if isinstance(value_node, yaml.MappingNode):
            yield from _leaves(loader, value_node, key, file)
        else:
            yield Setting(key, loader.construct_object(value_node, deep=True), str(file), key_node.start_mark.line + 1)


def _tell_doubles(node, path, file) -> None:
    lines: dict[str, int] = {}
    for key_node, _ in node.value:
        name, line = ".".join((*path, str(key_node.value))), key_node.start_mark.line + 1
        if name in lines and name != "<<":
            log.warning("%s:%d: %s stands on line %d too; the last one counts", file, line, name, lines[name])
        lines[name] = line


def read_overrides(words: list[str]) -> list[Setting]:
    if len(words) % 2:
        raise UserError(
            f"overrides are pairs KEY VALUE; found an odd number of words, one is missing: {' '.join(words)}"
        )
    pairs = list(zip(words[::2], words[1::2], strict=True))
    for key, _ in pairs:
        if not all(key.split(".")):
            raise UserError(f"command line: unknown key {shown(key)}: expected names joined by one dot each")
    return [Setting(tuple(key.split(".")), value, "command line") for key, value in pairs]


# ------------------------------------------------------------------------------------------------------------ types


def convert(value: object, kind: object, name: str, where: str) -> object:
    """`value` as `kind`: text is read as YAML and Python would (`1e-4`, `(3, 7, 7)`, `None`), 4 is a float where one is
    due. Raises `UserError` naming key and place."""
    try:
        return _convert(value, kind)
    except (TypeError, ValueError, SyntaxError, OverflowError, RecursionError, MemoryError):
        words = [word for word in typing.get_args(kind) if isinstance(word, str)]
        hint = did_you_mean(value[:80], words) if isinstance(value, str) else ""
        raise UserError(f"{where}: {name} must be {type_name(kind)}, found {shown(value)}{hint}") from None


def shown(value: object) -> str:
    """Up to 80 characters of a value. Aliases can make it too large to be written out first."""
    return repr(value[:80]) if isinstance(value, str) else reprlib.repr(value)[:80]


def _convert(value, kind):
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is object or kind is typing.Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return None if _is_none(value) else _convert(value, next(a for a in args if a is not type(None)))
    if origin is typing.Literal:
        # YAML reads the words on and off as true and false.
        word = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
        chosen = _convert(word, type(args[0]))
        if chosen not in args:
            raise ValueError
        return chosen
    if origin in (list, tuple):
        return _convert_list(value, args)
    return {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str}[kind](value)


def _is_none(value):
    return value is None or (isinstance(value, str) and value.lower() in ("none", "null", "~"))


def _convert_list(value, args):
    if isinstance(value, str) and args[:1] == (str,) and value.strip()[:1] not in ("[", "("):
        return [value] if value.strip() else []  # one text is a list of one
    if isinstance(value, str):
        value = _read_list(value) if len(value) < 10_000 else None
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return [_convert(v, args[0] if args else object) for v in value]


def _read_list(text: str) -> object:
    """A list as Python writes it, or one of bare words as YAML does: `[/data/a, /data/b]`."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if not re.fullmatch(r"\s*\[[^\[\]{}'\"]*\]\s*", text):
            raise
        return [word.strip() for word in text.strip()[1:-1].split(",")]


def _to_bool(value):
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise TypeError
    return value


def _to_int(value):
    number = _to_float(value)
    if number != int(number) or abs(number) >= 2**63:
        raise ValueError
    return int(value) if isinstance(value, (int, str)) and str(value).lstrip("+-").isdigit() else int(number)


def _to_float(value):
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _to_str(value):
    """Text as it is; `~/` at its beginning is the home folder, as in a shell."""
    if value is None or (isinstance(value, str) and value == "None"):
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError
    # Neither a file nor a terminal takes control characters, or halves of characters.
    if any(unicodedata.category(c) in ("Cc", "Cs") and c != "\t" for c in str(value)):
        raise ValueError
    return os.path.expanduser(value) if str(value).startswith("~/") else str(value)


def type_name(kind) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(str(word) or '""' for word in typing.get_args(kind))
    return getattr(kind, "__name__", str(kind)) if not typing.get_args(kind) else str(kind).replace("typing.", "")
