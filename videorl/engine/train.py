"""The training loop, the same for every system."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from videorl import config, dist
from videorl.engine import determinism, evaluate, info, optim, pictures, recipe, run
from videorl.engine.saver import Saver
from videorl.engine.state import State
from videorl.engine.step import backward, unwrap
from videorl.engine.watch import Watch
from videorl.loading import quarantine
from videorl.log import Metrics, Progress, duration
from videorl.registry import UserError

log = logging.getLogger("videorl")

SKIPS_IN_A_ROW = 10


def train(cfg, watch: Watch, tested: Mapping[str, object]) -> None:
    """Trains to SOLVER.MAX_EPOCH, or until a signal stops it, and leaves everything in OUTPUT_DIR.

    `tested`: title to data set of the test phase. Their annotations are compared between ranks now, not after days.
    """
    _check_settings(cfg)
    determinism.set_level(cfg.DETERMINISM)
    state = State.build(cfg)
    trainer = Trainer(cfg, state, tested)
    state.resume()
    trainer.announce()
    while state.epoch < cfg.SOLVER.MAX_EPOCH:
        for micro_batches in state.data.epoch(state.epoch, state.step_in_epoch):
            trainer.meet(watch, micro_batches)
            trainer.step(micro_batches, watch)
            if trainer.saver.due():
                trainer.save()
        trainer.meet(watch)
        trainer.end_epoch(watch)
    trainer.close()


def _check_settings(cfg) -> None:
    """Raises `UserError` for values that only the loop reads: it would meet them after hours, or not at all."""
    for key, value in (("TRAIN.CHECKPOINT_PERIOD", cfg.TRAIN.CHECKPOINT_PERIOD), ("LOG_PERIOD", cfg.LOG_PERIOD)):
        if value < 1:
            raise UserError(f"{key} {value}: expected 1 or more")
    if cfg.TRAIN.NONFINITE not in ("raise", "skip"):
        raise UserError(f"TRAIN.NONFINITE {cfg.TRAIN.NONFINITE!r}: expected raise or skip")


class Trainer:
    """The parts of the loop: a step, what is logged of it, and what happens at the end of an epoch."""

    def __init__(self, cfg, state: State, tested: Mapping[str, object]):
        self.cfg, self.state = cfg, state
        self.folder = Path(cfg.OUTPUT_DIR)
        self.saver = Saver(cfg, state)
        self.evaluations = evaluate.evaluations(cfg, at_test=False)
        self.clip = config.spec(cfg).clip
        self.skipped, self.skipped_in_a_row = 0, 0
        self.checked = False
        self.buffers: list[torch.Tensor] = []
        self.bad_rows: list[dict] = []
        tensorboard = self.folder / cfg.TENSORBOARD.LOG_DIR if cfg.TENSORBOARD.ENABLE and dist.is_main() else None
        self.metrics = Metrics(self.folder, tensorboard)
        self._check_best_metric()
        while_training = {e.title: e.dataset for e in self.evaluations.values()}
        evaluate.check_clip_size(cfg, state.evaluated_model, [*tested, *while_training])
        title = f"{cfg.TRAIN.DATASET}/train"
        trained_on = {title: state.data.dataset} if len(state.data.machines) == 1 else {}
        self.data = run.agreed_data({**tested, **while_training, **trained_on}) | {title: state.data.facts}
        self.clips = state.data.plan.step_size * config.spec(cfg).augment.copies
        self.lr_factor = optim.lr_factor(cfg.SOLVER, cfg.NUM_SHARDS, self.clips)

    def _check_best_metric(self) -> None:
        """An error now rather than a run without a best checkpoint; the default may name what is not there."""
        wanted = self.cfg.TRAIN.BEST_METRIC
        known = sorted({*self.evaluations, *(e.entry for e in self.evaluations.values())})
        if not wanted or not known or wanted.partition("/")[0] in known:
            return
        if wanted not in config.BEST_METRICS:
            raise UserError(f"TRAIN.BEST_METRIC {wanted}: expected EVAL/METRIC, with EVAL one of {', '.join(known)}")
        log.warning(
            "TRAIN.BEST_METRIC %s: there is no evaluation val (%s): no best checkpoint", wanted, ", ".join(known)
        )

    def announce(self) -> None:
        """The first lines of the log, run.json, and the progress bar."""
        cfg, state, plan, last = self.cfg, self.state, self.state.data.plan, self.cfg.SOLVER.MAX_EPOCH
        rate = optim.lr_at(cfg.SOLVER, cfg.SOLVER.WARMUP_EPOCHS, factor=self.lr_factor)
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
            log.info(
                "learning rate: base %g x %d clips a step / %d = %g", base, self.clips, batch, base * self.lr_factor
            )
        if parts := recipe.parts(cfg, state.optimizer, rate):
            log.info("in use: %s", "; ".join(parts))
        if cfg.LOG_MODEL_INFO and dist.is_main():
            info.log_model_info(cfg)
        self.progress = Progress(
            cfg.SOLVER.MAX_EPOCH * state.data.steps, "train", cfg.USE_TQDM and dist.is_main(), state.steps_done
        )
        self.ended_at, self.first_epoch = time.monotonic(), state.epoch
        if dist.is_main():
            self.metrics.forget_after(state.steps_done)
            batch = {"per_process": plan.micro_batch, "per_step": plan.step_size, "clips_per_step": self.clips}
            batch |= {"base_learning_rate": cfg.SOLVER.BASE_LR, "learning_rate": rate}
            run.note(self.folder, run.describe(cfg, self.data, batch))

    # ------------------------------------------------------------------------------------------------------- one step

    def meet(self, watch: Watch, micro_batches: Sequence[dict | None] = ()) -> None:
        """Tells all ranks, before each step, what only one may know: a signal, unreadable samples, none readable."""
        mine = bool(watch.signal), len(self.state.data.loader.quarantine.untold), any(b is None for b in micro_batches)
        signals, unreadable, gave_up = dist.all_sum(torch.tensor(mine, dtype=torch.int64)).tolist()
        if unreadable or gave_up:
            self._judge_data(mine[-1])
        if signals:
            self.stop(watch.signal)

    def _judge_data(self, gave_up: bool) -> None:
        """Raises `UserError` on all ranks if they met too many unreadable samples; these stand in quarantine.jsonl.

        `gave_up`: this rank found none that is readable. Only ranks that read the same videos judge together.
        """
        met, readers = self.state.data.loader.quarantine, self.state.data.readers
        told, given_up = zip(*dist.all_gather_objects((met.tell(), gave_up))[readers])
        met.hear(told)
        try:
            met.check(any(given_up))
            verdict = None
        except UserError as error:
            verdict = error
        if wrong := [v for v in dist.all_gather_objects(verdict) if v is not None]:
            self._write_quarantine()
            raise wrong[0]

    def step(self, micro_batches: list[dict], watch: Watch) -> None:
        """One optimizer step over this rank's micro-batches."""
        state, begun = self.state, time.monotonic()
        if state.steps_done == 0:
            self.metrics.draw(lambda out: out.add_image("Train/clips", pictures.clip_strip(micro_batches[0]), 0))
        watch.beat(f"step {state.steps_done} with samples {_samples(micro_batches)[:32]}")
        solver, epoch = self.cfg.SOLVER, state.epoch + state.step_in_epoch / state.data.steps
        rate = optim.lr_at(solver, epoch, state.data.steps, self.lr_factor)
        optim.set_rates(state.optimizer, rate, optim.weight_decay_at(solver, epoch))
        state.model.train()
        if self.cfg.DETERMINISM == "full" and state.steps_done == 0:
            self._check_determinism(micro_batches)
        state.optimizer.zero_grad(set_to_none=True)
        if self.cfg.TRAIN.NONFINITE == "skip":
            self.buffers = [buffer.clone() for buffer in unwrap(state.model).buffers()]
        values = self._gradients(micro_batches)
        if not self.checked:
            self._check_all_have_gradients()
        norm = self._update(values["loss"], micro_batches)
        state.step_in_epoch += 1
        self.progress.step()
        data_time, self.ended_at = begun - self.ended_at, time.monotonic()
        if state.steps_done % self.cfg.LOG_PERIOD == 0 or state.step_in_epoch == state.data.steps:
            self._log(values, rate, norm, data_time, self.ended_at - begun)
        watch.beat(f"loading step {state.steps_done}")

    def _gradients(self, micro_batches: list[dict]) -> dict[str, float]:
        state = self.state
        return backward(
            state.model,
            state.objective,
            micro_batches,
            clip=self.clip,
            precision=state.precision,
            seed=self.cfg.RNG_SEED,
            step=state.steps_done,
        )

    def _check_all_have_gradients(self) -> None:
        """A parameter that no loss depends on would keep DDP from averaging the gradients of its bucket."""
        self.checked = True
        without = [n for n, p in unwrap(self.state.model).named_parameters() if p.requires_grad and p.grad is None]
        if not without:
            return
        names = ", ".join(without[:8]) + (" …" if len(without) > 8 else "")
        if dist.world_size() > 1:
            raise UserError(f"no loss depends on the parameters {names}: with several processes, leave them out")
        log.warning("no loss depends on the parameters %s: they are not trained", names)

    def _check_determinism(self, micro_batches: list[dict]) -> None:
        differing = determinism.differing_parameters(self.state.model, lambda: self._gradients(micro_batches))
        if differing:
            log.warning(
                "DETERMINISM full: gradients of %s differ between two runs of one step", ", ".join(differing[:10])
            )
        else:
            log.info("DETERMINISM full: two runs of the first step agree in every bit")

    def _update(self, loss: float, micro_batches: list[dict]) -> float:
        """Clips and checks the gradient, then moves the weights. Returns the gradient's norm before clipping.

        A step left out changes no learning rate: that is a function of the position in the data, not of updates done.
        """
        state, solver, scaler = self.state, self.cfg.SOLVER, self.state.precision.scaler
        parameters = [p for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]
        optim.align(parameters)
        scaler.unscale_(state.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if solver.CLIP_GRAD_VAL:
            torch.nn.utils.clip_grad_value_(parameters, solver.CLIP_GRAD_VAL)
        elif solver.CLIP_GRAD_L2NORM:
            torch.nn.utils.clip_grads_with_norm_(parameters, solver.CLIP_GRAD_L2NORM, norm)
        scale, finite = scaler.get_scale(), bool(torch.isfinite(norm))
        # A gradient that is not finite without a factor to its loss is no overflow that a lower scale could cure.
        overflow = scaler.is_enabled() and scale > 1
        if not math.isfinite(loss) or not (finite or overflow):
            self._not_finite(loss, float(norm), micro_batches)
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

    def _not_finite(self, loss: float, norm: float, micro_batches: list[dict]) -> None:
        """Stops the run, or leaves the step out, and says which samples it was. All ranks come here together."""
        step = self.state.steps_done
        samples = sorted(i for ids in dist.all_gather_objects(_samples(micro_batches)) for i in ids)
        if dist.is_main():
            row = {"step": step, "loss": str(loss), "grad_norm": str(norm), "samples": samples}
            self.metrics.note("nonfinite.jsonl", row)
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        what = f"step {step}: loss {loss}, gradient norm {norm}; samples {str(samples)[:500]}"
        if self.cfg.TRAIN.NONFINITE != "skip" or self.skipped_in_a_row > SKIPS_IN_A_ROW:
            raise UserError(
                f"stopped before the update of {what} (all in nonfinite.jsonl): expected finite numbers;"
                " lower SOLVER.BASE_LR, clip gradients, or set TRAIN.NONFINITE skip"
            )
        self.state.precision.scaler.update()
        for buffer, before in zip(unwrap(self.state.model).buffers(), self.buffers, strict=True):
            buffer.copy_(before)  # running statistics have seen those samples
        log.warning("left out, not finite: %s", what)

    # ------------------------------------------------------------------------------------------------------- logging

    def _log(self, values: dict[str, float], rate: float, norm: float, data_time: float, net_time: float) -> None:
        if not dist.is_main():
            return
        state, left = self.state, duration(self.progress.seconds_left())
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
        times = {"dt": data_time + net_time, "dt_data": data_time}
        parts = {name: values[name] for name in state.objective.losses}
        others = {name: value for name, value in values.items() if name not in parts}
        row = {"step": state.steps_done, "epoch": round(state.steps_done / state.data.steps, 4), **others}
        row["losses"] = parts
        stats = {"epoch": epoch, "iter": iteration, "dt_net": net_time, "eta": left, "gpu_mem": _gpu_memory(), **values}
        if "top1" in values:
            stats["top1_err"] = 100 * (1 - values["top1"])
        common = {"lr": rate, "grad_norm": norm, **times}
        self.metrics.train({**row, **common}, {**stats, **common})

    # --------------------------------------------------------------------------------------------- epochs and the end

    def end_epoch(self, watch: Watch) -> None:
        state = self.state
        if self.cfg.DATA.CACHE_FOLDER and state.epoch == self.first_epoch:
            self._log_cache()
        state.epoch, state.step_in_epoch = state.epoch + 1, 0
        last = state.epoch == self.cfg.SOLVER.MAX_EPOCH
        due = {n: e for n, e in self.evaluations.items() if last or state.epoch % e.node.EVERY == 0}
        found = {}
        for name, evaluation in due.items():
            watch.beat(f"evaluation {name} after epoch {state.epoch}")
            found[name] = self._evaluate(name, evaluation, watch)
        for name, average in evaluate.averages(due, found).items():
            found[name] = average
            self._log_evaluation(name, average)
        self._keep_best(found)
        if last or state.epoch % self.cfg.TRAIN.CHECKPOINT_PERIOD == 0:
            self.save()
        self._write_quarantine()
        self.ended_at = time.monotonic()

    def _log_cache(self) -> None:
        """Said once, when each training video had its chance to be kept."""
        folder, limit = Path(self.cfg.DATA.CACHE_FOLDER), self.cfg.DATA.CACHE_GB
        kept, size = len(list(folder.glob("*.npy"))), len(self.state.data.dataset)
        log.info("%s holds %d decoded videos (DATA.CACHE_GB %g); training has %d", folder, kept, limit, size)

    def _evaluate(self, name: str, evaluation: evaluate.Evaluation, watch: Watch) -> dict[str, float]:
        state = self.state
        # Statistics of batch norm are each rank's own; those of rank 0 are the ones that are saved.
        dist.copy_from_main(state.evaluated_model.buffers())
        try:
            found = evaluation.run(state.evaluated_model, state.precision, alive=watch.beat)
        except UserError:
            if dist.is_main():
                quarantine.write(self.folder / "quarantine.jsonl", evaluation.bad_rows)
            raise
        self.bad_rows += evaluation.bad_rows
        self._log_evaluation(name, found)
        rows = evaluation.per_sample
        if "scores" in rows and rows["labels"].ndim == 1:
            picture = pictures.confusion_picture(rows["scores"], rows["labels"])
            self.metrics.draw(lambda out: out.add_image(f"{name}/confusion", picture, state.steps_done))
        return found

    def _log_evaluation(self, name: str, found: dict[str, float]) -> None:
        state = self.state
        log.info("%s after epoch %d: %s", name, state.epoch, evaluate.readable(found))
        if dist.is_main():
            row = {"name": name, "step": state.steps_done, "epoch": float(state.epoch), **found}
            errors = {f"{k}_err": 100 * (1 - found[k]) for k in ("top1", "top5") if k in found}
            epoch = f"{state.epoch}/{self.cfg.SOLVER.MAX_EPOCH}"
            self.metrics.evaluated(row, {"_type": f"{name}_epoch", "epoch": epoch, **found, **errors})

    def _keep_best(self, found: dict[str, dict[str, float]]) -> None:
        """Saves the best checkpoint where TRAIN.BEST_METRIC is higher than ever before."""
        name, _, metric = self.cfg.TRAIN.BEST_METRIC.partition("/")
        if name not in found:
            return
        if metric not in found[name]:
            log.warning(
                "TRAIN.BEST_METRIC %s/%s: %s gives %s; no best checkpoint", name, metric, name, ", ".join(found[name])
            )
        elif found[name][metric] > self.state.best:
            self.state.best = found[name][metric]
            self.saver.save_best(self.state.best)

    def save(self) -> None:
        self.saver.save()
        self._write_quarantine()

    def _write_quarantine(self) -> None:
        rows, self.bad_rows = self.state.data.loader.quarantine.take() + self.bad_rows, []
        gathered = dist.gather_objects(rows)
        if dist.is_main():
            rows = [row for ranks_rows in gathered for row in ranks_rows]
            if not quarantine.write(self.folder / "quarantine.jsonl", rows):
                self.bad_rows = rows  # to be tried again with the next ones

    def stop(self, signal_name: str) -> None:
        """Saves, leaves the file PREEMPTED, and ends every rank with exit code 75."""
        self.save()
        self.saver.finish()
        when = f"{max(dist.all_gather_objects(signal_name))} after step {self.state.steps_done}"
        if dist.is_main():
            log.warning("stopped by %s: everything is saved, the same command resumes", when)
        self.close()
        run.preempted(self.folder, when)

    def close(self) -> None:
        self.saver.finish()
        self.state.data.loader.close()
        self.progress.close()
        self.metrics.close()
        dist.barrier()


def _samples(micro_batches: list[dict]) -> list[int]:
    return [int(i) for batch in micro_batches for i in batch["index"]]


def _gpu_memory() -> str:
    return f"{torch.cuda.max_memory_allocated() / 2**30:.2f}G" if torch.cuda.is_available() else "0.00G"
