"""The test phase: the evaluations of node EVALS on one checkpoint, results.json and the report."""

import logging
from pathlib import Path

from videorl import checkpoint, dist
from videorl.data import quarantine
from videorl.engine import build, evaluate, run

log = logging.getLogger("videorl")


def test(cfg) -> dict[str, dict[str, float]]:
    """Runs every evaluation with AT_TEST and writes `results.json` and `predictions/<name>.npz`."""
    folder = Path(cfg.OUTPUT_DIR)
    evaluations = evaluate.evaluations(cfg, at_test=True)
    model = build.model(cfg)
    source = _load(cfg, model, folder)
    precision = build.precision(cfg)
    results = {}
    for name, evaluation in evaluations.items():
        results[name] = evaluation.run(model, precision, folder / "predictions" / f"{name}.npz")
        log.info("%s (%s): %s", name, evaluation.protocol, evaluate.readable(results[name]))
        _write_quarantine(folder, evaluation)
    if dist.is_main():
        protocols = {name: evaluation.protocol for name, evaluation in evaluations.items()}
        run.update_json(folder / "results.json", {"evals": results, "protocol": protocols, "checkpoint": source})
    return results


def _load(cfg, model, folder: Path) -> str:
    """Weights to test: TEST.CHECKPOINT_FILE_PATH, the best or newest of this run, or TRAIN.CHECKPOINT_FILE_PATH."""
    best = folder / "checkpoints" / checkpoint.BEST
    named = cfg.TEST.CHECKPOINT_FILE_PATH
    file = Path(named) if named else best if best.is_file() else checkpoint.newest(folder / "checkpoints")
    if file is None and cfg.TRAIN.CHECKPOINT_FILE_PATH:
        file = Path(cfg.TRAIN.CHECKPOINT_FILE_PATH)
    if file is None:
        log.warning("no checkpoint named or found in %s: testing untrained weights", folder)
        return "untrained weights"
    state = checkpoint.read(file)
    weights = state.get("ema_state") or state.get("model_state", state)
    checkpoint.load_weights(model, weights, str(file))
    return str(file)


def _write_quarantine(folder: Path, evaluation: evaluate.Evaluation) -> None:
    gathered = dist.gather_objects(evaluation.bad_rows)
    if dist.is_main():
        quarantine.write(folder / "quarantine.jsonl", [row for rows in gathered for row in rows])
