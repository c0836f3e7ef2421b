"""Annotations that others publish as pickles, read without running what stands in them.

A pickle is a program. Here it may build lists, tuples, dicts, sets, texts and numbers, or with `load_array` an array of
numbers, and call nothing else. It first runs in a child process with limits: nine bytes can ask for all of memory.
"""

import io
import multiprocessing
import os
import pickle
import resource
from pathlib import Path

import numpy as np

from videorl.registry import UserError


def load_plain(path: str | Path, *, seconds: float = 120.0, gigabytes: float = 16.0):
    """The content of a pickle of plain values, e.g. Ego4D's list of (video, start, end, text).

    Raises `UserError` if it holds anything else, is damaged, or takes more time or memory than that to read.
    """
    return _load(Path(path), _Plain, "lists, tuples, dicts, sets, texts and numbers alone", seconds, gigabytes)


def load_array(path: str | Path, key: str, *, seconds: float = 120.0, gigabytes: float = 16.0) -> np.ndarray:
    """The array of numbers in a pickle, e.g. EPIC-Kitchens' relevancies, that config key `key` names.

    Raises `UserError` as `load_plain` does, and where there is none in it.
    """
    if not os.path.isfile(path):
        raise UserError(f"{key} {str(path)!r}: no such file; name a pickle of an array")
    found = _load(Path(path), _Numbers, "one array of numbers", seconds, gigabytes)
    if not isinstance(found, _Array):
        raise UserError(f"{key} {path}: expected a pickle of one array of numbers, found {type(found).__name__}")
    return found.values


def _load(path: Path, reader: type, expected: str, seconds: float, gigabytes: float):
    if not path.is_file():
        raise UserError(f"{path}: expected a pickle file; there is none")
    data = path.read_bytes()
    if reason := _try_in_child(reader, data, seconds, gigabytes):
        raise UserError(f"{path}: {reason}; expected a pickle of {expected}")
    return reader(io.BytesIO(data)).load()


class _Plain(pickle.Unpickler):
    """Calls nothing that the file names, but for what old protocols need to write bytes and sets."""

    def find_class(self, module: str, name: str):
        allowed = {
            ("_codecs", "encode"): _bytes,
            **{
                (builtins, kind.__name__): kind for builtins in ("builtins", "__builtin__") for kind in (set, frozenset)
            },
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")
        return allowed[module, name]

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it refers to objects outside the file")


class _Numbers(_Plain):
    """May also hold arrays of numbers, of which it makes `_Array`s: numpy's own code sees no state of the file's."""

    def find_class(self, module: str, name: str):
        allowed = {
            **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
            **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Type,
        }
        return allowed[module, name] if (module, name) in allowed else super().find_class(module, name)


class _Type:
    """Stands for a type of numbers, such as f4."""

    def __init__(self, code: str, *_):
        self.code = code

    def __setstate__(self, state: tuple) -> None:
        self.code = f"{str(state[1]).replace('|', '')}{self.code}"

    def numbers(self) -> np.dtype:
        kind = np.dtype(self.code)
        if kind.kind not in "fiub":
            raise pickle.UnpicklingError(f"it holds an array of {self.code[:20]!r}, which are no numbers")
        return kind


class _Array:
    """Stands for an array until its shape, type and bytes are known."""

    def __init__(self, *_):
        self.values = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, content = state
        self.values = np.frombuffer(content, kind.numbers()).reshape(shape, order="F" if fortran else "C")


def _from_buffer(content, kind: _Type, shape: tuple, order: str) -> _Array:
    """An array as protocol 5 writes it."""
    made = _Array()
    made.values = np.frombuffer(content, kind.numbers()).reshape(shape, order="F" if order == "F" else "C")
    return made


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes as {encoding}")
    return text.encode("latin1")


def _try_in_child(reader: type, data: bytes, seconds: float, gigabytes: float) -> str:
    """Why the pickle cannot be read, or nothing."""
    context = multiprocessing.get_context("fork")  # the data are there already, and nothing is imported again
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_try, args=(reader, data, int(gigabytes * 2**30), theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(seconds) else f"not read within {seconds:g} s"
    except EOFError:
        return "reading it takes the process down"
    finally:
        child.kill()
        child.join()
        ours.close()


def _try(reader: type, data: bytes, room: int, pipe) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        reader(io.BytesIO(data)).load()
    except MemoryError:
        pipe.send(f"it asks for more than {room / 2**30:g} GB of memory")
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        cut = isinstance(error, EOFError) or "truncated" in reason
        pipe.send(f"cut off after {len(data)} bytes: copy or download it again" if cut else reason)
    else:
        pipe.send("")
