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
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from videorl.registry import UserError

log = logging.getLogger("videorl")

NAME = re.compile(r"^checkpoint_epoch_(\d{5})(?:_step_(\d{7}))?\.pyth$")
BEST = "best.pyth"
PUBLISHED = ("model.safetensors", "pytorch_model.bin")  # what transformers calls its files
BESIDE = ("config.json", "preprocessor_config.json")  # what it says of the model, and of how clips are made

MOST_MARK, MOST_JSON = 1 << 16, 1 << 24  # bytes: what is larger is no commit mark, no settings
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


def read(file: Path, *, mapped: bool = False) -> dict:
    """The content of a checkpoint, on the CPU. Raises `UserError` if it is missing, damaged, or holds more than data.

    A `.safetensors` file gives its tensors by name; any other file is taken for one of `torch.save`. Nothing in it is
    executed: `weights_only=True` with a short list of plain types, all tensors dense. What it takes in memory is known
    from its directory beforehand. A folder stands for the file of transformers in it; what `config.json` and
    `preprocessor_config.json` beside such a file say are entries of these names.

    `mapped`: for a look at what it says. Tensors stay in the file, and whether it is whole is not proved.
    """
    if file.is_dir():
        file = _file_in(file)
    if not file.is_file():
        raise UserError(f"checkpoint {file} does not exist")
    if not mapped and (reason := damage(file)):
        raise UserError(f"checkpoint {file} is damaged: {reason}; take another one")
    try:
        state = content(file, mapped=mapped)
    except UserError as error:
        if mapped and (reason := damage(file)):
            raise UserError(f"checkpoint {file} is damaged: {reason}; take another one") from None
        raise UserError(f"checkpoint {file} {error}") from None
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {file}: expected a dict, found a {type(state).__name__}")
    if file.suffix in (".safetensors", ".bin"):
        state |= {name: _settings(file.with_name(name)) for name in BESIDE if file.with_name(name).is_file()}
    return state


def content(file: Path, *, mapped: bool = False) -> object:
    """What a file of torch or safetensors holds, as `read` does. Raises `UserError` with the reason alone."""
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


def _file_in(folder: Path) -> Path:
    for name in PUBLISHED:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"checkpoint {folder} is a folder without {' or '.join(PUBLISHED)}; name a file in it")


def _settings(file: Path) -> object:
    try:
        if file.stat().st_size > MOST_JSON:
            raise ValueError
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({type(error).__name__}): mend it, or move it away") from None


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


def damage(file: Path) -> str:
    """Why the file is not what was committed, or nothing. Files without a mark cannot be judged."""
    mark = file.with_suffix(".json")
    if not mark.is_file():
        return ""
    said = note(file)
    size, sha = said.get("bytes"), said.get("sha256")
    if type(size) is not int or not 0 <= size < 1 << 63 or not isinstance(sha, str):
        return f"{mark.name} is not readable"
    try:
        found = file.stat().st_size
        if found != size:
            return f"{found} bytes where {size} were written"
        return "" if _sha256(file) == sha else "its SHA-256 differs from the one written"
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"


def note(file: Path) -> dict:
    """What the commit mark beside a file says. Nothing where there is none, or none that can be read."""
    mark = file.with_suffix(".json")
    try:
        said = json.loads(mark.read_text(encoding="utf-8")) if mark.stat().st_size <= MOST_MARK else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


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


def committed(folder: Path) -> list[Path]:
    """The checkpoints of a run that have a commit mark, the newest first."""
    return [file for file in _newest_first(folder) if file.with_suffix(".json").is_file()]


def sweep(folder: Path) -> None:
    """Removes what killed runs left half-written."""
    for file in folder.glob("*.tmp"):
        log.info("removing %s, left by a run that was killed while saving", file)
        file.unlink()


def prune(folder: Path, keep: int, written: Path) -> None:
    """Deletes committed checkpoints older than the `keep` newest (0: none is deleted), the commit mark first.

    Older means of an earlier step, as where a run resumes: clocks of machines differ. `written`, of the step where the
    run is, stays, and so do later ones, which may be damaged and do not count.
    """
    committed = [file for file in _newest_first(folder) if file.with_suffix(".json").is_file()]
    until_now = committed[committed.index(written) :] if written in committed else []
    for file in until_now[keep:] if keep > 0 else []:
        file.with_suffix(".json").unlink(missing_ok=True)
        file.unlink(missing_ok=True)
