"""What the pages of this package share: templates that escape all text, and files that appear whole or not at all."""

import functools
from pathlib import Path

import jinja2

from videorl import atomic

HERE = Path(__file__).parent


@functools.cache
def templates() -> jinja2.Environment:
    """The templates of this package; they escape all text."""
    loader = jinja2.FileSystemLoader(HERE)
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def save(file: Path, text: str) -> None:
    """Writes a page that appears whole or not at all. Raises OSError."""
    # Names of files may hold bytes that are no UTF-8, which Python carries as lone surrogates.
    atomic.write(file, text.encode("utf-8", "backslashreplace"))
