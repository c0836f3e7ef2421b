"""Checkpoint files: PySlowFast's `.pyth` layout, written atomically, verified on reading.

Beside `checkpoint_epoch_00003.pyth` stands `checkpoint_epoch_00003.json` with its SHA-256: the commit mark, put there
last. A file without it was not finished (or comes from elsewhere) and is not resumed from; one whose hash differs is
damaged.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from videorl.registry import UserError

log = logging.getLogger("videorl")

NAME = re.compile(r"^checkpoint_epoch_(\d{5})(?:_step_(\d{7}))?\.pyth$")
BEST = "best.pyth"
PUBLISHED = ("model.safetensors", "pytorch_model.bin")  # what transformers calls its files, config.json beside them


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


def name_of(epochs: int, step: int = 0) -> str:
    """File name after `epochs` whole epochs and `step` steps of the next."""
    return f"checkpoint_epoch_{epochs:05d}" + (f"_step_{step:07d}" if step else "") + ".pyth"


def save(file: Path, state: dict, note: dict | None = None) -> None:
    """Writes `state` so that `file` is either complete and committed or as it was before.

    `note` is added to the json beside it. Raises `OSError` (disk full, no permission); nothing is left behind then.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    mark = file.with_suffix(".json")
    temporary, temporary_mark = file.with_suffix(".tmp"), file.with_suffix(".json.tmp")
    try:
        with temporary.open("wb") as out:
            hashing = _Hashing(out)
            _serialise(state, hashing)
            _sync(out)
        content = {"sha256": hashing.digest.hexdigest(), "bytes": hashing.size, **(note or {})}
        with temporary_mark.open("wb") as out:
            out.write(json.dumps(content).encode())
            _sync(out)
        mark.unlink(missing_ok=True)
        os.replace(temporary, file)
        _sync_folder(file.parent)
        os.replace(temporary_mark, mark)
    finally:
        temporary.unlink(missing_ok=True)
        temporary_mark.unlink(missing_ok=True)
    _sync_folder(file.parent)


class _Hashing:
    """A file to write to that also hashes what is written."""

    def __init__(self, file):
        self.file, self.digest, self.size = file, hashlib.sha256(), 0
        self.failure: BaseException | None = None

    def write(self, data) -> int:
        self.digest.update(data)
        self.size += len(data)
        try:
            return self.file.write(data)
        except BaseException as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _serialise(state: dict, out: _Hashing) -> None:
    try:
        torch.save(state, out)
    except RuntimeError as error:
        # torch's zip writer fails once more while it closes, and hides that the disk is full.
        raise out.failure or error from None
    if out.failure is not None:  # a Ctrl-C that came inside the writer's call back into Python
        raise out.failure


def _sync(out) -> None:
    out.flush()
    os.fsync(out.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------------------------------------ reading


def read(file: Path) -> dict:
    """The content of a checkpoint, on the CPU. Raises `UserError` if it is missing, damaged, or holds more than data.

    A `.safetensors` file gives its tensors by name; any other file is taken for one of `torch.save`. Nothing in it is
    executed: `weights_only=True` with a short list of plain types. A folder stands for the file of transformers in it;
    what such a file's `config.json` says is the entry of that name.
    """
    if file.is_dir():
        file = _file_in(file)
    if not file.is_file():
        raise UserError(f"checkpoint {file} does not exist")
    if reason := damage(file):
        raise UserError(f"checkpoint {file} is damaged: {reason}; take another one")
    try:
        state = _load(file)
    except Exception as error:
        raise UserError(f"checkpoint {file} cannot be read: {_reason(file, error)}") from None
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {file}: expected a dict, found a {type(state).__name__}")
    settings = file.with_name("config.json")
    if file.suffix in (".safetensors", ".bin") and settings.is_file():
        state["config.json"] = _settings(settings)
    return state


def _file_in(folder: Path) -> Path:
    for name in PUBLISHED:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"checkpoint {folder} is a folder without {' or '.join(PUBLISHED)}; name a file in it")


def _settings(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({type(error).__name__}): mend it, or move it away") from None


def _load(file: Path) -> object:
    if file.suffix == ".safetensors":
        import safetensors.torch

        return safetensors.torch.load_file(file)
    with torch.serialization.safe_globals(SAFE):
        return torch.load(file, map_location="cpu", weights_only=True)


def _reason(file: Path, error: Exception) -> str:
    """Names what is not allowed in the file; torch's own hint to load it unsafely is kept back."""
    unsafe = re.findall(r"GLOBAL (\S+)", str(error))  # of the old format, which the next call cannot read
    with contextlib.suppress(Exception), torch.serialization.safe_globals(SAFE):
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    if unsafe:
        return f"it holds objects that could run code ({', '.join(unsafe[:3])}); re-save its weights as plain tensors"
    if type(error).__name__ == "SafetensorError":
        return f"it is no whole file of safetensors ({error})"
    if isinstance(error, pickle.UnpicklingError | KeyError | EOFError | IndexError):  # bytes of another kind
        return "it is no file of tensors and plain values; re-save its weights with torch.save"
    return f"{type(error).__name__} {str(error).partition(chr(10))[0][:150]}".strip()


def damage(file: Path) -> str:
    """Why the file is not what was committed, or nothing. Files without a mark cannot be judged."""
    mark = file.with_suffix(".json")
    if not mark.is_file():
        return ""
    try:
        wanted = json.loads(mark.read_text())
        size, sha = wanted["bytes"], wanted["sha256"]
    except (ValueError, KeyError, TypeError):
        return f"{mark.name} is not readable"
    if file.stat().st_size != size:
        return f"{file.stat().st_size} bytes where {size} were written"
    return "" if _sha256(file) == sha else "its SHA-256 differs from the one written"


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while block := data.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def newest(folder: Path) -> Path | None:
    """The newest committed and undamaged checkpoint of a run; says which newer ones it passed over, and why.

    Raises `UserError` where all that were committed are damaged: to start over is for the user to decide.
    """
    damaged = []
    for file in _newest_first(folder):
        if not file.with_suffix(".json").is_file():
            log.warning(
                "%s has no %s beside it: not finished, or not of this run; trying the one before",
                file,
                file.with_suffix(".json").name,
            )
        elif reason := damage(file):
            log.warning("%s is damaged (%s); trying the one before", file, reason)
            damaged.append(file)
        else:
            return file
    if damaged:
        raise UserError(
            f"every checkpoint in {folder} is damaged ({len(damaged)}); check the disk, then name another OUTPUT_DIR"
            " or delete them to start over"
        )
    return None


def _newest_first(folder: Path) -> Iterator[Path]:
    found = []
    for file in folder.glob("checkpoint_epoch_*.pyth"):
        if match := NAME.match(file.name):
            found.append((int(match[1]), int(match[2] or 0), file))
    return (file for *_, file in sorted(found, reverse=True))


def sweep(folder: Path) -> None:
    """Removes what killed runs left half-written."""
    for file in folder.glob("*.tmp"):
        log.info("removing %s, left by a run that was killed while saving", file)
        file.unlink()


def prune(folder: Path, keep: int) -> None:
    """Deletes all but the `keep` last written committed checkpoints (0: none is deleted), the commit mark first.

    What counts is when they were written: a damaged one of a later epoch, which the run went on without, goes first.
    """
    committed = [f for f in _newest_first(folder) if f.with_suffix(".json").is_file()]
    committed.sort(key=lambda f: f.with_suffix(".json").stat().st_mtime_ns, reverse=True)
    for file in committed[keep:] if keep else []:
        file.with_suffix(".json").unlink(missing_ok=True)
        file.unlink(missing_ok=True)
