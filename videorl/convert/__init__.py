"""Weights of checkpoint files, ours or published, put into a model, with an account of every tensor.

A published layout is one file of this package, an ordinary module with `NAME`, `matches(names) -> bool` and
`rename(weights, model) -> weights`: the weights under our names, tensors as they are (split or joined where ours are).
It may have `afresh(names) -> beginnings of names`: what such a file leaves to the first values when training starts
from it, `says(state, weights) -> settings`: what such a file, or its kind, says of itself (see `facts`), and `LEFT`, a
table of tensors that `rename` leaves out, with the reason.
"""

import functools
import importlib
import logging
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType

from torch import Tensor, nn

from videorl.convert import classes
from videorl.convert.audit import Audit, compare, same_kind
from videorl.registry import UserError

log = logging.getLogger("videorl")

LEAST = 0.95  # part of the model that a file must give
WRAPPERS = ("model_state", "state_dict", "model_state_dict", "model", "module")
AVERAGES = ("ema_state", "model_ema", "model_ema_state", "state_dict_ema", "ema")
OURS = "this toolkit"
ClassNames = Mapping[str, Sequence[str]]  # label space -> names of its classes by number
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Choice:
    """What the user says of a file: which entry of it, texts to take out of names, and the clips it was made for."""

    entry: str = ""
    clear: Sequence[str] = ()
    clip: Grid | None = None  # frames, rows, columns


AS_IT_IS = Choice()


def load(
    model: nn.Module,
    state: dict,
    source: str,
    *,
    data: ClassNames | None = None,
    testing: bool = False,
    partial: bool = False,
    choice: Choice = AS_IT_IS,
) -> None:
    """Puts the weights in `state` (what `checkpoint.read` gives) into `model`: `fit`, then `put`.

    `data`: the class names of the data at hand, where known.
    """
    weights, audit = fit(model, state, source, data=data, testing=testing, choice=choice)
    put(model, weights, audit, testing=testing, partial=partial)


def put(model: nn.Module, weights: Mapping[str, Tensor], audit: Audit, *, testing: bool, partial: bool) -> None:
    """Logs the audit and puts what `fit` found into `model`.

    Raises `UserError`, with the model as it was, where that is too little (see `accept`) and `partial` does not allow
    it.
    """
    worth_a_look = audit.missing or audit.misfits or audit.differs
    log.log(logging.WARNING if worth_a_look else logging.INFO, audit.text(), extra={"table": True})
    accept(audit, testing=testing, partial=partial)
    model.load_state_dict(weights, strict=False)


def load_exactly(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Puts weights of the same model into `model`. Raises `UserError` when names or shapes differ in any way."""
    audit = compare(model.state_dict(), weights, source)
    if audit.misfits or audit.missing or audit.unexpected:
        raise UserError(
            f"{audit.summary()}; expected just this model's: is it a checkpoint of this model and these classes?"
        )
    model.load_state_dict(weights)
    log.info(audit.summary())


def accept(audit: Audit, *, testing: bool, partial: bool) -> None:
    """Raises `UserError` where a file gives too little, or only warns if `partial` is true.

    To test a model, all of it and the classes of the data are needed; to train it on, 95 % of what is not its head.
    """
    least = 1.0 if testing else LEAST
    unused = [name for name in audit.unexpected if not name.startswith("head.")]
    if testing and audit.wrong:
        reason = f"{audit.source}: {'; '.join(audit.wrong)}"
    elif audit.part < least:
        expected = f"expected at least {100 * least:.0f} %"
        reason = f"{audit.summary()}; {expected}: is it a checkpoint of this model and these classes?"
    elif testing and unused:
        named = f"{', '.join(unused[:3])}{' …' if len(unused) > 3 else ''}"
        reason = f"{audit.source} has {len(unused)} tensors that this model has no place for ({named}): other settings?"
    else:
        return
    if not partial:
        raise UserError(f"{reason} (MODEL.ALLOW_PARTIAL True takes it as it is)")
    log.warning("%s; taken as it is (MODEL.ALLOW_PARTIAL)", reason)


def fit(
    model: nn.Module,
    state: dict,
    source: str,
    *,
    data: ClassNames | None = None,
    testing: bool = False,
    choice: Choice = AS_IT_IS,
) -> tuple[dict[str, Tensor], Audit]:
    """Those weights in `state` that fit the model, under its names, and the audit.

    A layout is known by its names of tensors. Position tables of other clip shapes are made to fit by the model's
    `resize_positions`, if it has one; rows of classes are put in order by name. When `testing`, our own moving average
    comes first, and what the head uses in training alone does not count; else what the head starts afresh does not.
    """
    own, head = model.state_dict(), getattr(model, "head", None)
    entry, found = weights_of(state, source, averaged=testing, entry=choice.entry)
    given = plain_names(found, choice.clear, own)
    known = layout_of(given)
    layout = None if all(n in given and given[n].shape == value.shape for n, value in own.items()) else known
    try:
        weights = layout.rename(given, model) if layout else given
        weights, reshaped = _with_axes_of(own, weights)
        before, resized, new = weights, [], []
        if hasattr(model, "resize_positions"):
            weights, resized, new = model.resize_positions(before, choice.clip)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    shapes = {name: [tuple(of[name].shape[:-1]) for of in (before, weights)] for name in resized}
    renamed = [name for name in before if name not in given]
    weights, said, wrong = classes.align(own, head, weights, classes.names_in(state), data)
    afresh = () if testing else (*_afresh(layout, given), *_afresh(model, weights))
    audit = compare(own, weights, source, (*_not_counted(head, testing), *afresh))
    audit = replace(
        audit,
        missing=[name for name in audit.missing if not name.startswith(tuple(afresh))],
        layout=known.NAME if known and not _is_ours(state) else OURS,
        renamed=renamed,
        reshaped=reshaped,
        interpolated={name: f"{there} -> {here}" for name, (there, here) in shapes.items()},
        made_new=new,
        said=_entries(state, entry) + _left_out(layout, given) + said,
        wrong=wrong,
    )
    return {name: weights[name] for name in audit.loaded}, audit


def _afresh(thing, names: Iterable[str]) -> Iterable[str]:
    """What a file with these names leaves to the first values, as its layout or the model says: beginnings of names."""
    return thing.afresh(set(names)) if hasattr(thing, "afresh") else ()


def _is_ours(state: Mapping) -> bool:
    return {"model_state", "ema_state", "classes"} <= state.keys()


def _entries(state: Mapping, taken: str) -> list[str]:
    """A line where a file has several sets of weights."""
    others = [key for key in (*WRAPPERS, *AVERAGES) if key != taken and _tensors(state.get(key))]
    if not others:
        return []
    kinds = [f"{key} (a moving average)" if key in AVERAGES else key for key in others]
    return [f"weights of {taken}; the file also has {', '.join(kinds)}: MODEL.CHECKPOINT_ENTRY chooses"]


def _left_out(layout: ModuleType | None, given: Mapping[str, Tensor]) -> list[str]:
    """A line for each tensor that a layout does not take, with its value where it is a number."""
    table = {name: why for name, why in getattr(layout, "LEFT", {}).items() if name in given}
    shown = {name: f" {float(given[name]):.4g}" if given[name].numel() == 1 else "" for name in table}
    return [f"{name}{shown[name]}: not taken, {why}" for name, why in table.items()]


def _not_counted(head: nn.Module, testing: bool) -> list[str]:
    """What the names of those parameters begin with that a file need not give."""
    if not hasattr(head, "class_axes"):
        return []
    return [f"head.{name}" for name in getattr(head, "train_only", ())] if testing else ["head."]


def class_names(state: dict, model: nn.Module) -> dict[str, list[str]]:
    """The names of the classes that a file carries, by the label spaces of the model."""
    spaces = classes.spaces_of(getattr(model, "head", None))
    names = classes.of_spaces(classes.names_in(state), spaces)
    return {space: list(names[space]) for space in spaces if space in names}


# ----------------------------------------------------------------------------------------------------- files and names


def weights_of(state: dict, source: str, *, averaged: bool, entry: str = "") -> tuple[str, dict[str, Tensor]]:
    """The entry with the tensors, "" for the top of a file's content, and these by name.

    `entry`: the one to take. Without, it is one that toolkits use; `averaged`: our moving average where there is one.
    Raises `UserError` if there are none.
    """
    for key in [entry] if entry else ("ema_state",) * averaged + WRAPPERS:
        if isinstance(state.get(key), Mapping) and (entry or state[key]):
            found = _tensors(state[key])
            break
    else:
        key, found = "", {} if entry else _tensors(state)
    if not found:
        wanted = f"under {entry} (MODEL.CHECKPOINT_ENTRY)" if entry else f"alone or under {', '.join(WRAPPERS)}"
        there = ", ".join(str(key)[:40] for key in list(state)[:5] if isinstance(key, str | int)) or "nothing"
        raise UserError(f"{source} holds no weights: expected tensors by name, {wanted}; found {there}")
    return key, found


def _tensors(entry: object) -> dict[str, Tensor]:
    if not isinstance(entry, Mapping):
        return {}
    return {name: value for name, value in entry.items() if isinstance(name, str) and isinstance(value, Tensor)}


def plain_names(weights: Mapping[str, Tensor], clear: Sequence[str] = (), own: Iterable[str] = ()) -> dict[str, Tensor]:
    """Without what DistributedDataParallel, torch.compile and Lightning put in front of names, and the texts `clear`.

    `own`: names of the model, which keeps a part that is really called `module` or `model`.
    """
    plain = {}
    for name, value in weights.items():
        for text in ("_orig_mod.", *clear):
            name = name.replace(text, "") if text else name
        plain[name] = value
    for front in ("module.", "model.") * 2:
        while plain and all(name.startswith(front) for name in plain) and not any(n.startswith(front) for n in own):
            plain = {name.removeprefix(front): value for name, value in plain.items()}
    if len(plain) < len(weights):
        raise UserError(f"CHECKPOINT_CLEAR_NAME_PATTERN {list(clear)}: two tensors would get one name; clear less")
    return plain


@functools.cache
def layouts() -> list[ModuleType]:
    """The published layouts: those modules of this package that say what names they match."""
    names = [module.name for module in pkgutil.iter_modules(__path__, f"{__name__}.")]
    return [module for module in map(importlib.import_module, names) if hasattr(module, "matches")]


def layout_of(names: Iterable[str]) -> ModuleType | None:
    """The published layout with these names of tensors. None: our own, or not known."""
    names = set(names)
    return next((layout for layout in layouts() if layout.matches(names)), None)


def substitute(table: Sequence[tuple[str, str]], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under new names: every (pattern, replacement) of the table, one after the other."""
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in table:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def _with_axes_of(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights with the number type and axes of the model's, where axes of size 1 are all the difference.

    A table `[N, C]` becomes `[1, N, C]` also where N is another: it is still to be resized. Numbers of another kind
    (complex, or whole ones for floats) stay as they are, for the audit to tell.
    """
    fitted, reshaped = dict(weights), []
    for name, target in own.items():
        if name not in weights or not same_kind(weights[name], target):
            continue
        value = weights[name].to(target.dtype)
        if _true_shape(value) == _true_shape(target):
            value = value.reshape(target.shape)
        elif value.ndim < target.ndim:
            value = value[(None,) * (target.ndim - value.ndim)]
        fitted[name] = value
        if value.ndim != weights[name].ndim:
            reshaped.append(name)
    return fitted, reshaped


def _true_shape(value: Tensor) -> list[int]:
    return [size for size in value.shape if size != 1]
