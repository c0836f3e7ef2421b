"""The training loop, the same for every system."""

import logging
import time
from collections.abc import Mapping, Sequence

import torch

from videorl import checkpoint, config, dist
from videorl.engine import determinism, evaluate, info, optim, run
from videorl.engine.best import Best
from videorl.engine.embed import Embedder
from videorl.engine.journal import Journal
from videorl.engine.saver import Saver
from videorl.engine.state import State
from videorl.engine.step import backward, unwrap
from videorl.engine.update import Update, samples_of
from videorl.engine.watch import Watch
from videorl.registry import UserError

log = logging.getLogger("videorl")


def train(cfg, watch: Watch, tested: Mapping[str, object]) -> None:
    """Trains to SOLVER.MAX_EPOCH, or until a signal stops it, and leaves everything in OUTPUT_DIR.

    `tested`: title to data set of the test phase. Their annotations are compared between ranks now, not after days.
    """
    determinism.set_level(cfg.DETERMINISM)
    state = State.build(cfg)
    trainer = Trainer(cfg, state, tested)
    state.resume()
    trainer.announce()
    embed = Embedder(cfg, state, watch.beat)
    while not state.ended:
        for micro_batches in state.data.epoch(state.epoch, state.step_in_epoch, embed):
            trainer.meet(watch, micro_batches)
            trainer.step(micro_batches, watch)
            if trainer.saver.due():
                trainer.save()
        trainer.meet(watch)
        trainer.end_epoch(watch)
    trainer.close()


class Trainer:
    """The parts of the loop: what the ranks tell each other, a step, and what happens at the end of an epoch."""

    def __init__(self, cfg, state: State, tested: Mapping[str, object]):
        self.cfg, self.state = cfg, state
        self.saver = Saver(cfg, state)
        self.evaluations = evaluate.evaluations(cfg, at_test=False)
        self.clip = config.spec(cfg).clip
        self.checked = False
        self.journal = Journal(cfg, state)
        self.update = Update(cfg, state, self.journal)
        self.best = Best(cfg.TRAIN.BEST_METRIC, self.evaluations)
        while_training = {e.title: e.dataset for e in self.evaluations.values()}
        evaluate.check_clip_size(cfg, state.evaluated_model, [*tested, *while_training])
        title = f"{cfg.TRAIN.DATASET}/train"
        trained_on = {title: state.data.dataset} if len(state.data.machines) == 1 else {}
        self.data = run.agreed_data({**tested, **while_training, **trained_on}) | {title: state.data.facts}
        self.clips = state.data.plan.step_size * config.spec(cfg).augment.copies
        self.lr_factor = optim.lr_factor(cfg.SOLVER, cfg.NUM_SHARDS, self.clips)

    def announce(self) -> None:
        """The first lines of the log, run.json, and the progress bar."""
        if self.cfg.LOG_MODEL_INFO and dist.is_main():
            info.log_model_info(self.cfg)
        self.journal.begin(self.data, self.clips, self.lr_factor)
        self.ended_at = time.monotonic()

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
            self.journal.quarantine()
            raise wrong[0]

    def step(self, micro_batches: list[dict], watch: Watch) -> None:
        """One optimizer step over this rank's micro-batches."""
        state, solver, begun = self.state, self.cfg.SOLVER, time.monotonic()
        if state.steps_done == 0:
            self.journal.first_clips(micro_batches[0])
        watch.beat(f"step {state.steps_done} with samples {samples_of(micro_batches)[:32]}")
        epoch = state.epoch + state.step_in_epoch / state.data.steps
        rate = optim.lr_at(solver, epoch, state.data.steps, self.lr_factor)
        optim.set_rates(state.optimizer, rate, optim.weight_decay_at(solver, epoch))
        state.model.train()
        if self.cfg.DETERMINISM == "full" and state.steps_done == 0:
            determinism.check(state.model, lambda: self._gradients(micro_batches))
        state.optimizer.zero_grad(set_to_none=True)
        self.update.before()
        values = self._gradients(micro_batches)
        if not self.checked:
            self._check_all_have_gradients()
        norm = self.update(values["loss"], micro_batches)
        state.step_in_epoch += 1
        data_time, self.ended_at = begun - self.ended_at, time.monotonic()
        self.journal.step(values, rate, norm, data_time, self.ended_at - begun)
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

    # --------------------------------------------------------------------------------------------- epochs and the end

    def end_epoch(self, watch: Watch) -> None:
        state = self.state
        state.epoch, state.step_in_epoch = state.epoch + 1, 0
        last = state.epoch == self.cfg.SOLVER.MAX_EPOCH
        due = {n: e for n, e in self.evaluations.items() if last or state.epoch % e.node.EVERY == 0}
        found = {}
        for name, evaluation in due.items():
            watch.beat(f"evaluation {name} after epoch {state.epoch}")
            found[name] = self._evaluate(name, evaluation, watch)
        for name, average in evaluate.averages(due, found).items():
            found[name] = average
            self.journal.evaluation(name, average)
        self._keep_best(found)
        self.journal.quarantine()  # before the checkpoint, which what stands there is cut back to
        if state.ended and not last:
            log.info("training ends: no better %s since epoch %d (TRAIN.EARLY_STOP)", self.best.name, state.best_epoch)
        if state.ended or state.epoch % self.cfg.TRAIN.CHECKPOINT_PERIOD == 0:
            self.saver.save()
        self.journal.end_epoch()
        self.ended_at = time.monotonic()

    def _evaluate(self, name: str, evaluation: evaluate.Evaluation, watch: Watch) -> dict[str, float]:
        model = self.state.evaluated_model
        # Statistics of batch norm are each rank's own; those of rank 0 are the ones that are saved.
        dist.copy_from_main(model.buffers())
        try:
            found = evaluation.run(model, self.state.precision, alive=watch.beat)
        except UserError:
            self.journal.not_read(evaluation.bad_rows)
            self.journal.write_bad_rows()
            raise
        self.journal.not_read(evaluation.bad_rows)
        self.journal.evaluation(name, found, evaluation.per_sample)
        return found

    def _keep_best(self, found: dict[str, dict[str, float]]) -> None:
        """Saves the best checkpoint where TRAIN.BEST_METRIC is better than ever before."""
        value = self.best.value(found)
        if value is not None and self.best.is_better(value, self.state.best):
            log.info("%s %.4g is the %s so far: %s", self.best.name, value, self.best.way, checkpoint.BEST)
            self.state.best, self.state.best_epoch = value, self.state.epoch
            self.saver.save_best(self.best.name, value)

    def save(self) -> None:
        self.journal.quarantine()  # before the checkpoint, to which all logs are cut back
        self.saver.save()

    def stop(self, signal_name: str) -> None:
        """Saves, leaves the file PREEMPTED, and ends every rank with exit code 75."""
        self.save()
        self.saver.finish()
        when = f"{max(dist.all_gather_objects(signal_name))} after step {self.state.steps_done}"
        if dist.is_main():
            log.warning("stopped by %s: everything is saved, the same command resumes", when)
        self.close()
        run.preempted(self.journal.folder, when)

    def close(self) -> None:
        self.saver.finish()
        self.state.data.loader.close()
        self.journal.close()
        dist.barrier()
