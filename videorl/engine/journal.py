"""What a training run says of itself: first lines, run.json, numbers of steps and evaluations, samples left out."""

import logging
from pathlib import Path

import numpy as np
import torch

from videorl import dist
from videorl.engine import evaluate, optim, pictures, recipe, run
from videorl.engine.state import State
from videorl.loading import quarantine
from videorl.log import EVALUATION, Metrics, Progress, duration

log = logging.getLogger("videorl")


class Journal:
    """Console, files of OUTPUT_DIR and TensorBoard. All ranks call its methods together; rank 0 writes."""

    def __init__(self, cfg, state: State):
        self.cfg, self.state = cfg, state
        self.folder = Path(cfg.OUTPUT_DIR)
        self.metrics = Metrics(self.folder)
        self.bad_rows: list[dict] = []  # of evaluations, still to be written

    def begin(self, data: dict[str, dict], clips: int, lr_factor: float) -> None:
        """What is about to be trained. `data`: the facts of each data set; `clips` a step."""
        cfg, state, plan = self.cfg, self.state, self.state.data.plan
        steps = state.data.steps
        rate = optim.lr_at(cfg.SOLVER, optim.warmup_epochs(cfg.SOLVER, steps), steps, lr_factor)
        self._say_what_is_trained(rate, clips, lr_factor)
        self.first_epoch = state.epoch
        self.progress = Progress(
            cfg.SOLVER.MAX_EPOCH * state.data.steps, "train", cfg.USE_TQDM and dist.is_main(), state.steps_done
        )
        if dist.is_main():
            # A run stopped after the last step of an epoch has its evaluations before it.
            done = state.steps_done + (EVALUATION if state.step_in_epoch < state.data.steps else 0.0)
            self.metrics.forget_after(done)
            if cfg.TENSORBOARD.ENABLE:
                self.metrics.draw_in(self.folder / cfg.TENSORBOARD.LOG_DIR, done if state.steps_done else 0.0)
            batch = {"per_process": plan.micro_batch, "per_step": plan.step_size, "clips_per_step": clips}
            batch |= {"base_learning_rate": cfg.SOLVER.BASE_LR, "learning_rate": rate}
            run.note(self.folder, run.describe(cfg, data, batch))

    def _say_what_is_trained(self, rate: float, clips: int, lr_factor: float) -> None:
        cfg, state, plan, last = self.cfg, self.state, self.state.data.plan, self.cfg.SOLVER.MAX_EPOCH
        log.info(
            "%s on %d x %s, %s; %d videos a process, %d a step; learning rate after warm-up %g; %s",
            cfg.SOLVER.OPTIMIZING_METHOD,
            dist.world_size(),
            state.precision.device.type,
            str(state.precision.dtype or torch.float32).removeprefix("torch."),
            plan.micro_batch,
            plan.step_size,
            rate,
            f"epochs {state.epoch + 1} to {last}" if state.epoch < last else f"all {last} epochs are done",
        )
        if cfg.SOLVER.BASE_LR_BATCH:
            base, batch = cfg.SOLVER.BASE_LR, cfg.SOLVER.BASE_LR_BATCH
            log.info("learning rate: base %g x %d clips a step / %d = %g", base, clips, batch, base * lr_factor)
        if parts := recipe.parts(cfg, state.optimizer, rate):
            log.info("in use: %s", "; ".join(parts))
        for doubt in recipe.doubts(cfg, state.data.steps, rate, lr_factor) if dist.is_main() else ():
            log.warning("%s", doubt)

    def first_clips(self, batch: dict) -> None:
        self.metrics.draw(lambda out: out.add_image("Train/clips", pictures.clip_strip(batch), 0))

    def step(self, values: dict[str, float], rate: float, norm: float, data_time: float, net_time: float) -> None:
        """A step done, logged every LOG_PERIOD steps and at the end of an epoch. Times in seconds."""
        state = self.state
        self.progress.step()
        due = state.steps_done % self.cfg.LOG_PERIOD == 0 or state.step_in_epoch == state.data.steps
        if not due or not dist.is_main():
            return
        left = duration(self.progress.seconds_left())
        epoch = f"{state.epoch + 1}/{self.cfg.SOLVER.MAX_EPOCH}"
        iteration = f"{state.step_in_epoch}/{state.data.steps}"
        log.info(
            "epoch %s step %s  %s  lr %.3g  grad norm %.3g  data %.2f s  net %.2f s  left %s",
            epoch,
            iteration,
            "  ".join(f"{name} {value:.4g}" for name, value in values.items()),
            rate,
            norm,
            data_time,
            net_time,
            left,
        )
        parts = {name: values[name] for name in state.objective.losses}
        others = {name: value for name, value in values.items() if name not in parts}
        row = {"step": state.steps_done, "epoch": round(state.steps_done / state.data.steps, 4), **others}
        row["losses"] = parts
        stats = {"epoch": epoch, "iter": iteration, "dt_net": net_time, "eta": left, "gpu_mem": _gpu_memory(), **values}
        if "top1" in values:
            stats["top1_err"] = 100 * (1 - values["top1"])
        common = {"lr": rate, "grad_norm": norm, "dt": data_time + net_time, "dt_data": data_time}
        self.metrics.train({**row, **common}, {**stats, **common})

    def not_finite(self, row: dict) -> None:
        """A step whose loss or gradient is not finite, with its samples."""
        if dist.is_main():
            self.metrics.note("nonfinite.jsonl", row)

    def evaluation(self, name: str, found: dict[str, float], per_sample: dict[str, np.ndarray] | None = None) -> None:
        """The metrics of an evaluation, and where it gives scores of classes the picture of their confusions."""
        state, rows = self.state, per_sample or {}
        log.info("%s after epoch %d: %s", name, state.epoch, evaluate.readable(found))
        if dist.is_main():
            row = {"name": name, "step": state.steps_done, "epoch": float(state.epoch), **found}
            errors = {f"{k}_err": 100 * (1 - found[k]) for k in ("top1", "top5") if k in found}
            epoch = f"{state.epoch}/{self.cfg.SOLVER.MAX_EPOCH}"
            self.metrics.evaluated(row, {"_type": f"{name}_epoch", "epoch": epoch, **found, **errors})
        if "scores" in rows and rows["labels"].ndim == 1:
            picture = pictures.confusion_picture(rows["scores"], rows["labels"])
            self.metrics.draw(lambda out: out.add_image(f"{name}/confusion", picture, state.steps_done))

    def end_epoch(self) -> None:
        self.progress.go_on()
        if self.cfg.DATA.CACHE_FOLDER and self.state.epoch == self.first_epoch + 1:
            self._say_what_is_cached()

    def _say_what_is_cached(self) -> None:
        """Said once, when each training video had its chance to be kept."""
        folder, limit = Path(self.cfg.DATA.CACHE_FOLDER), self.cfg.DATA.CACHE_GB
        kept, size = len(list(folder.glob("*.npy"))), len(self.state.data.dataset)
        log.info("%s holds %d decoded videos (DATA.CACHE_GB %g); training has %d", folder, kept, limit, size)

    def not_read(self, rows: list[dict]) -> None:
        """What the evaluation after this step could not read; `quarantine` will write it."""
        self.bad_rows += [{**row, "met": [self.state.steps_done + EVALUATION]} for row in rows]

    def quarantine(self) -> None:
        """Adds to quarantine.jsonl what any rank could not read since the last call."""
        rows, self.bad_rows = self.state.data.loader.quarantine.take() + self.bad_rows, []
        gathered = dist.gather_objects(rows)
        if dist.is_main():
            self.bad_rows = [row for ranks_rows in gathered for row in ranks_rows]
            self.write_bad_rows()

    def write_bad_rows(self) -> None:
        """Not for all ranks together: one of them may be on its way out."""
        if dist.is_main() and quarantine.write(self.folder / "quarantine.jsonl", self.bad_rows):
            self.bad_rows = []  # else they are tried again with the next ones

    def close(self) -> None:
        self.progress.close()
        self.metrics.close()


def _gpu_memory() -> str:
    return f"{torch.cuda.max_memory_allocated() / 2**30:.2f}G" if torch.cuda.is_available() else "0.00G"
