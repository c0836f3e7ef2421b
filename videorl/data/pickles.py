"""Annotations that others publish as pickles, read without running what stands in them.

A pickle is a program. Here it may build lists, tuples, dicts, sets, texts and numbers, and call nothing. It first runs
in a child process with limits: nine bytes can ask for all of memory.
"""

import io
import multiprocessing
import os
import pickle
import resource
from pathlib import Path

from videorl.registry import UserError


def load_plain(path: str | Path, *, seconds: float = 120.0, gigabytes: float = 16.0):
    """The content of a pickle of plain values, e.g. Ego4D's list of (video, start, end, text).

    Raises `UserError` if it holds anything else, is damaged, or takes more time or memory than that to read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: expected a pickle file; there is none")
    data = path.read_bytes()
    if reason := _try_in_child(data, seconds, gigabytes):
        raise UserError(f"{path}: {reason}; expected a pickle of lists, tuples, dicts, sets, texts and numbers alone")
    return _Plain(io.BytesIO(data)).load()


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


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes as {encoding}")
    return text.encode("latin1")


def _try_in_child(data: bytes, seconds: float, gigabytes: float) -> str:
    """Why the pickle cannot be read, or nothing."""
    context = multiprocessing.get_context("fork")  # the data are there already, and nothing is imported again
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_try, args=(data, int(gigabytes * 2**30), theirs), daemon=True)
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


def _try(data: bytes, room: int, pipe) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _Plain(io.BytesIO(data)).load()
    except MemoryError:
        pipe.send(f"it asks for more than {room / 2**30:g} GB of memory")
    except Exception as error:
        pipe.send(" ".join(str(error).split())[:200] or type(error).__name__)
    else:
        pipe.send("")
