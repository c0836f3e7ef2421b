"""Weights of checkpoint files, ours or published, put into a model, with an account of every tensor.

A published layout is one file of this package, an ordinary module with `NAME`, `matches(names) -> bool` and
`rename(weights, model) -> weights`: the weights under our names, tensors as they are (split or joined where ours are).
It may have `remarks(names) -> lines` for the audit of a file with these names, and `afresh(names) -> beginnings of
names`: what such a file leaves to the first values when training starts from it. Where it has `clip_of(state)`, the
frames, rows and columns of the file's clips, `rename` and `remarks` take these as `clip`.
"""

import functools
import importlib
import logging
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType

from torch import Tensor, nn

from videorl.convert import classes
from videorl.convert.audit import Audit, compare
from videorl.registry import UserError

log = logging.getLogger("videorl")

LEAST = 0.95  # part of the model that a file must give
WRAPPERS = ("model_state", "state_dict", "model_state_dict", "model", "module")
OURS = "this toolkit"
ClassNames = Mapping[str, Sequence[str]]  # label space -> names of its classes by number


def load(
    model: nn.Module,
    state: dict,
    source: str,
    *,
    data: ClassNames | None = None,
    testing: bool = False,
    partial: bool = False,
    clear: Sequence[str] = (),
) -> None:
    """Puts the weights in `state` (what `checkpoint.read` gives) into `model` and logs the audit.

    `data`: the class names of the data at hand, where known; the rest as in `fit`. Raises `UserError`, with the model
    as it was, where the file gives too little (see `accept`) and `partial` does not allow that.
    """
    weights, audit = fit(model, state, source, data=data, testing=testing, clear=clear)
    worth_a_look = audit.missing or audit.misfits
    log.log(logging.WARNING if worth_a_look else logging.INFO, audit.text())
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
    elif testing and unused:
        named = f"{', '.join(unused[:3])}{' …' if len(unused) > 3 else ''}"
        reason = f"{audit.source} has {len(unused)} tensors that this model has no place for ({named}): other settings?"
    elif audit.part < least:
        expected = f"expected at least {100 * least:.0f} %"
        reason = f"{audit.summary()}; {expected}: is it a checkpoint of this model and these classes?"
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
    clear: Sequence[str] = (),
) -> tuple[dict[str, Tensor], Audit]:
    """Those weights in `state` that fit the model, under its names, and the audit.

    A layout is known by its names of tensors. Position tables of other clip shapes are interpolated by the model's
    `resize_positions`, if it has one; rows of classes are put in order by name. `clear`: texts taken out of the names
    in the file. When `testing`, the file's moving average comes first, and what the head uses in training alone does
    not count; else what the head starts afresh does not.
    """
    own, head = model.state_dict(), getattr(model, "head", None)
    given = plain_names(weights_of(state, source, averaged=testing), clear)
    fits = all(name in given and given[name].shape == value.shape for name, value in own.items())
    layout = None if fits else layout_of(given)
    published = {"clip": layout.clip_of(state)} if hasattr(layout, "clip_of") else {}
    try:
        weights = layout.rename(given, model, **published) if layout else given
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    renamed = [name for name in weights if name not in given]
    weights, reshaped = _with_axes_of(own, weights)
    interpolated = {}
    if hasattr(model, "resize_positions"):
        before = weights
        weights, resized = model.resize_positions(before)
        interpolated = {n: f"{tuple(before[n].shape[:-1])} -> {tuple(weights[n].shape[:-1])}" for n in resized}
    weights, said, wrong = classes.align(own, head, weights, classes.names_in(state), data or {})
    afresh = layout.afresh(set(given)) if hasattr(layout, "afresh") and not testing else ()
    remarks = layout.remarks(set(given), **published) if hasattr(layout, "remarks") else []
    audit = compare(own, weights, source, (*_not_counted(head, testing), *afresh))
    audit = replace(
        audit,
        missing=[name for name in audit.missing if not name.startswith(tuple(afresh))],
        layout=layout.NAME if layout else OURS,
        renamed=renamed,
        reshaped=reshaped,
        interpolated=interpolated,
        said=remarks + said,
        wrong=wrong,
    )
    return {name: weights[name] for name in audit.loaded}, audit


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


def weights_of(state: dict, source: str, *, averaged: bool) -> dict[str, Tensor]:
    """The tensors by name, at the top of a file's content or in one of the entries that toolkits use.

    `averaged`: the moving average where there is one. Raises `UserError` if there are none.
    """
    for key in ("ema_state",) * averaged + WRAPPERS:
        if isinstance(state.get(key), dict):
            state = state[key]
            break
    weights = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not weights:
        raise UserError(
            f"{source} holds no weights: expected tensors by name, alone or under {', '.join(WRAPPERS)};"
            f" found {', '.join(map(str, list(state)[:5])) or 'nothing'}"
        )
    return weights


def plain_names(weights: Mapping[str, Tensor], clear: Sequence[str] = ()) -> dict[str, Tensor]:
    """Without what DistributedDataParallel and torch.compile put in front of names, and without the texts `clear`."""
    plain = {}
    for name, value in weights.items():
        for text in ("_orig_mod.", *clear):
            name = name.replace(text, "")
        plain[name] = value
    while plain and all(name.startswith("module.") for name in plain):
        plain = {name.removeprefix("module."): value for name, value in plain.items()}
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

    A table `[N, C]` becomes `[1, N, C]` also where N is another: it is still to be resized.
    """
    fitted, reshaped = dict(weights), []
    for name, target in own.items():
        if name not in weights:
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
