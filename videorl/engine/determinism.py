"""How far the same command gives the same numbers: key DETERMINISM.

off: the kernels that are fastest when tried on the GPU. data: the same data, augmentation and random numbers (always
so), kernels free to differ in the last bits; a GPU multiplies float32 as TF32. full: deterministic kernels only, exact
float32, and a check on the first step that two runs of it agree in every bit.
"""

import logging
import os
from collections.abc import Callable

import torch

from videorl.engine.step import unwrap
from videorl.registry import UserError

log = logging.getLogger("videorl")


def set_level(level: str) -> None:
    """Sets torch's switches for `level`. Raises `UserError` for an unknown one."""
    if level not in ("off", "data", "full"):
        raise UserError(f"DETERMINISM {level!r}: expected off, data or full")
    torch.backends.cudnn.benchmark = level == "off"
    torch.backends.cudnn.deterministic = level == "full"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = level != "full"
    if level == "full":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    if level == "full" or torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(level == "full", warn_only=True)


def check(model: torch.nn.Module, gradients: Callable[[], object]) -> None:
    """Says in the log whether `gradients()` gives the model the same ones twice."""
    if differing := differing_parameters(model, gradients):
        log.warning("DETERMINISM full: gradients of %s differ between two runs of one step", ", ".join(differing[:10]))
    else:
        log.info("DETERMINISM full: two runs of the first step agree in every bit")


def differing_parameters(model: torch.nn.Module, gradients) -> list[str]:
    """Names of parameters whose gradient is not the same, bit for bit, when `gradients()` computes it twice.

    Leaves the model as it was: running statistics that `gradients()` moves are put back.
    """
    plain, found = unwrap(model), []
    buffers = {name: buffer.clone() for name, buffer in plain.named_buffers()}
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        gradients()
        found.append({n: p.grad.clone() for n, p in plain.named_parameters() if p.grad is not None})
    model.zero_grad(set_to_none=True)
    for name, buffer in plain.named_buffers():
        buffer.copy_(buffers[name])
    return [name for name, gradient in found[0].items() if not torch.equal(gradient, found[1][name])]
