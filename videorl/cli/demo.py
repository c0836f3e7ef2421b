"""Toy videos, a small model trained and tested on them, and its report: `videorl demo`.

Makes datasets/toy and runs/toy in the current folder; some minutes on two CPU cores. KEY VALUE pairs come after the
settings of videorl:toy/mvit.
"""

from videorl.cli import command, toy, train


def main(words: list[str] | None = None) -> None:
    parser = command.parser("demo", __doc__)
    command.add_overrides(parser)
    args = parser.parse_args(words)
    toy.main(["--out", "datasets/toy"])
    train.main(["--cfg", "videorl:toy/mvit", *args.overrides])
