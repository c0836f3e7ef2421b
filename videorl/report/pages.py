"""What the pages of this package share: templates that escape all text, and files that appear whole or not at all."""

import functools
from pathlib import Path

import jinja2
from markupsafe import Markup

from videorl import atomic

HERE = Path(__file__).parent


@functools.cache
def templates(folder: Path = HERE) -> jinja2.Environment:
    """The templates of a folder; they escape all text, and `style` is that of all pages."""
    loader = jinja2.FileSystemLoader(folder)
    made = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    made.globals["style"] = Markup((HERE / "style.css").read_text(encoding="utf-8"))
    return made


def save(file: Path, text: str) -> None:
    """Writes a page that appears whole or not at all. Raises OSError."""
    # Names of files may hold bytes that are no UTF-8, which Python carries as lone surrogates.
    atomic.write(file, text.encode("utf-8", "backslashreplace"))
