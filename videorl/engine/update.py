"""The update of the weights: the gradient clipped and checked, the step left out where it is not finite."""

import logging
import math

import torch

from videorl import dist
from videorl.engine import optim
from videorl.engine.journal import Journal
from videorl.engine.state import State
from videorl.engine.step import unwrap
from videorl.registry import UserError

log = logging.getLogger("videorl")

SKIPS_IN_A_ROW = 10


class Update:
    """Moves the weights of a run by its gradients.

    A step left out changes no learning rate: that is a function of the position in the data, not of updates done.
    """

    def __init__(self, cfg, state: State, journal: Journal):
        self.solver, self.skip = cfg.SOLVER, cfg.TRAIN.NONFINITE == "skip"
        self.state, self.journal = state, journal
        self.skipped, self.skipped_in_a_row = 0, 0
        self.buffers: list[torch.Tensor] = []

    def before(self) -> None:
        """Called before the model runs: keeps the running statistics that a step left out must not move."""
        if self.skip:
            self.buffers = [buffer.clone() for buffer in unwrap(self.state.model).buffers()]

    def __call__(self, loss: float, micro_batches: list[dict]) -> float:
        """One update for the step's gradients. Returns their norm before clipping."""
        state, scaler = self.state, self.state.precision.scaler
        norm = self._clip()
        scale, finite = scaler.get_scale(), bool(torch.isfinite(norm))
        # A gradient that is not finite without a factor to its loss is no overflow that a lower scale could cure.
        overflow = scaler.is_enabled() and scale > 1
        if not math.isfinite(loss) or not (finite or overflow):
            self._leave_out(loss, float(norm), micro_batches)
            return float(norm)
        self.skipped_in_a_row = 0
        scaler.step(state.optimizer)
        scaler.update()
        if not finite:
            self.skipped += 1
            log.warning(
                "step %d left out, %d so far: gradient beyond float16 at scale %g",
                state.steps_done,
                self.skipped,
                scale,
            )
        elif state.ema is not None:
            state.ema.update(unwrap(state.model))
        return float(norm)

    def _clip(self) -> torch.Tensor:
        """Unscales and clips the gradients, and returns their norm before."""
        optimizer, solver = self.state.optimizer, self.solver
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        optim.align(parameters)
        self.state.precision.scaler.unscale_(optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if solver.CLIP_GRAD_VAL:
            torch.nn.utils.clip_grad_value_(parameters, solver.CLIP_GRAD_VAL)
        elif solver.CLIP_GRAD_L2NORM:
            torch.nn.utils.clip_grads_with_norm_(parameters, solver.CLIP_GRAD_L2NORM, norm)
        return norm

    def _leave_out(self, loss: float, norm: float, micro_batches: list[dict]) -> None:
        """Stops the run, or leaves the step out, and says which samples it was. All ranks come here together."""
        step = self.state.steps_done
        samples = sorted(i for ids in dist.all_gather_objects(samples_of(micro_batches)) for i in ids)
        self.journal.not_finite({"step": step, "loss": str(loss), "grad_norm": str(norm), "samples": samples})
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        what = f"step {step}: loss {loss}, gradient norm {norm}; samples {str(samples)[:500]}"
        if not self.skip or self.skipped_in_a_row > SKIPS_IN_A_ROW:
            raise UserError(
                f"stopped before the update of {what} (all in nonfinite.jsonl): expected finite numbers;"
                " lower SOLVER.BASE_LR, clip gradients, or set TRAIN.NONFINITE skip"
            )
        self.state.precision.scaler.update()
        for buffer, before in zip(unwrap(self.state.model).buffers(), self.buffers, strict=True):
            buffer.copy_(before)
        log.warning("left out, not finite: %s", what)


def samples_of(micro_batches: list[dict]) -> list[int]:
    return [int(i) for batch in micro_batches for i in batch["index"]]
