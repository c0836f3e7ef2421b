"""Checkpoint files: PySlowFast's `.pyth` layout, written atomically, verified on reading.

Beside `checkpoint_epoch_00003.pyth` stands `checkpoint_epoch_00003.json` with its SHA-256: the commit mark, put there
last. A file without it was not finished (or comes from elsewhere) and is not resumed from; one whose hash differs is
damaged.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from videorl import untrusted
from videorl.registry import UserError

log = logging.getLogger("videorl")

NAME = re.compile(r"^checkpoint_epoch_(\d{5})(?:_step_(\d{7}))?\.pyth$")
BEST = "best.pyth"
HALF = re.compile(r"^(checkpoint_epoch_\d{5}(_step_\d{7})?|best)(\.json)?\.tmp$")  # what `save` has begun
PUBLISHED = ("model.safetensors", "pytorch_model.bin")  # what transformers calls its files
BESIDE = ("config.json", "preprocessor_config.json")  # what it says of the model, and of how clips are made

MOST_MARK, MOST_JSON = 1 << 16, 1 << 24  # bytes: what is larger is no commit mark, no settings


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

    A `.safetensors` file gives its tensors by name; any other file is taken for one of `torch.save`: see `untrusted`. A
    folder stands for the file of transformers in it; what `config.json` and
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
        state = untrusted.content(file, mapped=mapped)
    except UserError as error:
        if mapped and (reason := damage(file)):
            raise UserError(f"checkpoint {file} is damaged: {reason}; take another one") from None
        raise UserError(f"checkpoint {file} {error}") from None
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {file}: expected a dict, found a {type(state).__name__}")
    if file.suffix in (".safetensors", ".bin"):
        state |= {name: _settings(file.with_name(name)) for name in BESIDE if file.with_name(name).is_file()}
    return state


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
    for file in filter(lambda file: HALF.match(file.name), folder.glob("*.tmp")):
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
