"""The account of a checkpoint's tensors: what of a model it gave, what of it was not used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

SHOWN = 4  # names on a line of the table


@dataclass
class Audit:
    """What became of the tensors of a file, by their names in the model (`unexpected`: by the layout's).

    `part` is the share of the model's numbers (parameters and buffers) that were loaded; those in `fresh` do not count.
    `differs` are lines on settings that this run has otherwise, `said` others, of classes mostly, `wrong` those that
    forbid to test with this file.
    """

    source: str
    tensors: int
    part: float
    loaded: list[str]
    misfits: dict[str, str]  # name -> found and expected shape
    missing: list[str]
    unexpected: list[str]
    fresh: list[str]
    layout: str = ""
    renamed: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    interpolated: dict[str, str] = field(default_factory=dict)  # name -> shape in the file and here, without channels
    made_new: list[str] = field(default_factory=list)  # fixed tables of positions, for the clips here
    differs: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line: the part that was loaded, and names of what did not fit."""
        line = self._headline()
        misfits = [f"{name} {shapes}" for name, shapes in self.misfits.items()]
        for what, names in (("of another shape", misfits), ("missing", self.missing), ("not used", self.unexpected)):
            if names:
                line += f"; {len(names)} {what}: {_first(names, 3)}"
        return line

    def text(self) -> str:
        """A readable table for the log."""
        rows = {
            "renamed": self.renamed,
            "reshaped": self.reshaped,
            "made new": self.made_new,
            "interpolated": [f"{name} {shapes}" for name, shapes in self.interpolated.items()],
            "other shape": [f"{name} {shapes}" for name, shapes in self.misfits.items()],
            "missing": self.missing,
            "unexpected": self.unexpected,
            "not counted": self.fresh,
        }
        lines = [f"{self._headline()}, layout of {self.layout}"]
        lines += [f"    {what:<13}{len(names):>4}  {_first(names, SHOWN)}" for what, names in rows.items() if names]
        return "\n".join(lines + [f"    {line}" for line in self.differs + self.said + self.wrong])

    def _headline(self) -> str:
        loaded = f"{len(self.loaded)} of {self.tensors} tensors"
        return f"{self.source}: {100 * self.part:.1f} % of the model's numbers loaded ({loaded})"


def compare(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str, aside: Sequence[str] = ()) -> Audit:
    """The audit of `weights` for a model with the state dict `own`.

    What is not loaded and begins with one of the texts `aside` does not count.
    """
    loaded = [name for name in own if name in weights and _misfit(weights[name], own[name]) == ""]
    fresh = [name for name in own if name.startswith(tuple(aside)) and name not in loaded]
    counted = sum(value.numel() for value in own.values()) - sum(own[name].numel() for name in fresh)
    return Audit(
        source=source,
        tensors=len(own),
        part=sum(own[name].numel() for name in loaded) / max(counted, 1),
        loaded=loaded,
        misfits={name: text for name in own if name in weights and (text := _misfit(weights[name], own[name]))},
        missing=[name for name in own if name not in weights],
        unexpected=[name for name in weights if name not in own],
        fresh=fresh,
    )


def _misfit(found: Tensor, wanted: Tensor) -> str:
    if found.shape != wanted.shape:
        return f"{tuple(found.shape)} for {tuple(wanted.shape)}"
    return "" if same_kind(found, wanted) else f"{_kind(found)} for {_kind(wanted)}"


def same_kind(found: Tensor, wanted: Tensor) -> bool:
    """Whether both are floats, or both whole numbers."""
    return (found.is_floating_point(), found.is_complex()) == (wanted.is_floating_point(), wanted.is_complex())


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _first(names: Sequence[str], count: int) -> str:
    return f"{', '.join(names[:count])}{' …' if len(names) > count else ''}"
