"""The folder of a run: who holds it, what was run, how it ended."""

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from videorl import atomic, config, dist, exits
from videorl.log import attempt
from videorl.registry import UserError

log = logging.getLogger("videorl")

PACKAGES = ("torch", "torchvision", "av", "decord", "torchcodec", "timm", "numpy", "scikit-learn")


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def folder_of(cfg) -> Path:
    """OUTPUT_DIR, made if need be. Raises `UserError` if it cannot be written."""
    folder = Path(cfg.OUTPUT_DIR)
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe{dist.rank()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {folder} cannot be written: {error.strerror}; name another folder") from None
    return folder


@contextlib.contextmanager
def held(folder: Path):
    """Holds the folder for this run: a second run that writes there ends with a `UserError` that names the first.

    Called by all ranks; rank 0 holds a POSIX lock, which ends with its process, however that ends.
    """
    handles = []
    dist.on_main(lambda: handles.append(_locked(folder / ".lock")))
    try:
        yield
    finally:
        for handle in handles:
            handle.close()


def _locked(file: Path):
    handle = file.open("a+")
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        handle.seek(0)
        holder = handle.read().strip() or "another process"
        raise UserError(f"{file.parent} is in use by {holder}; name another OUTPUT_DIR or wait for it") from None
    except OSError as error:
        log.warning("%s cannot be locked (%s): make sure that no other run writes there", file, error)
    attempt(str(file), lambda: _sign(handle))
    return handle


def _sign(handle) -> None:
    """Leaves the name of this process in its lock, for those who find it taken."""
    os.ftruncate(handle.fileno(), 0)
    os.write(handle.fileno(), f"process {os.getpid()} on {socket.gethostname()}, since {now()}\n".encode())


def agreed_data(sets: Mapping[str, object]) -> dict[str, dict]:
    """Size and hash of the annotations of each data set, for `run.json`.

    All ranks call it together; it raises `UserError` on all of them where the annotations differ between them.
    """
    facts = {name: annotations(data) for name, data in sets.items()}
    dist.agree({f"annotations of {name}": fact["fingerprint"] for name, fact in facts.items()})
    return facts


def agreed_machines(name: str, data, machines: int) -> list[dict]:
    """The same for a data set `data` of which each of `machines` has its own part, with one entry for each."""
    found = dist.all_gather_objects(annotations(data))
    size = len(found) // machines
    for number in range(machines):
        first, *others = found[number * size : (number + 1) * size]
        if any(other != first for other in others):
            raise UserError(
                f"the processes of machine {number} read different annotations of {name}; on one machine all must read"
                " the same files"
            )
    return found[::size]


def annotations(data) -> dict:
    """Size and hash of the annotations of a data set, and its samples of each class where it has labels that count."""
    facts = {"samples": len(data), "fingerprint": data.fingerprint}
    if counts := getattr(data, "class_counts", {}):
        names = {space: data.class_names.get(space) or map(str, range(len(row))) for space, row in counts.items()}
        facts["classes"] = {space: dict(zip(names[space], row.tolist())) for space, row in counts.items()}
    return facts


def all_classes(machines: Sequence[dict]) -> dict:
    """The entry `classes` of the annotations of all machines together, if they have it."""
    parts = [facts["classes"] for facts in machines if "classes" in facts]
    total = (
        {space: {name: sum(p[space][name] for p in parts) for name in parts[0][space]} for space in parts[0]}
        if parts
        else {}
    )
    return {"classes": total} if total else {}


def describe(cfg, data: dict[str, dict], batch: dict) -> dict:
    """What `run.json` holds: command, code, versions, machine, configuration, data, batch sizes."""
    return {
        "argv": [sys.executable, *sys.argv],
        "git": _git(),
        "versions": {"python": platform.python_version(), **_versions()},
        "device": torch.cuda.get_device_name()
        if dist.device().type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "host": socket.gethostname(),
        "processes": dist.world_size(),
        "started": now(),
        "finished": None,
        "config": config.dump(cfg),
        "data": data,
        "batch": batch,
    }


def _git() -> dict:
    def ask(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except OSError:
        return {"commit": "", "dirty": False}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def preempted(folder: Path, when: str) -> None:
    """Leaves the file PREEMPTED, for whoever starts runs, and ends this process with the code that says so."""
    attempt("PREEMPTED", lambda: (folder / "PREEMPTED").write_text(f"{now()} {when}\n"))
    raise SystemExit(exits.EXIT_PREEMPTED)


def note(folder: Path, changes: dict) -> None:
    """Sets top-level entries of `run.json`; where the disk refuses, a warning says so and the run goes on."""
    attempt("run.json", lambda: _update(folder / "run.json", changes))


def note_test(folder: Path, cfg, data: dict[str, dict]) -> None:
    """Lists the data sets of a test alone in `run.json`. What stands there of the training of its weights stays."""

    def write() -> None:
        before = _content(folder / "run.json").get("data")
        _update(folder / "run.json", {"data": before | data} if before else describe(cfg, data, {}))

    attempt("run.json", write)


def update_json(file: Path, changes: dict) -> None:
    """Sets top-level entries of a json file, atomically. Raises `UserError` where the disk refuses."""
    try:
        _update(file, changes)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{file} cannot be written ({reason}): make room there, and run the command again") from None


def _update(file: Path, changes: dict) -> None:
    atomic.write(file, json.dumps({**_content(file), **changes}, indent=1) + "\n")


def _content(file: Path) -> dict:
    try:
        return dict(json.loads(file.read_text())) if file.exists() else {}
    except (ValueError, TypeError) as error:
        log.warning("%s is broken (%s) and written anew", file, error)
        return {}
