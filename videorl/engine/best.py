"""Which checkpoint is the best: the metric that says so, and which way it is better."""

import logging
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from videorl import checkpoint, config
from videorl.metrics import HIGHER
from videorl.registry import UserError, did_you_mean

log = logging.getLogger("videorl")


class Best:
    """The metric `name`, EVAL/METRIC, among what the evaluations that run while training declare.

    Raises `UserError` for one that none of them gives. There is none to choose by where the name is empty, where
    nothing is evaluated, or where it is the default's and does not apply, which is said.
    """

    def __init__(self, name: str, evaluations: Mapping[str, object]):
        self.name, self.sign = name, 0
        self.evaluation, _, self.metric = name.partition("/")
        if not name:
            return
        declared = _declared(evaluations)
        self.sign = next((sign for pattern, sign in declared.items() if fnmatchcase(name, pattern)), 0)
        if self.sign:
            return
        if declared and name not in config.BEST_METRICS:
            hint = did_you_mean(name, declared)
            raise UserError(f"TRAIN.BEST_METRIC {name}: expected EVAL/METRIC, one of {', '.join(declared)}{hint}")
        if evaluations or name not in config.BEST_METRICS:
            known = ", ".join(declared) or "none"
            log.warning("TRAIN.BEST_METRIC %s: not among what is measured (%s): no best checkpoint", name, known)

    def value(self, found: Mapping[str, Mapping[str, float]]) -> float | None:
        """The metric in what evaluations found, if it is there and finite."""
        if not self.sign or self.evaluation not in found:
            return None
        value = found[self.evaluation].get(self.metric, math.nan)
        if not math.isfinite(value):
            log.warning("TRAIN.BEST_METRIC %s: no number this time; the best checkpoint stays", self.name)
            return None
        return value

    def is_better(self, value: float, than: float | None) -> bool:
        return than is None or self.sign * value > self.sign * than

    @property
    def way(self) -> str:
        return "highest" if self.sign == HIGHER else "lowest"


def _declared(evaluations: Mapping[str, object]) -> dict[str, int]:
    """EVAL/METRIC to the way that is better; of the average over data sets what all of these have."""
    parts: dict[str, list[Mapping[str, int]]] = {}
    for name, evaluation in evaluations.items():
        for called in dict.fromkeys((name, evaluation.entry)):
            parts.setdefault(called, []).append(getattr(evaluation.eval, "metrics", {}))
    return {
        f"{name}/{metric}": sign
        for name, metrics in parts.items()
        for metric, sign in metrics[0].items()
        if all(metric in others for others in metrics)
    }


def chosen_by(file: Path) -> str:
    """The metric by which a run chose its best checkpoint, if the commit mark beside it says so."""
    said = checkpoint.note(file).get("metric", "")
    return said if isinstance(said, str) else ""


def chosen(folder: Path, wanted: str | None) -> Path | None:
    """Of a run's checkpoints the best by the metric `wanted` (None: whichever), or else the newest, if they are whole.

    Says in the log why it is not the best. Raises `UserError` as `checkpoint.newest`.
    """
    best = folder / checkpoint.BEST
    if best.is_file():
        if reason := checkpoint.damage(best):
            reason = f"damaged ({reason})"
        elif wanted is not None and (metric := chosen_by(best)) not in ("", wanted):
            reason = f"the best by {metric}, not by TRAIN.BEST_METRIC {wanted!r}"
        else:
            return best
        log.warning("%s is %s; taking the newest checkpoint instead", best, reason)
    return checkpoint.newest(folder)
