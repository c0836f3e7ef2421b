"""Files that appear whole or not at all."""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

DRAFT = re.compile(r".+\.[0-9a-f]{8}\.tmp", re.DOTALL)


@contextlib.contextmanager
def writing(file: Path, *, lasting: bool = True) -> Iterator[BinaryIO]:
    """A new file that takes the place of `file` at the end; after an error `file` is as it was, and nothing is left.

    Each of several writers has a draft of its own, beside the file: the last one's stays. `lasting`: also after a power
    cut, for which one waits until the disk has it.
    """
    draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("xb") as out:
            yield out
            if lasting:
                out.flush()
                os.fsync(out.fileno())
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)


def write(file: Path, content: str | bytes, *, lasting: bool = True) -> None:
    """Text, in UTF-8, or bytes as the whole of a file."""
    with writing(file, lasting=lasting) as out:
        out.write(content.encode() if isinstance(content, str) else content)


def drafts(folder: Path) -> Iterator[Path]:
    """What killed processes, or such as write just now, have begun at any depth of a folder."""
    yield from (file for file in folder.rglob("*.tmp") if DRAFT.fullmatch(file.name) and file.is_file())
