"""Tensors and plain values from files of torch and safetensors, whoever wrote them.

Nothing in them is executed: `weights_only=True` with a short list of plain types, all tensors dense. What a file takes
in memory is known from its directory beforehand.
"""

import argparse
import contextlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from videorl.registry import UserError

MOST_INFLATED, SLACK = 4, 1 << 24  # torch.save does not compress: bytes in memory for one of a file, and beside that
OLD_PICKLES = 5
MOST_SHARED = 16  # numbers of a tensor for one in its storage, where it has a million: more would be a trap
FILLING = re.compile(rb"c(?:__builtin__|builtins)\nbytearray\n")  # bytearray(10**10) fills the memory at once


# numpy's own array and type cannot be allowed in a file: called with a buffer and the type "object" they take its bytes
# for addresses, which opens all of memory. These stand for them, and are filled by plain state only.


class Kind:
    """Stands for `numpy.dtype`: a type of numbers, and after its state the order of their bytes."""

    def __init__(self, name, *_):
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", str(name)):
            raise pickle.UnpicklingError(f"numpy type {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1])


class Numbers(np.ndarray):
    """Stands for `numpy.ndarray`."""

    def __new__(cls, *_):
        raise pickle.UnpicklingError("numpy.ndarray called with arguments")

    def __setstate__(self, state):
        version, shape, kind, is_fortran, content = state
        super().__setstate__((version, shape, kind.dtype, is_fortran, content))


def _reconstruct(*_) -> Numbers:
    """An array without numbers. Its state will follow."""
    return np.ndarray.__new__(Numbers, (0,), np.uint8)


def _scalar(kind: Kind, content) -> np.generic:
    return np.frombuffer(content, kind.dtype, 1)[0]


# What published files hold beside tensors and plain values: argparse namespaces, numpy scalars and arrays of numbers
# (written by numpy 1, which had other module names, or 2).
SAFE = [
    argparse.Namespace,
    (Numbers, "numpy.ndarray"),
    (Kind, "numpy.dtype"),
    *((_reconstruct, f"numpy.{package}.multiarray._reconstruct") for package in ("core", "_core")),
    *((_scalar, f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")),
]


def content(file: Path, *, mapped: bool = False) -> object:
    """What a file of torch or safetensors holds, on the CPU. Raises `UserError` with the reason alone.

    `mapped`: for a look at what it says. Tensors stay in the file.
    """
    try:
        _check_bounds(file)
        with warnings.catch_warnings(action="ignore"):  # torch's of kinds of tensors that are refused anyway
            state = _load(file, mapped)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot be read: {_reason(file, error)}") from None
    if reason := _odd(state):
        raise UserError(f"cannot be read: {reason}; re-save its weights as plain dense tensors")
    return state


def _check_bounds(file: Path) -> None:
    """Raises `UserError` where a small file would fill the memory."""
    size = file.stat().st_size
    if file.suffix == ".safetensors" or not size:  # the header of the first must tile the file
        return
    if not _is_zip(file):
        filled = _fills_memory(file)
    else:
        with zipfile.ZipFile(file) as entries:
            inflated = sum(entry.file_size for entry in entries.infolist())
            if inflated > MOST_INFLATED * size + SLACK:
                raise UserError(f"cannot be read: its {size} bytes inflate to {inflated}, but none has to: re-save it")
            pickles = [name for name in entries.namelist() if name.endswith("data.pkl")]
            filled = any(FILLING.search(entries.read(name)) for name in pickles)
    if filled:
        raise UserError("cannot be read: it holds a bytearray; re-save its weights as plain tensors")


def _fills_memory(file: Path) -> bool:
    """The same of the old format, where some pickles stand in front of the numbers."""
    with file.open("rb") as data, contextlib.suppress(Exception):  # torch will say what is wrong with it
        for _ in range(OLD_PICKLES):
            for operation, argument, _ in pickletools.genops(data):
                if operation.name == "GLOBAL" and FILLING.fullmatch(b"c%s\n" % argument.replace(" ", "\n").encode()):
                    return True
    return False


def _is_zip(file: Path) -> bool:
    """As torch has it: by the first bytes."""
    with file.open("rb") as data:
        return data.read(4) == b"PK\x03\x04"


def _odd(state: object) -> str:
    """Names the first thing that is no dense tensor of numbers it has itself, if there is one."""
    seen, todo = set(), [("", state)]
    while todo:
        name, value = todo.pop()
        if isinstance(value, torch.Tensor):
            if kind := _odd_kind(value):
                return f"{name.lstrip('.') or 'it'} is {kind}"
        elif isinstance(value, Mapping | list | tuple | set | argparse.Namespace) and id(value) not in seen:
            seen.add(id(value))
            value = vars(value) if isinstance(value, argparse.Namespace) else value
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            todo += [(f"{name[-100:]}.{key if isinstance(key, str | int) else '?'}"[:200], item) for key, item in items]
    return ""


def _odd_kind(value: torch.Tensor) -> str:
    if value.layout != torch.strided or value.is_nested:
        return "a sparse or nested tensor"
    if value.is_quantized:
        return "a quantised tensor"
    if value.is_meta:
        return "a tensor without numbers (meta)"
    if type(value) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return f"a {type(value).__name__}"
    held = value.untyped_storage().nbytes() // value.element_size()
    if value.numel() > max(MOST_SHARED * held, 1_000_000):
        return f"a tensor of {value.numel()} numbers of which the file has {held}"
    return ""


def _load(file: Path, mapped: bool) -> object:
    if file.suffix == ".safetensors":
        import safetensors.torch

        return safetensors.torch.load_file(file)
    with torch.serialization.safe_globals(SAFE):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped and _is_zip(file))


def _reason(file: Path, error: Exception) -> str:
    """Names what is not allowed in the file; torch's own hint to load it unsafely is kept back."""
    if "TorchScript" in str(error):  # OpenAI releases CLIP as such
        return (
            f"it is a TorchScript program; save its weights: torch.save(torch.jit.load({file.name!r}).state_dict(), …)"
        )
    unsafe = re.findall(r"GLOBAL (\S+)", str(error))  # of the old format, which the next call cannot read
    with contextlib.suppress(Exception), torch.serialization.safe_globals(SAFE):
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    if unsafe:
        return f"it holds objects that could run code ({', '.join(unsafe[:3])}); re-save its weights as plain tensors"
    if type(error).__name__ == "SafetensorError":
        return f"it is no whole file of safetensors ({error})"
    other = isinstance(error, pickle.UnpicklingError | KeyError | EOFError | IndexError)
    if other or "legacy .tar format" in str(error):  # bytes of another kind, zeros among them
        return "it is no file of tensors and plain values; re-save its weights with torch.save"
    return f"{type(error).__name__} {str(error).partition(chr(10))[0][:150]}".strip()
