"""The test phase: the evaluations of node EVALS on one checkpoint, and results.json."""

import logging
from pathlib import Path

from videorl import checkpoint, dist
from videorl.engine import best, build, determinism, evaluate, run, weights
from videorl.loading import quarantine

log = logging.getLogger("videorl")


def test(cfg, evaluations: dict[str, evaluate.Evaluation], alive) -> dict[str, dict[str, float]]:
    """Runs the evaluations on the best or named checkpoint and writes `results.json` and `predictions/<name>.npz`.

    Calls `alive(doing)` after each batch.
    """
    determinism.set_level(cfg.DETERMINISM)
    folder = Path(cfg.OUTPUT_DIR)
    model = build.model(cfg)
    evaluate.check_clip_size(cfg, model, [evaluation.title for evaluation in evaluations.values()])
    source, averaged = _load(cfg, model, folder, _class_names(evaluations))
    precision = build.precision(cfg)
    results, protocols = {}, {}
    for name, evaluation in evaluations.items():
        try:
            results[name] = evaluation.run(model, precision, folder / "predictions" / f"{name}.npz", alive)
        finally:
            if dist.is_main():  # also what makes it end: the list of what is too many
                quarantine.write(folder / "quarantine.jsonl", evaluation.bad_rows)
        protocols[name] = evaluation.protocol + ", moving average of the weights" * averaged
        log.info("%s (%s): %s", name, protocols[name], evaluate.readable(results[name]))
    for name, average in evaluate.averages(evaluations, results).items():
        results[name] = average
        log.info("%s, average: %s", name, evaluate.readable(average))
    if dist.is_main():
        run.update_json(folder / "results.json", {"evals": results, "protocol": protocols, "checkpoint": source})
    return results


def _class_names(evaluations: dict[str, evaluate.Evaluation]) -> dict[str, tuple[str, ...]]:
    """Label space to the names of its classes by number, of all data that is tested on."""
    found = [getattr(evaluation.dataset, "class_names", {}) for evaluation in evaluations.values()]
    return {space: names for of_one in found for space, names in of_one.items() if names}


def _load(cfg, model, folder: Path, class_names: dict[str, tuple[str, ...]]) -> tuple[str, bool]:
    """Loads the weights to test; says where they are from, and whether they are a moving average.

    Raises `UserError` where the file lacks some of them.
    """
    file = dist.on_main(lambda: _choose(cfg, folder / "checkpoints"))
    if file is None:
        log.warning("no checkpoint named or found in %s: testing untrained weights", folder)
        return "untrained weights", False
    state, named = checkpoint.read(file), file.parent != folder / "checkpoints" or bool(cfg.TEST.CHECKPOINT_FILE_PATH)
    weights.take(cfg, model, state, file, data=class_names, testing=True, named=named)
    return str(file), isinstance(state.get("ema_state"), dict) and not (named and cfg.MODEL.CHECKPOINT_ENTRY)


def _choose(cfg, folder: Path) -> Path | None:
    """TEST.CHECKPOINT_FILE_PATH, the best or newest undamaged one of this run, or TRAIN.CHECKPOINT_FILE_PATH."""
    if cfg.TEST.CHECKPOINT_FILE_PATH:
        return Path(cfg.TEST.CHECKPOINT_FILE_PATH)
    named = cfg.TRAIN.CHECKPOINT_FILE_PATH
    return best.chosen(folder, cfg.TRAIN.BEST_METRIC) or (Path(named) if named else None)
