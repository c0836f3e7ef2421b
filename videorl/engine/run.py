"""The folder of a run: who holds it, what was run, how it ended."""

import contextlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

from videorl import config, dist
from videorl.registry import UserError

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
    """Holds the folder for this run: a second run that writes there ends with a `UserError` that names the first."""
    lock = folder / ".lock"
    me = {"pid": os.getpid(), "host": socket.gethostname()}
    try:
        holder = json.loads(lock.read_text())
    except (OSError, ValueError):
        holder = None
    if holder and holder["host"] == me["host"] and holder["pid"] != me["pid"] and _alive(holder["pid"]):
        raise UserError(
            f"{folder} is in use by process {holder['pid']} on {holder['host']}; name another OUTPUT_DIR or wait for it"
        )
    lock.write_text(json.dumps(me))
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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


def update_json(file: Path, changes: dict) -> None:
    """Sets top-level entries of a json file, atomically."""
    content = json.loads(file.read_text()) if file.exists() else {}
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps({**content, **changes}, indent=1) + "\n")
    os.replace(temporary, file)
