"""Rows of a checkpoint's head put in the order of the data at hand, by the names of the classes.

A head says by `class_axes()` which axes of which parameters are classes of which label space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from videorl.convert import kinetics710

Names = Mapping[str, Sequence[str]]  # label space -> names of its classes by number


@dataclass
class Match:
    """The classes of one label space, and how those of the file relate to them.

    `rows` [C]: the file's row of each class, -1 where it has none; None: rows stay as they are. `wrong` is why the file
    cannot be tested on these classes; `said` is worth knowing.
    """

    rows: Tensor | None = None
    said: str = ""
    wrong: str = ""


def names_in(state: Mapping) -> dict[str, list[str]]:
    """Class names by label space that a file carries ("" for a file that says no space), in a list of each.

    Published files mostly have none; those of transformers have `id2label` in their `config.json`.
    """
    entry = state.get("classes")
    settings = state.get("config.json")
    if entry is None and isinstance(settings, Mapping):
        entry = _by_number(settings.get("id2label"))
    if isinstance(entry, list | tuple):
        entry = {"": entry}
    if not isinstance(entry, Mapping):
        return {}
    found = {space: names for space, names in entry.items() if isinstance(names, list | tuple) and names}
    return {space: list(names) for space, names in found.items() if all(isinstance(name, str) for name in names)}


def _by_number(names: object) -> list[str]:
    """Of `{"0": name, …}`, where no number is missing and the names are not those that transformers makes up."""
    if not isinstance(names, Mapping) or set(names) != set(map(str, range(len(names)))):
        return []
    listed = [str(names[str(i)]) for i in range(len(names))]
    return [] if listed == [f"LABEL_{i}" for i in range(len(listed))] else listed


def of_spaces(names: Names, spaces: Sequence[str]) -> Names:
    """The names by the model's label spaces: where both have a single one, what it is called does not matter."""
    return {spaces[0]: next(iter(names.values()))} if len(spaces) == len(names) == 1 else names


def spaces_of(head: nn.Module) -> list[str]:
    """The label spaces of a model's head."""
    axes = head.class_axes().values() if hasattr(head, "class_axes") else ()
    return list(dict.fromkeys(space for row in axes for space in row if space))


def align(
    own: Mapping[str, Tensor], head: nn.Module, weights: Mapping[str, Tensor], theirs: Names, ours: Names | None
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The weights with the head's rows in the order of the class names `ours`, what to say, and what is wrong.

    `ours` None: there is no data with labels, and the model's classes are those of the file.
    Rows of classes that the file does not have keep the values in `own`, the model's state dict.
    """
    spaces = spaces_of(head)
    axes = {f"head.{name}": row for name, row in head.class_axes().items()} if spaces else {}
    theirs, labelled = of_spaces(theirs, spaces), ours is not None
    ours = of_spaces(ours, spaces) if labelled else theirs
    matches = {s: _match(s, axes, own, weights, theirs.get(s, ()), ours.get(s, ()), labelled) for s in spaces}
    aligned = dict(weights)
    for name, row in axes.items():
        rows = [matches[space].rows if space else None for space in row]
        if name in weights and any(r is not None for r in rows):
            aligned.pop(name)
            if (taken := _take(weights[name], own[name], rows)) is not None:
                aligned[name] = taken
    found = matches.values()
    return aligned, [m.said for m in found if m.said], [m.wrong for m in found if m.wrong]


def _match(space: str, axes, own, weights, theirs: Sequence[str], ours: Sequence[str], labelled: bool) -> Match:
    places = [(name, row.index(space)) for name, row in axes.items() if space in row]
    here = own[places[0][0]].shape[places[0][1]]
    sizes = [weights[name].shape[axis] for name, axis in places if name in weights and weights[name].ndim > axis]
    if not sizes:
        return Match(wrong=_no_head(space, weights, single=places[0][0].startswith("head.projection.")))
    known_there, known_here = _can_compare(theirs, sizes[0]), _can_compare(ours, here)
    if known_there and known_here:
        return _by_name(space, theirs, ours)
    if not theirs and (rows := kinetics710.rows(sizes[0], here)) is not None:
        return Match(
            rows,
            said=f"{space}: the file has the {sizes[0]} classes of Kinetics-710; its rows were taken by the published"
            f" list for Kinetics-{here}, and names could not be checked",
        )
    if sizes[0] != here:
        return Match(
            wrong=f"label space {space} has {here} classes here and {sizes[0]} in the file; set NUM_CLASSES of MODEL or"
            " of its entry in DATASETS"
        )
    if not labelled:
        return Match()
    where = "the data has" if known_there else "the file has" if known_here else "file and data have"
    return Match(said=f"{space}: classes taken by number; their names could not be checked, {where} none")


def _can_compare(names: Sequence[str], classes: int) -> bool:
    """Whether every class has a name of its own."""
    return len(set(names)) == len(names) == classes


def _by_name(space: str, theirs: Sequence[str], ours: Sequence[str]) -> Match:
    place = {name: row for row, name in enumerate(theirs)}
    if not all(name in place for name in ours):  # folders say `abseiling_down`, lists "Abseiling down"
        alike = {_folded(name): row for row, name in enumerate(theirs)}
        if len(alike) == len(theirs) and len(set(map(_folded, ours))) == len(ours):
            place = {name: alike[_folded(name)] for name in ours if _folded(name) in alike}
    rows = torch.tensor([place.get(name, -1) for name in ours])
    missing = [name for name in ours if name not in place]
    if missing:
        shown = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        some = "" if len(missing) < len(ours) else f"; the file's are {', '.join(theirs[:3])} …"
        return Match(rows, wrong=f"{space}: {len(missing)} of {len(ours)} classes are not in the file: {shown}{some}")
    if rows.tolist() == list(range(len(theirs))):
        return Match()
    return Match(rows, said=f"{space}: the file has its classes in another order; its rows were taken by name")


def _folded(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def _no_head(space: str, weights: Mapping[str, Tensor], *, single: bool) -> str:
    """Why the file has no classes of this space. `single`: it is the only one of the model."""
    heads = sorted({name.split(".")[2] for name in weights if name.startswith("head.heads.")})
    found = f"label space {space}: the file has"
    if not heads:
        one = "one head, of a single label space"
        return f"{found} {one if 'head.projection.weight' in weights else 'no head, as one of pre-training'}"
    if single:
        return f"{found} a head for each of {', '.join(heads)}; name these data sets in DATASETS"
    if space in heads:
        return f"{found} other layers in its head; set MULTI.HEAD_HIDDEN as there"
    return f"{found} heads for {', '.join(heads)} alone; call the data sets in DATASETS so"


def _take(value: Tensor, fresh: Tensor, rows: Sequence[Tensor | None]) -> Tensor | None:
    """`fresh` with the rows of `value` that each axis asks for; None where there are none, or the shapes forbid it."""
    if value.ndim != fresh.ndim:
        return None
    known, taken = [], []
    for axis, asked in enumerate(rows):
        if asked is None and value.shape[axis] != fresh.shape[axis]:
            return None
        asked = torch.arange(fresh.shape[axis]) if asked is None else asked
        known.append((asked >= 0).nonzero().flatten())
        taken.append(asked[asked >= 0])
        if not len(taken[-1]) or taken[-1].max() >= value.shape[axis]:
            return None
    filled = fresh.detach().cpu().clone()
    filled[torch.meshgrid(*known, indexing="ij")] = value[torch.meshgrid(*taken, indexing="ij")]
    return filled
