"""The way of a batch from a worker to the main process: tensors in shared memory that outlives who wrote it."""

import math
import mmap
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import torch

SMALL = 2**16  # bytes: tensors below are sent as they are, larger ones in shared memory


@dataclass(frozen=True)
class Shared:
    """Stands for a tensor in a message whose bytes are in shared memory."""

    dtype: torch.dtype
    shape: torch.Size


def pack(value, files: list[int]):
    """A large tensor as `Shared`, with its bytes in a new one of `files`; anything else as it is."""
    size = value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0
    if size < SMALL:
        return value
    file = _nameless_file()
    os.truncate(file, size)
    files.append(file)
    _mapped(file, value.dtype, value.shape).copy_(value)
    return Shared(value.dtype, value.shape)


def _nameless_file() -> int:
    """Not in /dev/shm: containers often have 64 MB of it, and to write more kills the process."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("batch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def unpack(batch: dict, memories: socket.socket) -> dict:
    """The batch whose large tensors a worker wrote with `pack` and sent the files of over `memories`."""
    count = sum(isinstance(value, Shared) for value in batch.values())
    files = iter(socket.recv_fds(memories, 1, count)[1] if count else [])
    return {key: _unpacked(value, files) for key, value in batch.items()}


def _unpacked(value, files: Iterator[int]):
    if not isinstance(value, Shared):
        return value
    file = next(files)
    tensor = _mapped(file, value.dtype, value.shape)
    os.close(file)
    return tensor


def _mapped(file: int, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    memory = mmap.mmap(file, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
