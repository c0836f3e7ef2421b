"""What becomes of a published key that videorl does not have under that name."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from videorl.settings import Setting, convert

Last = Mapping[str, Setting]  # dotted key -> the setting that counts, which is the last one


@dataclass(frozen=True)
class Rule:
    """`needs`: the switch without which the published code does not read the key."""

    needs: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Ignored(Rule):
    """Results do not depend on it, or not here."""

    why: str


@dataclass(frozen=True)
class Renamed(Rule):
    """Its value goes to other keys."""

    to: tuple[str, ...]


@dataclass(frozen=True)
class Values(Rule):
    """A key that both have: some published values have other names here."""

    ours: Mapping[object, object]

    def of(self, value: object) -> object:
        """Our name of a value; the value itself where it has no other."""
        value = plain(value)
        return self.ours.get(value, value) if isinstance(value, str | float | int | None) else value


@dataclass(frozen=True)
class Combined(Rule):
    """Becomes other keys together with others: see `made` of its family."""

    into: str


@dataclass(frozen=True)
class Unsupported(Rule):
    """videorl does not do it. `off`: values that ask for nothing. `refused`: with others results would be different."""

    means: str
    off: tuple = ()
    refused: bool = False


class Made(NamedTuple):
    """A setting that follows from published ones (`by`). It stands where the last of those stood, or in `front`.

    `said`: what the log says of it, where the rules of those keys do not.
    """

    path: str
    value: object
    by: tuple[str, ...]
    said: str = ""
    front: bool = False


def rows(node: str, names: str, rule: Rule) -> dict[str, Rule]:
    """The same rule for several keys of a node."""
    return {f"{node}.{name}": rule for name in names.split()}


def plain(value: object) -> object:
    """A value as a Python literal: the texts "False", "None", "1e-4" and "(1, 2)" are read. Tuples become lists."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval({"true": "True", "false": "False", "null": "None"}.get(value.lower(), value))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return value
    return list(value) if isinstance(value, tuple) else value


def given(last: Last, name: str, default: object, kind: object = None):
    """The value that counts of a key, of the default's type unless `kind` names one. Raises `UserError`."""
    setting = last.get(name)
    return default if setting is None else convert(setting.value, kind or type(default), name, setting.where)


def is_on(last: Last, switch: str) -> bool:
    return bool(given(last, switch, False))
