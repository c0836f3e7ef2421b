"""Lists and captions as MIL-NCE publishes them: csv files with a header, whose paths start from a folder of videos."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from videorl.data.paths import check_inside
from videorl.registry import UserError

# What pandas, with which the published code reads these files, takes for a missing value: the text "nan".
MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
}


def text_of(cell: str) -> str:
    """The text that the published code makes of a cell."""
    return "nan" if cell in MISSING else cell


def read_columns(file: Path, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The cells of the columns `names` in each row. Raises OSError, and ValueError that says what is wrong."""
    with open(file, newline="", encoding="utf-8-sig") as lines:
        rows = csv.reader(lines)
        try:
            header = next(rows, [])
            if missing := [name for name in names if name not in header]:
                found = ",".join(header)[:80] or "an empty file"
                raise ValueError(f"no column {', '.join(missing)}; expected {','.join(names)}, found {found}")
            places = [header.index(name) for name in names]
            for row in rows:
                if row and len(row) <= max(places):
                    raise ValueError(f"line {rows.line_num}: {len(row)} cells, expected {len(header)}")
                if row:
                    yield tuple(row[place] for place in places)
        except csv.Error as error:
            raise ValueError(f"line {rows.line_num}: {error}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 text (byte {error.start})") from None


def read_list(file: str, names: Sequence[str], key: str) -> list[tuple[str, ...]]:
    """The rows of the list that config key `key` names. Raises `UserError`."""
    if not file:
        raise UserError(f"{key} is empty; name the csv file with the columns {','.join(names)}")
    try:
        rows = list(read_columns(Path(file), names))
    except OSError as error:
        raise UserError(
            f"{key} {file}: {error.strerror}; name the csv file with the columns {','.join(names)}"
        ) from None
    except ValueError as error:
        raise UserError(f"{key} {file}: {error}") from None
    if not rows:
        raise UserError(f"{key} {file} holds no rows")
    return rows


def checked_root(folder: str, key: str) -> str:
    """The absolute path of a folder of videos. Raises `UserError` unless it exists."""
    if not folder or not os.path.isdir(folder):
        raise UserError(f"{key} {folder!r} is no folder; name the one that the paths of the list start from")
    return os.path.abspath(folder)


def check_paths(paths: Sequence[str], file: str, allow_outside: bool) -> None:
    """Raises `UserError` for the first path that is empty or, unless that is allowed, leaves its folder."""
    for number, path in enumerate(paths, 1):
        try:
            if not path.strip() or "\0" in path:
                raise ValueError(f"{path!r} is no path")
            if not allow_outside:
                check_inside(path)
        except ValueError as error:
            raise UserError(f"{file}: row {number}: {error}") from None
