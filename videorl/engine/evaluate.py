"""Evaluation: every sample counted exactly once, on any number of ranks."""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from videorl import config, dist
from videorl.engine import build
from videorl.engine.step import Precision, to_device
from videorl.loading.quarantine import Quarantine
from videorl.loading.worker import Jobs, in_turn
from videorl.log import Progress
from videorl.metrics import is_fraction
from videorl.registry import EVALS, UserError
from videorl.spec import Views

log = logging.getLogger("videorl")


class Evaluation:
    """The entry `entry` of EVALS on its data set, or on one of all (`data`), which is read once.

    Of `files` that no list names, all of label 0, it is the scores that are wanted (`per_sample`), not the metrics.
    """

    def __init__(self, cfg, entry: str, data: str = "", files: Sequence[str] = ()):
        node = cfg.EVALS[entry]
        data = data or node.DATASET
        if node.SPLIT == "train" and cfg.DATA.LOCAL_SHARDS:
            raise UserError(
                f"EVALS.{entry}.SPLIT train: with DATA.LOCAL_SHARDS each machine has training videos of its own, but"
                " all share the work of an evaluation; name a split that all of them have"
            )
        self.cfg, self.node, self.entry, self.data = cfg, node, entry, data
        self.name = entry if data == node.DATASET else f"{entry}_{data}"
        asked = _views(cfg, node, data)
        self.dataset = (
            build.dataset_of_files(cfg, data, files, asked) if files else build.dataset(cfg, data, node.SPLIT, asked)
        )
        self.views = getattr(self.dataset, "views", asked)
        self.spec = config.spec(cfg, self.views, data)
        if self.views != asked:
            log.info(
                "%s: clips are spread over the whole video, so that all %d along time would be the same: 1 is read",
                *(self.name, asked.clips),
            )
        entry, values = config.component(cfg, EVALS, entry)
        self.eval = entry(self.spec, values=values)
        self.clips = max(1, (node.BATCH_SIZE or cfg.TEST.BATCH_SIZE) // dist.local_size())
        self.bad_rows: list[dict] = []
        self.per_sample: dict[str, np.ndarray] = {}  # of the last run, on rank 0

    @property
    def title(self) -> str:
        return f"{self.data}/{self.node.SPLIT}"

    @property
    def protocol(self) -> str:
        return f"{self.data} {self.node.SPLIT}: {self.eval.protocol}"

    def run(
        self, model: torch.nn.Module, precision: Precision, predictions: Path | None = None, alive=lambda doing: None
    ) -> dict[str, float]:
        """Metrics, with `n` samples counted `of` all; the same on every rank. Calls `alive(doing)` after each batch.

        Where weights or scores are not finite there is no metric, which the log says.
        Rank 0 writes one row per sample to the file `predictions`. Raises `UserError` if no sample can be read or too
        many cannot, and `RuntimeError` if a view is missing or doubled without a reason.
        """
        self.bad_rows, self.per_sample = [], {}
        if broken := dist.on_main(lambda: _not_finite(model)):
            log.warning("%s: no metric: weights that are not finite: %s", self.name, ", ".join(broken[:8]))
            return {"n": 0, "of": len(self.dataset)}
        was_training = model.training
        model.eval()
        rows, bad = self._rows(model, precision, alive)
        model.train(was_training)
        gathered = dist.gather_objects((rows, bad))
        bad = {index: row for _, of_rank in gathered for index, row in of_rank.items()} if dist.is_main() else {}
        self.bad_rows = list(bad.values())
        return dist.on_main(lambda: self._finish([r for r, _ in gathered if r], bad, predictions))

    def _jobs(self) -> Jobs:
        """This rank's batches: every so many of those that one rank alone would make.

        The last bits of a score depend on what else is in the batch: so that is the same for any number of ranks.
        """
        size = max(1, self.clips // self._per_sample)
        return in_turn(len(self.dataset), size, dist.rank(), dist.world_size())

    def _rows(self, model, precision: Precision, alive) -> tuple[dict[str, np.ndarray], dict[int, dict]]:
        """This rank's rows, and its unreadable samples by index."""
        jobs = self._jobs()
        loader = build.loader(self.cfg, self.dataset, self.title)
        progress = Progress(len(jobs), self.name, self.cfg.USE_TQDM and dist.is_main())
        found: list[dict[str, np.ndarray]] = []
        merge = getattr(self.eval, "merge", None)
        with contextlib.closing(loader), torch.inference_mode(), precision.autocast():
            if hasattr(self.eval, "begin"):
                self.eval.begin(model, self.dataset)
            for batch in loader.run(jobs):
                parts = []
                for part in _slices(batch, self.clips):
                    rows = self.eval.step(model, to_device(part, precision.device, self.spec.clip))
                    parts.append({k: v.cpu().numpy() for k, v in rows.items()})
                if parts and merge:  # a batch holds all views of its samples
                    rows = _joined(parts)
                    parts = [merge(self._checked(rows, np.unique(rows["index"]), self._per_sample))]
                found += parts
                progress.step()
                alive(f"evaluation {self.name}, batch {progress.done} of {len(jobs)}")
        progress.close()
        return _joined(found) if found else {}, loader.quarantine.rows

    def _finish(self, rows: list[dict], bad: dict[int, dict], predictions: Path | None) -> dict[str, float]:
        quarantine = Quarantine(self.title, len(self.dataset), self.cfg.DATA.MAX_BAD_FRACTION)
        quarantine.rows = bad
        if not rows and len(bad) == len(self.dataset):
            first = next(iter(quarantine.rows.values()))
            raise UserError(
                f"{self.name}: none of the {len(self.dataset)} samples could be read;"
                f" first: {first['path']} ({first['error']})"
            )
        quarantine.check()
        wanted = [i for i in range(len(self.dataset)) if i not in quarantine.rows]
        rows = self._checked(_joined(rows), wanted, 1 if hasattr(self.eval, "merge") else self._per_sample)
        counted = {"n": len(np.unique(rows["index"])), "of": len(self.dataset)}
        if self._says_not_finite(rows):
            return counted
        metrics, self.per_sample = self.eval.finish(rows)
        if predictions:
            self._save(predictions, self.per_sample)
        return {**metrics, **counted}

    def _says_not_finite(self, rows: dict[str, np.ndarray]) -> bool:
        """Whether some rows are not finite: their order, or a mean over them, would be a number without meaning."""
        for name, values in rows.items():
            if np.issubdtype(values.dtype, np.floating):
                finite = np.isfinite(values).reshape(len(values), -1).all(1)
                if not finite.all():
                    first = self.dataset.path(int(rows["index"][finite.argmin()]))
                    log.warning(
                        "%s: no metric: %s of %d of %d %s are not finite, first of %s",
                        self.name,
                        name,
                        (~finite).sum(),
                        len(finite),
                        "videos" if hasattr(self.eval, "merge") else "views",
                        first,
                    )
                    return True
        return False

    @property
    def _per_sample(self) -> int:
        """Views of each sample."""
        return self.views.clips * self.views.crops

    def _checked(self, rows: dict[str, np.ndarray], wanted: Sequence[int], views: int) -> dict[str, np.ndarray]:
        """Rows sorted by (index, view), after a check that all `views` views of each sample wanted are there once."""
        view = rows.get("view", np.zeros_like(rows["index"]))
        order = np.lexsort((view, rows["index"]))
        rows = {k: v[order] for k, v in rows.items()}
        expected = np.stack([np.repeat(wanted, views), np.tile(np.arange(views), len(wanted))])
        found = np.stack([rows["index"], view[order]])
        if expected.shape != found.shape or (expected != found).any():
            raise RuntimeError(f"{self.name}: {_first_difference(expected, found, self.dataset)}")
        return rows

    def _save(self, file: Path, rows: dict[str, np.ndarray]) -> None:
        paths = np.array([self.dataset.path(int(i)) for i in rows["index"]])
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(file, **rows, paths=paths, classes=np.array(self.dataset.classes, dtype=str))
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error.strerror or error}") from None


def _not_finite(model: torch.nn.Module) -> list[str]:
    """Names of the parameters that are not finite, and of buffers with NaN (a mask may hold infinities)."""
    parameters = [n for n, p in model.named_parameters() if not p.isfinite().all()]
    return parameters + [n for n, b in model.named_buffers() if b.isnan().any()]


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _slices(batch: dict | None, size: int) -> Iterator[dict]:
    """Parts of at most `size` rows."""
    if batch is None:
        return
    for start in range(0, len(batch["index"]), size):
        yield {k: v[start : start + size] for k, v in batch.items()}


def _first_difference(expected: np.ndarray, found: np.ndarray, dataset) -> str:
    want, got = {tuple(c) for c in expected.T.tolist()}, Counter(tuple(c) for c in found.T.tolist())
    cases = {
        "is missing": want - got.keys(),
        "was counted twice": {cell for cell, count in got.items() if count > 1},
        "was counted but not asked for": got.keys() - want,
    }
    what, cell = next((what, min(cells)) for what, cells in cases.items() if cells)
    return f"view {cell[1]} of sample {cell[0]} ({dataset.path(int(cell[0]))}) {what}"


def _views(cfg, node, data: str) -> Views:
    """The views of an evaluation: its own, those of the entry of DATASETS, or those of TEST."""
    own = cfg.DATASETS.get(data)
    clips = node.CLIPS or (own and own.TEST_CLIPS) or cfg.TEST.NUM_ENSEMBLE_VIEWS
    return Views(clips, node.CROPS or (own and own.TEST_CROPS) or cfg.TEST.NUM_SPATIAL_CROPS)


def evaluations(cfg, *, at_test: bool) -> dict[str, Evaluation]:
    """The evaluations of the test phase, or those that run while training; one for each data set they name."""
    found = {}
    for entry, node in cfg.EVALS.items():
        if node.AT_TEST if at_test else node.EVERY > 0:
            for data in cfg.DATASETS if node.DATASET == config.ALL else [node.DATASET]:
                evaluation = Evaluation(cfg, entry, data)
                if evaluation.name in found or (evaluation.name != entry and evaluation.name in cfg.EVALS):
                    raise UserError(f"EVALS: two evaluations are called {evaluation.name}; rename one of them")
                found[evaluation.name] = evaluation
    return found


def check_clip_size(cfg, model: torch.nn.Module, titles: Iterable[str]) -> None:
    """Raises `UserError` where data sets would show clips of another size to a model built for one shape (`clip`).

    `titles`: `NAME/SPLIT` of the data sets of evaluations; of the split train come clips of TRAIN_CROP_SIZE.
    """
    trained, tested = cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.TEST_CROP_SIZE
    if hasattr(model, "clip") and trained != tested and any(not title.endswith("/train") for title in titles):
        raise UserError(
            f"DATA.TEST_CROP_SIZE {tested}: expected DATA.TRAIN_CROP_SIZE {trained}, for {type(model).__name__} takes"
            " clips of one size; set one to the other"
        )


def averages(evaluations: dict[str, Evaluation], results: dict[str, dict]) -> dict[str, dict[str, float]]:
    """For each entry of EVALS on all data sets, the mean over these of the metrics that all of them have."""
    found = {}
    for entry in {e.entry: None for e in evaluations.values() if e.name != e.entry}:
        rows = [results[name] for name, e in evaluations.items() if e.entry == entry]
        shared = [k for k in rows[0] if all(k in row for row in rows)]
        totals = {k: sum(row[k] for row in rows) for k in shared}
        found[entry] = {k: total if k in ("n", "of") else total / len(rows) for k, total in totals.items()}
    return found


def readable(found: dict[str, float]) -> str:
    """`top1 93.0 %, top5 99.0 % (n=93/100, 93.0 %)`: fractions as per cent, other numbers as such, the coverage."""
    shown = [f"{k} {_shown(k, v)}" for k, v in found.items() if k not in ("n", "of")]
    return f"{', '.join(shown) or 'no metric'} ({_coverage(found)})"


def table(results: dict[str, dict[str, float]]) -> str:
    """Several evaluations as a table: a line for each, a column for each metric."""
    metrics = list(dict.fromkeys(k for found in results.values() for k in found if k not in ("n", "of")))
    rows = [["", *metrics, ""]]
    for name, found in results.items():
        rows.append([name, *(_shown(k, found[k]) if k in found else "" for k in metrics), _coverage(found)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(w) if k else cell.ljust(w) for k, (cell, w) in enumerate(zip(row, widths)))
                     for row in rows)  # fmt: skip


def _shown(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if is_fraction(name, value) else f"{value:.4g}"


def _coverage(found: dict[str, float]) -> str:
    part = f", {100 * found['n'] / found['of']:.1f} %" if found["n"] < found["of"] else ""
    return f"n={found['n']}/{found['of']}{part}"
