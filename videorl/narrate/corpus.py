"""Narrations of a list, finished: one file of rows, and on request LaViLa's pickle of tuples."""

import json
import math
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from videorl import atomic
from videorl.registry import UserError

FORMATS = ("jsonl", "parquet")
TUPLES = "total.pkl"
QUARANTINE = "quarantine.jsonl"
AT_ONCE = 4096  # rows that are written together


def write(out: Path, rows: Iterable[dict], form: str, *, tuples: bool) -> dict[str, int]:
    """Writes `narrations.FORM`, `quarantine.jsonl` and, with `tuples`, `total.pkl`; how many `clips` are in it, how
    many of them `without words`, how many `bad`.

    A tuple is (video, start, end, texts, perplexities of a token of each), as LaViLa's narrators leave them.
    """
    count, listed = Counter({"clips": 0, "without words": 0, "bad": 0}), []
    with ExitStack() as stack:
        table, bad = (stack.enter_context(atomic.writing(out / name)) for name in (f"narrations.{form}", QUARANTINE))
        add = _table(table, form, stack)
        for some in _some(rows):
            good = [row for row in some if "bad" not in row]
            add(good)
            bad.write(b"".join(line(row) for row in some if "bad" in row))
            listed += map(_tuple, good) if tuples else ()
            silent = sum(not any(text.split() for text in row["texts"]) for row in good)
            count.update({"clips": len(good), "without words": silent, "bad": len(some) - len(good)})
    if tuples:
        write_list(out / TUPLES, listed)
    return dict(count)


def write_list(file: Path, rows: list[tuple]) -> None:
    """A list as LaViLa publishes them."""
    with atomic.writing(file) as out:
        pickle.dump(rows, out, protocol=4)


def line(row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _some(rows: Iterable[dict]) -> Iterator[list[dict]]:
    some = []
    for row in rows:
        some.append(row)
        if len(some) == AT_ONCE:
            yield some
            some = []
    yield some


def _table(file: BinaryIO, form: str, stack: ExitStack):
    if form == "jsonl":
        return lambda rows: file.write(b"".join(map(line, rows)))
    arrow, parquet = _arrow()
    schema = arrow.schema(
        [
            *(("number", arrow.int64()), ("video", arrow.string()), ("start", arrow.float64())),
            *(("end", arrow.float64()), ("texts", arrow.list_(arrow.string()))),
            *(("log_likelihoods", arrow.list_(arrow.float64())), ("tokens", arrow.list_(arrow.int32()))),
        ]
    )
    writer = stack.enter_context(parquet.ParquetWriter(file, schema))
    return lambda rows: writer.write_table(arrow.Table.from_pylist(rows, schema)) if rows else None


def _arrow():
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError("--format parquet needs pyarrow, which is not here: pip install 'videorl[parquet]'") from None
    return pyarrow, parquet


def check(form: str) -> None:
    """Raises `UserError` where what `form` needs is not installed, before hours of work."""
    if form == "parquet":
        _arrow()


def _tuple(row: dict) -> tuple:
    perplexities = [math.exp(-likely / tokens) for likely, tokens in zip(row["log_likelihoods"], row["tokens"])]
    return row["video"], row["start"], row["end"], row["texts"], perplexities
