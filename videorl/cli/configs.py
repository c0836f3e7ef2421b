"""Lists the configs that come with the package: `videorl configs [WORD …]`.

    videorl configs kinetics mvit           those whose name or description holds all of these words

A name that is listed stands wherever a config does: `videorl train --cfg videorl:Kinetics/MVITv2_S_16x4`, in a YAML of
yours `_BASE_: videorl:Kinetics/MVITv2_S_16x4`.
"""

from pathlib import Path

from videorl import exits, log, settings
from videorl.cli import command
from videorl.registry import UserError


def main(words: list[str] | None = None) -> None:
    parser = command.parser("configs", __doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="in the name or description, capitals or not")
    args = parser.parse_args(words)
    with exits.exit_codes():
        log.say(*listed(args.words))


def listed(words: list[str]) -> list[str]:
    """A line for each config: name and description. Raises `UserError` where none is left."""
    found = {settings.PACKAGED + name: describe(file) for name, file in settings.packaged().items()}
    wanted = {n: d for n, d in found.items() if all(word.lower() in f"{n} {d}".lower() for word in words)}
    if not wanted:
        raise UserError(f"none of {len(found)} configs holds {' and '.join(words)}; `videorl configs` lists all")
    width = max(map(len, wanted))
    return [f"{name:{width}}  {text}" for name, text in wanted.items()]


def describe(file: Path) -> str:
    """The first line of a config, which is a comment."""
    first, second = file.read_text(encoding="utf-8").split("\n")[:2]
    goes_on = second.startswith("# ") and not second.startswith("#  ") and not first.endswith((".", ":"))
    return first.lstrip("# ").rstrip(" :,;") + " …" * goes_on
