"""The training loop, the same for every system."""

import json
import logging
import signal
import time
from pathlib import Path

import torch

from videorl import checkpoint, config, dist
from videorl.data import quarantine
from videorl.engine import build, evaluate, optim, run
from videorl.engine.step import Precision, backward, unwrap
from videorl.log import Metrics, Progress, duration
from videorl.registry import UserError

log = logging.getLogger("videorl")

SKIPS_IN_A_ROW = 10


def train(cfg) -> None:
    """Trains to SOLVER.MAX_EPOCH, or as far as a stop signal lets it, and leaves everything in OUTPUT_DIR."""
    trainer = Trainer(cfg)
    trainer.resume()
    trainer.announce()
    while trainer.epoch < cfg.SOLVER.MAX_EPOCH:
        for micro_batches in trainer.data.epoch(trainer.epoch, trainer.step_in_epoch):
            trainer.step(micro_batches)
            if trainer.checkpoint_due():
                trainer.save()
            if trainer.stop_asked():
                trainer.end_early()
        trainer.end_epoch()
    trainer.close()


class Trainer:
    """What a training run holds: data, model, objective, optimizer, and its position (epochs done, steps into the next)."""

    def __init__(self, cfg):
        self.cfg = cfg
        self.folder = Path(cfg.OUTPUT_DIR)
        self.data = build.train_data(cfg)
        dist.agree({"training csv": self.data.dataset.fingerprint})
        self.evaluations = evaluate.evaluations(cfg, at_test=False)
        plain = build.model(cfg)
        self.objective = build.objective(cfg)
        self.precision: Precision = build.precision(cfg)
        self.optimizer = optim.build_optimizer(cfg, plain, self.objective)
        self.ema = _ema(cfg, plain)
        self.model = build.parallel(cfg, plain)
        self.spec = config.spec(cfg)
        self.epoch, self.step_in_epoch = 0, 0
        self.best = float("-inf")
        self.skipped, self.skipped_in_a_row = 0, 0
        self.saved_at = self.stepped_at = time.monotonic()
        self.signal: str | None = None
        self.metrics = _metrics(cfg, self.folder)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note_signal)

    # ------------------------------------------------------------------------------------------------ one step

    @property
    def steps_done(self) -> int:
        return self.epoch * self.data.steps + self.step_in_epoch

    def step(self, micro_batches: list[dict]) -> None:
        """One optimizer step over this rank's micro-batches."""
        begun = time.monotonic()
        self.model.train()
        lr = optim.lr_at(self.cfg.SOLVER, self.epoch + self.step_in_epoch / self.data.steps, self.cfg.NUM_SHARDS)
        optim.set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        values = backward(
            self.model,
            self.objective,
            micro_batches,
            clip=self.spec.clip,
            precision=self.precision,
            seed=self.cfg.RNG_SEED,
            step=self.steps_done,
        )
        norm = self._update(values["loss"], micro_batches)
        self.step_in_epoch += 1
        self.progress.step()
        data_time, self.stepped_at = begun - self.stepped_at, time.monotonic()
        if self.steps_done % self.cfg.LOG_PERIOD == 0 or self.step_in_epoch == self.data.steps:
            self._log(values, lr, norm, data_time, self.stepped_at - begun)

    def _update(self, loss: float, micro_batches: list[dict]) -> float:
        """Clips, checks, and moves the weights. Returns the norm of the gradient before clipping."""
        solver, scaler = self.cfg.SOLVER, self.precision.scaler
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        scaler.unscale_(self.optimizer)
        limit = solver.CLIP_GRAD_L2NORM or float("inf")
        if solver.CLIP_GRAD_VAL:
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            torch.nn.utils.clip_grad_value_(parameters, solver.CLIP_GRAD_VAL)
        else:
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        norm = float(norm)
        finite = loss - loss == 0 and (norm - norm == 0 or scaler.is_enabled())
        if not finite:
            self._not_finite(loss, norm, micro_batches)
            scaler.update()
            return norm
        self.skipped_in_a_row = 0
        before = scaler.get_scale()
        scaler.step(self.optimizer)
        scaler.update()
        if scaler.get_scale() < before:
            self.skipped += 1
            log.warning("step %d: gradient beyond float16, step left out (%d so far)", self.steps_done, self.skipped)
        elif self.ema is not None:
            self.ema.update(unwrap(self.model))
        return norm

    def _not_finite(self, loss: float, norm: float, micro_batches: list[dict]) -> None:
        """Stops the run, or leaves the step out, and says which samples it was. All ranks come here together."""
        ids = dist.all_gather_objects([int(i) for batch in micro_batches for i in batch["index"]])
        samples = sorted({i for rank_ids in ids for i in rank_ids})
        what = f"step {self.steps_done}: loss {loss}, gradient norm {norm}; samples {samples}"
        if dist.is_main():
            with (self.folder / "nonfinite.jsonl").open("a") as out:
                row = {"step": self.steps_done, "loss": str(loss), "grad_norm": str(norm), "samples": samples}
                out.write(json.dumps(row) + "\n")
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        if self.cfg.TRAIN.NONFINITE != "skip" or self.skipped_in_a_row > SKIPS_IN_A_ROW:
            raise UserError(
                f"not finite, stopped before the update at {what[:600]} (see nonfinite.jsonl); lower SOLVER.BASE_LR, clip gradients, or set TRAIN.NONFINITE skip"
            )
        log.warning("not finite, left out: %s", what)

    # -------------------------------------------------------------------------------------------------- logging

    def announce(self) -> None:
        solver, plan = self.cfg.SOLVER, self.data.plan
        first = optim.lr_at(solver, solver.WARMUP_EPOCHS, self.cfg.NUM_SHARDS)
        log.info(
            "%s on %d x %s, %s; %d videos a process, %d a step; learning rate after warm-up %g; epochs %d to %d",
            solver.OPTIMIZING_METHOD,
            dist.world_size(),
            self.precision.device.type,
            str(self.precision.dtype or torch.float32).removeprefix("torch."),
            plan.micro_batch,
            plan.step_size,
            first,
            self.epoch + 1,
            solver.MAX_EPOCH,
        )
        if dist.is_main():
            data = {f"{self.cfg.TRAIN.DATASET}/train": _facts(self.data.dataset)}
            data |= {f"{e.node.DATASET}/{e.node.SPLIT}": _facts(e.dataset) for e in self.evaluations.values()}
            batch = {"per_process": plan.micro_batch, "per_step": plan.step_size, "learning_rate": first}
            run.update_json(self.folder / "run.json", run.describe(self.cfg, data, batch))
        total = self.cfg.SOLVER.MAX_EPOCH * self.data.steps
        self.progress = Progress(total, "train", self.cfg.USE_TQDM and dist.is_main(), self.steps_done)

    def _log(self, values: dict[str, float], lr: float, norm: float, data_time: float, net_time: float) -> None:
        if not dist.is_main():
            return
        left = duration(self.progress.seconds_left())
        extra = " ".join(f"{k} {v:.4g}" for k, v in values.items() if k != "loss")
        log.info(
            "epoch %d/%d step %d/%d loss %.4f (%s) lr %.3g grad norm %.3g data %.2f s net %.2f s left %s",
            self.epoch + 1,
            self.cfg.SOLVER.MAX_EPOCH,
            self.step_in_epoch,
            self.data.steps,
            values["loss"],
            extra,
            lr,
            norm,
            data_time,
            net_time,
            left,
        )
        row = {
            "step": self.steps_done,
            "epoch": round(self.steps_done / self.data.steps, 4),
            **values,
            "lr": lr,
            "grad_norm": norm,
            "dt": data_time + net_time,
            "dt_data": data_time,
        }
        stats = {
            "epoch": f"{self.epoch + 1}/{self.cfg.SOLVER.MAX_EPOCH}",
            "iter": f"{self.step_in_epoch}/{self.data.steps}",
            "dt": data_time + net_time,
            "dt_data": data_time,
            "dt_net": net_time,
            "eta": left,
            "gpu_mem": f"{_gpu_memory():.2f}G",
            "grad_norm": norm,
            "lr": lr,
            "loss": values["loss"],
        }
        if "top1" in values:
            stats["top1_err"] = 100 * (1 - values["top1"])
        self.metrics.train(row, stats)

    # ------------------------------------------------------------------------------------------ epochs and files

    def end_epoch(self) -> None:
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        last = self.epoch == self.cfg.SOLVER.MAX_EPOCH
        if last or self.epoch % self.cfg.TRAIN.CHECKPOINT_PERIOD == 0:
            self.save()
        for name, evaluation in self.evaluations.items():
            if last or self.epoch % evaluation.node.EVERY == 0:
                self._evaluate(name, evaluation)
        self._write_quarantine()
        self.stepped_at = time.monotonic()

    def _evaluate(self, name: str, evaluation: evaluate.Evaluation) -> None:
        model = self.ema.module if self.ema is not None else unwrap(self.model)
        found = evaluation.run(model, self.precision)
        self._bad_rows = getattr(self, "_bad_rows", []) + evaluation.bad_rows
        log.info("%s after epoch %d: %s", name, self.epoch, evaluate.readable(found))
        if dist.is_main():
            row = {"name": name, "step": self.steps_done, "epoch": float(self.epoch), **found}
            stats = {"_type": f"{name}_epoch", "epoch": f"{self.epoch}/{self.cfg.SOLVER.MAX_EPOCH}", **found}
            if "top1" in found:
                stats |= {"top1_err": 100 * (1 - found["top1"]), "top5_err": 100 * (1 - found["top5"])}
            self.metrics.evaluated(row, stats)
        wanted, _, metric = self.cfg.TRAIN.BEST_METRIC.partition("/")
        if wanted == name and found.get(metric, float("-inf")) > self.best:
            self.best = found[metric]
            self._write(self.folder / "checkpoints" / checkpoint.BEST, self._weights(), {"metric": self.best})

    def checkpoint_due(self) -> bool:
        """Inside an epoch: after every CHECKPOINT_STEPS steps, or CHECKPOINT_MINUTES (by rank 0's clock)."""
        node = self.cfg.TRAIN
        if self.step_in_epoch in (0, self.data.steps):
            return False
        if node.CHECKPOINT_STEPS and self.steps_done % node.CHECKPOINT_STEPS == 0:
            return True
        late = node.CHECKPOINT_MINUTES > 0 and time.monotonic() - self.saved_at > 60 * node.CHECKPOINT_MINUTES
        return dist.broadcast_object(late) if node.CHECKPOINT_MINUTES > 0 else False

    def save(self) -> None:
        """A checkpoint of the whole run at this step."""
        folder = self.folder / "checkpoints"
        name = checkpoint.name_of(self.epoch, self.step_in_epoch)
        state = {
            **self._weights(),
            "optimizer_state": self.optimizer.state_dict(),
            "scaler_state": self.precision.scaler.state_dict(),
            "objective_state": self.objective.state_dict(),
            "ema_state": self.ema.module.state_dict() if self.ema is not None else None,
            "step_in_epoch": self.step_in_epoch,
            "steps_done": self.steps_done,
            "best": self.best,
            "step_size": self.data.plan.step_size,
            "world_size": dist.world_size(),
            "data": self.data.dataset.fingerprint,
        }
        self._write(folder / name, state, {"epoch": self.epoch, "step": self.steps_done})
        if dist.is_main():
            checkpoint.prune(folder, self.cfg.TRAIN.KEEP_CHECKPOINTS)
        self.saved_at = time.monotonic()
        self._write_quarantine()

    def _weights(self) -> dict:
        return {
            "epoch": self.epoch - 1,  # the last finished one, counted from 0, as in PySlowFast
            "model_state": unwrap(self.model).state_dict(),
            "classes": list(getattr(self.data.dataset, "classes", ())),
            "cfg": config.dump(self.cfg),
        }

    def _write(self, file: Path, state: dict, note: dict) -> None:
        if dist.is_main():
            try:
                checkpoint.save(file, state, note)
            except OSError as error:
                log.error("checkpoint %s was NOT written: %s; the run goes on, older checkpoints stand", file, error)
        dist.barrier()

    def _write_quarantine(self) -> None:
        rows = list(self.data.loader.quarantine.take()) + getattr(self, "_bad_rows", [])
        self._bad_rows = []
        gathered = dist.gather_objects(rows)
        if dist.is_main():
            quarantine.write(self.folder / "quarantine.jsonl", [r for rank_rows in gathered for r in rank_rows])

    def resume(self) -> None:
        """Continues the newest run in OUTPUT_DIR, or starts from CHECKPOINT_FILE_PATH."""
        node, folder = self.cfg.TRAIN, self.folder / "checkpoints"
        if dist.is_main():
            checkpoint.sweep(folder)
        dist.barrier()
        file = checkpoint.newest(folder) if node.AUTO_RESUME else None
        file = dist.broadcast_object(file)
        if file is not None:
            self._restore(checkpoint.read(file), file)
        elif node.CHECKPOINT_FILE_PATH:
            file = Path(node.CHECKPOINT_FILE_PATH)
            state = checkpoint.read(file)
            if node.CHECKPOINT_EPOCH_RESET:
                checkpoint.load_weights(unwrap(self.model), state.get("model_state", state), str(file))
            else:
                self._restore(state, file)
        if self.ema is not None and self.steps_done == 0:
            self.ema.set(unwrap(self.model))
        self.metrics.forget_after(self.steps_done)

    def _restore(self, state: dict, file: Path) -> None:
        self._check_same_run(state, file)
        checkpoint.load_weights(unwrap(self.model), state["model_state"], str(file), least=1.0)
        self.optimizer.load_state_dict(state["optimizer_state"])
        self.precision.scaler.load_state_dict(state["scaler_state"])
        self.objective.load_state_dict(state["objective_state"])
        if self.ema is not None and state["ema_state"] is not None:
            self.ema.module.load_state_dict(state["ema_state"])
        self.epoch, self.step_in_epoch = state["epoch"] + 1, state["step_in_epoch"]
        self.best = state["best"]
        log.info("resumed from %s: %d epochs and %d steps done", file, self.epoch, self.step_in_epoch)

    def _check_same_run(self, state: dict, file: Path) -> None:
        needed = {
            "model_state",
            "optimizer_state",
            "scaler_state",
            "objective_state",
            "step_in_epoch",
            "data",
            "step_size",
        }
        if missing := needed - state.keys():
            raise UserError(
                f"{file} holds no run to resume ({', '.join(sorted(missing))} missing); set TRAIN.CHECKPOINT_EPOCH_RESET True to take its weights"
            )
        if state["data"] != self.data.dataset.fingerprint:
            raise UserError(
                f"{file} was trained on other data (fingerprint {state['data']}, now {self.data.dataset.fingerprint}): the csv has changed; restore it or start in another OUTPUT_DIR"
            )
        if state["step_size"] != self.data.plan.step_size:
            raise UserError(
                f"{file} has {state['step_size']} videos a step, this run {self.data.plan.step_size}; set TRAIN.BATCH_SIZE or GRAD_ACCU_NUM_BATCH so that they agree"
            )
        if state["world_size"] != dist.world_size():
            log.warning(
                "resuming a run of %d processes with %d: data order and augmentation stay exact; dropout masks and the order of float sums do not",
                state["world_size"],
                dist.world_size(),
            )

    # --------------------------------------------------------------------------------------------------- the end

    def _note_signal(self, number: int, frame) -> None:
        self.signal = signal.Signals(number).name

    def stop_asked(self) -> bool:
        """Whether any rank has been told to stop."""
        return bool(dist.all_sum(torch.tensor([float(self.signal is not None)])).item())

    def end_early(self) -> None:
        """Saves, leaves the file PREEMPTED, and exits with 75."""
        self.save()
        if dist.is_main():
            (self.folder / "PREEMPTED").write_text(
                f"{run.now()} {self.signal or 'signal on another rank'} step {self.steps_done}\n"
            )
            log.warning(
                "stopped by %s after step %d; the same command resumes",
                self.signal or "a signal on another rank",
                self.steps_done,
            )
        self.close()
        raise SystemExit(dist.EXIT_PREEMPTED)

    def close(self) -> None:
        self.data.loader.close()
        self.progress.close()
        self.metrics.close()


def _metrics(cfg, folder: Path) -> Metrics:
    tensorboard = folder / cfg.TENSORBOARD.LOG_DIR if cfg.TENSORBOARD.ENABLE and dist.is_main() else None
    return Metrics(folder, tensorboard)


def _facts(dataset) -> dict:
    return {"fingerprint": dataset.fingerprint, "samples": len(dataset)}


def _gpu_memory() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def _ema(cfg, model):
    if not cfg.EMA.ENABLED:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=cfg.EMA.DECAY)
