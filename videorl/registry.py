"""The five registries, and the schema that a registered thing gives by its own signature.

A registered callable is `thing(spec, ..., *, key=default, ...)`: its keyword-only parameters are its config keys.
The key `DEPTH` of a node is the parameter `depth`; type, range (`depth: Count`) and default come from the signature,
the meaning from the line `depth: ...` under `Keys:` in its docstring. A key that nobody reads can therefore not exist.
"""

import difflib
import functools
import importlib
import inspect
import operator
import pkgutil
import re
import sys
import typing
import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).parent
REQUIRED = inspect.Parameter.empty


def printable(text: str) -> str:
    """One line: names of files, and whatever others wrote, may hold line breaks and codes that a terminal obeys."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class UserError(Exception):
    """A mistake of the user: one line that says what was expected, what was found and what to change."""

    def __str__(self) -> str:
        return printable(super().__str__())


class Range:
    """What a number may be, in the one form that signatures, `defaults.yaml` and `--help-config` have in common.

    `>= 0, < 1`: bounds of a number, or of each number of a list. `2 numbers > 0, rising`: also how many the list has
    (`0 or 2 numbers`) and that none is below the one before it. `rows of a block, 3 numbers >= 1`: each list of a list
    begins with the number of a block, and this is about the others.
    """

    FORM = re.compile(
        r"(rows of a block, )?(?:(\d+)(?: or (\d+))? numbers?)? ?((?:[<>]=? -?[\d.e-]+(?:, )?)*)(rising)?"
    )
    HOLDS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}

    def __init__(self, text: str):
        match = self.FORM.fullmatch(text)
        if not text or not match:
            raise ValueError(f"range {text!r}: expected a form such as `>= 0, < 1` or `2 numbers > 0, rising`")
        self.text, self.rows, self.rising = text, bool(match[1]), bool(match[5])
        self.counts = {int(count) for count in match.group(2, 3) if count}
        self.bounds = [(sign, float(bound)) for sign, bound in re.findall(r"([<>]=?) ([^, ]+)", match[4])]

    def holds(self, value: object) -> bool:
        """None, of keys that may be empty, holds always."""
        if self.rows:
            return all(row and row[0] >= 0 and row[0] == int(row[0]) and self._holds(row[1:]) for row in value)
        return value is None or self._holds(value)

    def _holds(self, value) -> bool:
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if (self.counts and len(numbers) not in self.counts) or (self.rising and sorted(numbers) != list(numbers)):
            return False
        return all(self.HOLDS[sign](number, bound) for number in numbers for sign, bound in self.bounds)


# The usual ones, for signatures.
Count = typing.Annotated[int, Range(">= 1")]
Counts = typing.Annotated[tuple[int, ...], Range(">= 1")]
Whole = typing.Annotated[int, Range(">= 0")]
Positive = typing.Annotated[float, Range("> 0")]
NonNegative = typing.Annotated[float, Range(">= 0")]
Share = typing.Annotated[float, Range(">= 0, <= 1")]
ShareBelow1 = typing.Annotated[float, Range(">= 0, < 1")]


@dataclass(frozen=True)
class Key:
    """One config key: its upper-case name, type, default, meaning, the global key it is bound to, if any, and range."""

    name: str
    type: object
    default: object
    doc: str
    bound: str = ""
    range: Range | None = None


@dataclass(frozen=True)
class Entry:
    """A registered thing: how to build it, the node that holds its keys, and the keys."""

    name: str
    build: Callable
    node: str
    keys: Mapping[str, Key] = field(default_factory=dict)

    def __call__(self, *args, values: Mapping[str, object]):
        """Builds the thing from positional facts and a value for each of its keys (by upper-case name)."""
        return self.build(*args, **{name.lower(): value for name, value in values.items()})


def did_you_mean(name: str, known) -> str:
    """`; did you mean X?` for the nearest of the known names, or nothing."""
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


class Registry:
    """Names to registered things of one kind."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, *, node: str = "", **bound: str) -> Callable:
        """Decorator that registers a class or function under `name`.

        `node` is the config node that holds its keys. `bound` ties a parameter to a global key
        (`dropout="MODEL.DROPOUT_RATE"`) instead of giving it a key of its own, or to the node of a component that it
        is made of (`video="TIMESFORMER"`), whose keys and values are then one dict.
        """

        def decorate(thing):
            if name in self._entries:
                raise ValueError(
                    f"{self.kind} {name!r} is registered twice: by {self._entries[name].build} and {thing}"
                )
            self._entries[name] = Entry(name, thing, node, _keys_of(thing, bound))
            return thing

        return decorate

    def __getitem__(self, name: str) -> Entry:
        self.check(name, self._entries)
        return self._entries[name]

    def check(self, name: str, known: Collection[str]) -> None:
        """Raises `UserError` for a name that is not among the known ones."""
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(f"unknown {self.kind} {name!r}{hint} (known: {', '.join(sorted(known))})")

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)


DATASETS = Registry("dataset")
BATCHES = Registry("batches")
MODELS = Registry("model")
LOSSES = Registry("loss")
EVALS = Registry("eval")


def _keys_of(thing, bound: Mapping[str, str]) -> dict[str, Key]:
    """The keys of a thing; of a class whose constructor takes `**more` also those of its base."""
    keys = {name: replace(key, bound=bound.get(name.lower(), "")) for name, key in _parameters(thing).items()}
    if strange := {name.upper() for name in bound} - set(keys):
        raise TypeError(f"{thing}: bound names {sorted(strange)} are no keyword-only parameters")
    return keys


def _parameters(thing) -> dict[str, Key]:
    init = thing.__init__ if inspect.isclass(thing) else thing
    types, docs = typing.get_type_hints(init, include_extras=True), _key_docs(inspect.getdoc(thing) or "")
    parameters = inspect.signature(thing).parameters.values()
    more = inspect.isclass(thing) and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    keys = _parameters(thing.__base__) if more else {}
    for parameter in parameters:
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        name, key = parameter.name, parameter.name.upper()
        if name not in types:
            raise TypeError(f"{thing}: the keyword-only parameter {name!r} is a config key and needs a type annotation")
        doc = docs.get(name) or (keys[key].doc if key in keys else "")
        kind, limits = _without_range(types[name])
        keys[key] = Key(key, kind, parameter.default, doc, range=limits)
    return keys


def parameters_of(function: Callable) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function or method by name; read once, for it takes as long as a small layer."""
    plain = getattr(function, "__func__", function)
    if plain not in _SEEN:
        _SEEN[plain] = inspect.signature(function).parameters
    return _SEEN[plain]


_SEEN: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _without_range(kind) -> tuple[object, Range | None]:
    """`Annotated[int, Range(">= 1")]` -> int and the range."""
    if typing.get_origin(kind) is not typing.Annotated:
        return kind, None
    return kind.__origin__, next((extra for extra in kind.__metadata__ if isinstance(extra, Range)), None)


def _key_docs(doc: str) -> dict[str, str]:
    """The lines `name: meaning` (and their continuations) of the `Keys:` section of a docstring."""
    section = re.search(r"^Keys:\n((?:[ ]+.*\n?|\n)+)", doc, re.MULTILINE)
    docs, current = {}, None
    for line in section.group(1).splitlines() if section else []:
        start = re.match(r"^ {4}(\w+): (.*)$", line)
        if start:
            current = start.group(1)
            docs[current] = start.group(2).strip()
        elif current and line.strip():
            docs[current] += " " + line.strip()
    return docs


PACKAGES = ("data", "loading", "models", "losses", "evals")


def discover() -> None:
    """Imports every component of the package, so that each registers itself."""
    for package in PACKAGES:
        for module in pkgutil.iter_modules([str(HERE / package)], f"videorl.{package}."):
            importlib.import_module(module.name)


@functools.cache
def declared() -> tuple[dict[str, set[str]], set[str]]:
    """What `discover` registers: names by kind, and the nodes of their keys.

    Read from the text of the modules: importing them, and with them torch, takes seconds.
    """
    names, nodes = defaultdict(set), set()
    form = re.compile(r'^@([A-Z]+)\.register\("(\w+)"(?:, node="(\w+)")?', re.MULTILINE)
    for file in (file for package in PACKAGES for file in (HERE / package).glob("*.py")):
        for registry, name, node in form.findall(file.read_text(encoding="utf-8")):
            names[globals()[registry].kind].add(name)
            nodes |= {node} - {""}
    return names, nodes


def import_project(folder: Path) -> None:
    """Imports the .py files of `projects/<name>/`, which register what the project adds."""
    folder = folder.resolve()
    if not re.fullmatch(r"[A-Za-z0-9_]+", folder.name):
        raise UserError(
            f"project folder {folder.name!r}: expected a name of letters, digits and '_'; rename the folder"
        )
    root = str(folder.parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    for file in sorted(folder.glob("*.py")):
        name = f"{folder.parent.name}.{folder.name}.{file.stem}".removesuffix(".__init__")
        try:
            found = importlib.import_module(name).__file__
        except (ImportError, SyntaxError) as error:
            raise UserError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
        if Path(found).resolve() != file:
            raise UserError(f"{file}: {name} was already read from {found}; rename one of the folders")
