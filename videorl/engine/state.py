"""What a training run is made of and where it stands: all that a checkpoint must hold to go on exactly."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from videorl import checkpoint, config, convert, dist
from videorl.engine import build, optim, weights
from videorl.engine.objective import Objective
from videorl.engine.step import Precision, unwrap
from videorl.registry import UserError
from videorl.settings import parse_text

log = logging.getLogger("videorl")


@dataclass
class State:
    """Model, objective, optimizer, precision and moving average, and the position: epochs done, steps into the next.

    There is no random state: every random number follows from (RNG_SEED, epoch or step, sample or chunk).
    """

    cfg: object
    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    precision: Precision
    ema: object
    data: build.TrainData
    epoch: int = 0
    step_in_epoch: int = 0
    best: float | None = None  # of TRAIN.BEST_METRIC, so far
    best_epoch: int = 0  # epochs done when it was found

    @classmethod
    def build(cls, cfg) -> "State":
        data = build.train_data(cfg)
        plain = build.model(cfg)
        objective = build.objective(cfg)
        optimizer = optim.build_optimizer(cfg, plain, objective)
        return cls(
            cfg,
            build.parallel(cfg, plain),
            objective,
            optimizer,
            build.precision(cfg),
            _moving_average(cfg, plain),
            data,
        )

    @property
    def ended(self) -> bool:
        """Whether all epochs are done, or as many as TRAIN.EARLY_STOP allows without a better metric."""
        patience, stale = self.cfg.TRAIN.EARLY_STOP, self.epoch - self.best_epoch
        early = patience > 0 and self.best is not None and self.step_in_epoch == 0 and stale >= patience
        return self.epoch >= self.cfg.SOLVER.MAX_EPOCH or early

    @property
    def steps_done(self) -> int:
        return self.epoch * self.data.steps + self.step_in_epoch

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that evaluations use: the moving average where there is one."""
        return self.ema.module if self.ema is not None else unwrap(self.model)

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Label space to the names of its classes by number, where the data set knows them."""
        return getattr(self.data.dataset, "class_names", {})

    # ------------------------------------------------------------------------------------------------------- content

    def weights(self) -> dict:
        """What testing needs, under PySlowFast's names."""
        return {
            "epoch": self.epoch - 1,  # the last finished one, counted from 0, as in PySlowFast
            "model_state": unwrap(self.model).state_dict(),
            "ema_state": self.ema.module.state_dict() if self.ema is not None else None,
            "words": weights.words_of(self.cfg.TEXT.DICT),
            "classes": {space: list(names) for space, names in self.class_names.items()},
            "cfg": config.dump(self.cfg),
        }

    def content(self) -> dict:
        """Everything a run needs to go on exactly. All ranks call it together; rank 0's is whole."""
        return {
            **self.weights(),
            "optimizer_state": optim.state_of(self.optimizer),
            "scaler_state": self.precision.scaler.state_dict(),
            "objective_state": self.objective.state_dict(),
            "step_in_epoch": self.step_in_epoch,
            "steps_done": self.steps_done,
            "best": {"metric": self.cfg.TRAIN.BEST_METRIC, "value": self.best, "epoch": self.best_epoch},
            "step_size": self.data.plan.step_size,
            "epoch_steps": self.data.steps,
            "world_size": dist.world_size(),
            "threads": torch.get_num_threads(),
            "data": self.data.fingerprint,
            "batches": self.data.batches.state() if self.step_in_epoch else {},
        }

    # ------------------------------------------------------------------------------------------------------- restoring

    def resume(self) -> None:
        """Goes on from the newest checkpoint in OUTPUT_DIR, or starts from TRAIN.CHECKPOINT_FILE_PATH."""
        node, folder = self.cfg.TRAIN, Path(self.cfg.OUTPUT_DIR) / "checkpoints"
        file = dist.on_main(lambda: _newest(folder, node.AUTO_RESUME))
        if file is not None:
            self.restore(checkpoint.read(file), file)
        elif node.CHECKPOINT_FILE_PATH:
            file = Path(node.CHECKPOINT_FILE_PATH)
            state = checkpoint.read(file)
            if node.CHECKPOINT_EPOCH_RESET or weights.missing(state):
                self.start_from(state, file)
            else:
                self.restore(state, file)
        if self.ema is not None and self.steps_done == 0:
            self.ema.set(unwrap(self.model))

    def start_from(self, state: dict, file: Path) -> None:
        """Takes the weights of a checkpoint, ours or published. Raises `UserError` where it gives too little."""
        weights.take(self.cfg, unwrap(self.model), state, file, data=self.class_names)

    def restore(self, state: dict, file: Path) -> None:
        """Raises `UserError` where `state` is not of a run like this one; logs what differs without harm."""
        self._check_same_run(state, file)
        try:
            convert.load_exactly(unwrap(self.model), state["model_state"], str(file))
        except UserError as error:
            raise UserError(f"{error} {weights_alone(file)}") from None
        try:
            self._restore_optimizer(state["optimizer_state"], file)
            if state["scaler_state"]:  # empty where the run did not need one
                self.precision.scaler.load_state_dict(state["scaler_state"])
            self.objective.load_state_dict(state["objective_state"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state.get("ema_state") or state["model_state"])
            self._restore_best(state["best"], state["epoch"] + 1)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            reason = f"{type(error).__name__} {dist.first_line(error)}"
            raise UserError(f"{file} holds no whole run to resume ({reason}). {weights_alone(file)}") from None
        self.epoch, self.step_in_epoch = state["epoch"] + 1, state["step_in_epoch"]
        self.data.batches.restore(state.get("batches", {}))
        log.info("resumed from %s: %d epochs and %d steps done", file, self.epoch, self.step_in_epoch)

    def _restore_best(self, saved: object, epoch: int) -> None:
        """Values of another metric are not compared with those of this one. Where it is not known when the best was
        reached, as of older versions, it counts as just reached, after `epoch`."""
        metric = self.cfg.TRAIN.BEST_METRIC
        before, value = (saved["metric"], saved["value"]) if isinstance(saved, dict) else ("another metric", saved)
        value = None if value is None else float(value)
        self.best = value if before == metric else None
        self.best_epoch = int(saved.get("epoch", epoch)) if isinstance(saved, dict) else epoch
        if before != metric and value is not None:
            log.warning("best so far was %s %.4g: that of TRAIN.BEST_METRIC %r begins anew", before, value, metric)

    def _restore_optimizer(self, saved: dict, file: Path) -> None:
        """Takes over its moments. Weight decay and the like stay as this run's settings say."""
        groups = self.optimizer.param_groups
        if _names_in(saved) != [g["names"] for g in groups]:
            raise UserError(
                f"{file}: its optimizer groups the parameters in another way; restore the settings of losses, weight"
                f" decay and layer decay. {weights_alone(file)}"
            )
        optim.restore(self.optimizer, saved)

    def _check_same_run(self, state: dict, file: Path) -> None:
        if missing := weights.missing(state):
            raise UserError(f"{file} holds no run to resume ({', '.join(missing)} missing). {weights_alone(file)}")
        data = self.data.fingerprint
        if state["data"] != data:
            raise UserError(
                f"{file} was trained on other data (fingerprint {state['data']}, now {data}): the csv has changed;"
                " restore it, or start in another OUTPUT_DIR"
            )
        if state["step_size"] != self.data.plan.step_size:
            raise UserError(
                f"{file} has {state['step_size']} videos a step, this run {self.data.plan.step_size};"
                " set TRAIN.BATCH_SIZE or GRAD_ACCU_NUM_BATCH so that they agree"
            )
        steps = state.get("epoch_steps", self.data.steps)
        if steps != self.data.steps:
            raise UserError(
                f"{file} has {steps} steps an epoch, this run {self.data.steps}; restore BATCHES and DATASETS."
                f" {weights_alone(file)}"
            )
        before, now = _settings(state["cfg"]), config.flat(self.cfg)
        method = "SOLVER.OPTIMIZING_METHOD"
        if before.get(method) != now[method]:
            raise UserError(f"{file} was trained with {method} {before.get(method)}, this run says {now[method]}")
        self._say_what_differs(state, before, now)

    def _say_what_differs(self, state: dict, before: dict, now: dict) -> None:
        if state["world_size"] != dist.world_size():
            log.warning(
                "resuming a run of %d processes with %d: data order and augmentation stay exact, dropout masks and the"
                " order of float sums do not",
                state["world_size"],
                dist.world_size(),
            )
        if state["threads"] != torch.get_num_threads():
            log.warning(
                "resuming with %d threads instead of %d: the last bits of the numbers will differ",
                torch.get_num_threads(),
                state["threads"],
            )
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                log.warning("resuming with another setting: %s was %s, is %s", key, before.get(key), now.get(key))


def _names_in(saved: dict) -> list | None:
    """Names of parameters by group, of the content of an optimizer. None where it is none."""
    groups = saved.get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        return None
    return [group.get("names") for group in groups]


def weights_alone(file: Path) -> str:
    """What to do where a checkpoint fits no more."""
    return (
        f"To take its weights alone: another OUTPUT_DIR, TRAIN.CHECKPOINT_FILE_PATH {file} and"
        " TRAIN.CHECKPOINT_EPOCH_RESET True"
    )


def _settings(text: str) -> dict[str, object]:
    """Dotted key to value of the `cfg` of a checkpoint. Raises `UserError`."""
    return {".".join(s.path): s.value for s in parse_text(text, "its cfg") if s.path != ("SHARD_ID",) and s.value != {}}


def _newest(folder: Path, wanted: bool) -> Path | None:
    checkpoint.sweep(folder)
    return checkpoint.newest(folder) if wanted else None


def _moving_average(cfg, model: nn.Module):
    if not cfg.EMA.ENABLED:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=cfg.EMA.DECAY)
