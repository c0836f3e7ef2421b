"""Lists as lines of text, a path and numbers in each, as people and pandas write them."""

import re
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import TypeVar

from videorl.data.paths import KEYS, OutsideError, Settings, shortened
from videorl.registry import UserError

Sample = TypeVar("Sample", bound=Hashable)


def read_lines(file: Path, settings: Settings = KEYS) -> list[tuple[int, str]]:
    """Number (from 1) and text of each line that is not blank. Raises `UserError`: no such file, or no UTF-8 text."""
    if not file.is_file():
        raise UserError(_missing_csv(file, settings))
    try:
        # Not splitlines, which also ends lines at characters that file names may hold.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _missing_csv(file: Path, settings: Settings) -> str:
    wanted = f"; set {settings.annotations} to the folder of {file.name}" * bool(settings.annotations)
    if not file.parent.is_dir():
        return f"annotation folder {file.parent.absolute()} does not exist{wanted}"
    there = ", ".join(sorted(p.name for p in file.parent.glob("*.csv"))) or "no csv file"
    lines = f"{wanted}, with lines `path label`" if wanted else ""
    return f"{file.absolute()} does not exist; the folder holds {there}{lines}"


def parse_lines(
    file: Path, lines: Iterable[tuple[int, str]], parse: Callable[[str], tuple[Sample, list[int]]], total: int
) -> list[tuple[Sample, list[int]]]:
    """What `parse` makes of each line: a sample and its labels.

    Raises `UserError` that counts the lines, of `total` in the file, for which `parse` raises `ValueError`, and those
    that give a sample other labels than a line before. Paths that leave the video folder have one cause: they are told
    once.
    """
    rows, wrong, outside = [], [], []
    seen: dict[Sample, tuple[int, list[int]]] = {}
    for number, line in lines:
        try:
            sample, labels = parse(line)
            first, before = seen.setdefault(sample, (number, labels))
            if before != labels:
                name = shortened(str(sample))
                raise ValueError(f"{name} has label {_joined(labels)}, but {_joined(before)} on line {first}")
            rows.append((sample, labels))
        except OutsideError as error:
            outside.append(f"{number}: {error}")
        except ValueError as error:
            wrong.append(f"{number}: {error}")
    if len(outside) > 1:
        outside = [f"{outside[0]} ({len(outside)} of {total} lines leave it)"]
    if wrong := outside + wrong:
        more = f" (and {len(wrong) - 5} more lines)" if len(wrong) > 5 else ""
        raise UserError(f"{file}:{'; line '.join(wrong[:5])}{more}")
    return rows


def _joined(labels: list[int]) -> str:
    return ",".join(map(str, labels))


def separator_of(text: str) -> str:
    r"""The separator that a user typed: `\t` in a shell is two characters, and means a tab."""
    return text.replace(r"\t", "\t")


def unquoted(cell: str) -> str:
    """A cell without the quotation marks that pandas puts around one that holds the separator."""
    cell = cell.strip()
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def split_label(line: str, separator: str) -> tuple[str, str] | None:
    """Path and label of a line, which only the path may hold the separator in, unless the label is quoted; or None."""
    line = line.rstrip()
    quoted = re.fullmatch(rf'(.*){re.escape(separator)}("[^"]*")', line, re.DOTALL)
    path, found, label = (quoted[1], separator, quoted[2]) if quoted else line.rpartition(separator)
    path = unquoted(path)
    return (path, unquoted(label)) if found and path.strip() else None


def line_of(path: str, separator: str, label: str) -> str:
    """The line that names a file. Raises `ValueError` for a file that no line of a list can name."""
    line = f"{path}{separator}{label}"
    try:
        line.encode()
    except UnicodeEncodeError:
        raise ValueError("its name is no UTF-8 text, which lists are; rename it") from None
    if re.search(r"[\r\n]", line):
        raise ValueError("its name holds a line break, at which a line of a list ends; rename it")
    if path.startswith("~/") or split_label(line, separator) != (path, unquoted(label)):
        raise ValueError("a list would name another file by its name (white space, quotation marks, ~); rename it")
    return line
