"""A trained classifier, ready for files: one prediction a video by the protocol of its test, or a curve over time."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from videorl import checkpoint, config, convert, dist
from videorl.data.listed import Part
from videorl.engine import build, determinism, weights
from videorl.engine.evaluate import Evaluation
from videorl.features.each import look_at_each, read_each
from videorl.features.encoder import Encoder
from videorl.features.windows import Blocks, Windows, blocks_of, measured, windows_of
from videorl.predict.source import checkpoint_of, load_config
from videorl.registry import EVALS, UserError, did_you_mean

VIEWS = "views"  # the evaluation that scores classes


@dataclass(frozen=True)
class Prediction:
    """Scores [C] of a video, fractions of 1 that are the mean over its views; or the `reason` why it has none.

    Over time there are `windows`, and the scores are the mean over these.
    """

    path: str
    classes: tuple[str, ...]
    scores: np.ndarray
    reason: str = ""
    windows: "Curve | None" = None

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The best classes with their scores, the best first."""
        return [(self.classes[k], float(self.scores[k])) for k in np.argsort(-self.scores, kind="stable")[:count]]


@dataclass(frozen=True)
class Curve:
    """Scores [W, C] of the windows of a video, and first and last second of each [W, 2]."""

    times: np.ndarray
    scores: np.ndarray


class Classifier:
    """The model of a config with the weights of the checkpoint `file`, for any video.

    `head`: of a model with several, the data set whose classes are meant. Raises `UserError`.
    """

    def __init__(self, cfg, file: Path, head: str = ""):
        self.cfg, self.file = cfg, file
        determinism.set_level(self.cfg.DETERMINISM)
        self.entry, self.data = _evaluation(self.cfg, head)
        scorer, values = config.component(self.cfg, EVALS, self.entry)
        spec = config.spec(self.cfg, space=self.data)
        self.scorer = scorer(spec, values=values)
        state, model = checkpoint.read(self.file), build.model(self.cfg)
        named = convert.class_names(state, model)
        weights.take(cfg, model, state, file, data={k: tuple(v) for k, v in named.items()}, testing=True)
        self.precision = build.precision(self.cfg)
        self.encoder = Encoder(model, self.cfg.MODEL.MODEL_NAME, config.spec(self.cfg).clip, self.precision)
        self.classes = tuple(named.get(self.scorer.space) or map(str, range(spec.labels[self.scorer.space])))

    def __call__(self, path: str | Path) -> Prediction:
        """What a video shows, by the views and crops of the run's test. Raises `UserError` where it cannot be read."""
        return self.all_of([path])[0]

    def all_of(self, paths: Sequence[str | Path]) -> list[Prediction]:
        """The same of many videos, in order. Raises `UserError` where none can be read."""
        files = [os.path.abspath(path) for path in paths]
        evaluation = Evaluation(self.cfg, self.entry, self.data, files)
        evaluation.run(self.encoder.model, self.precision)
        if not evaluation.per_sample:
            raise UserError(f"{self.file}: its weights or scores are not finite; name another checkpoint")
        views = 1 if evaluation.eval.ensemble == "max" else evaluation.eval.views
        scores = dict(zip(evaluation.per_sample["index"].tolist(), evaluation.per_sample["scores"] / views))
        reasons = {row["path"]: f"{row['stage']}: {row['error']}" for row in evaluation.bad_rows}
        return [
            Prediction(str(path), self.classes, scores[k]) if k in scores else self._unread(path, reasons[files[k]])
            for k, path in enumerate(paths)
        ]

    def over_time(
        self, paths: Sequence[str | Path], window: float | None = None, stride: float | None = None
    ) -> Iterator[Prediction]:
        """The same of every window of `window` seconds, one each `stride` seconds, one video after the other.

        By default windows are as long as the run's clips, end to end.
        """
        windows = windows_of(config.spec(self.cfg), window, stride)
        files = [os.path.abspath(path) for path in paths]
        make_loader, most = partial(build.loader, self.cfg, title="predict"), self.cfg.DATA.MAX_PIXELS
        look = partial(measured, part=Part(""), windows=windows, max_pixels=most)
        known = look_at_each(files, look, make_loader, "looking at videos")
        size = self.cfg.TEST.BATCH_SIZE
        plans = [[] if isinstance(k, str) else blocks_of(Part(""), f, k[0], size) for f, k in zip(files, known)]
        blocks = [block for plan in plans for block in plan]
        with contextlib.closing(make_loader(Blocks(blocks, windows, most))) as loader:
            groups = [[k] for k in range(len(blocks))]
            rows = read_each(loader, groups, self._rows, "windows", "window", lambda k: len(blocks[k]))
            for path, plan, length in zip(paths, plans, known):
                found = [row for _, row in zip(plan, rows)]
                bad = [row for row in found if isinstance(row, str)] or [length] * isinstance(length, str)
                yield self._unread(path, bad[0]) if bad else self._curve(path, windows, found, length[1])

    def _rows(self, batch: dict) -> dict[int, np.ndarray]:
        """Block -> scores [W, C] of its windows."""
        logits = self.encoder.outputs({"video": batch["video"]})["logits"]
        return {int(batch["index"][0]): self.scorer.scores(logits).cpu().numpy()}

    def _curve(self, path, windows: Windows, found: list[np.ndarray], seconds: float) -> Prediction:
        scores = np.concatenate(found)
        times = windows.spans(np.arange(len(scores)), seconds)
        return Prediction(str(path), self.classes, scores.mean(0), windows=Curve(times, scores))

    def _unread(self, path, reason: str) -> Prediction:
        return Prediction(str(path), self.classes, np.full(len(self.classes), np.nan), reason)


def load(run: str | Path, *, cfg: str = "", head: str = "", settings: Sequence[str] = ()) -> Classifier:
    """The classifier of a run (its OUTPUT_DIR) or of a checkpoint, on a GPU where there is one.

    `cfg`: config of a checkpoint that holds none; `settings`: KEY, VALUE, KEY, VALUE, … that come after it. Videos are
    decoded in this process, unless DATA_LOADER.NUM_WORKERS is among the settings. Raises `UserError`.
    """
    file = checkpoint_of(Path(run))
    tree, _ = load_config(file, cfg, ["DATA_LOADER.NUM_WORKERS", "0", *map(str, settings)])
    made: list[Classifier] = []
    dist.launch_one(lambda: made.append(Classifier(tree, file, head)), gpu=bool(tree.NUM_GPUS))
    return made[0]


def _evaluation(cfg, head: str) -> tuple[str, str]:
    """The entry of EVALS, and its data set, whose scores of classes are wanted: of the test, if there is a choice."""
    found: dict[str, tuple[str, str]] = {}
    for entry, node in sorted(cfg.EVALS.items(), key=lambda item: not item[1].AT_TEST):
        if node.NAME == VIEWS:
            for data in cfg.DATASETS if node.DATASET == config.ALL else [node.DATASET]:
                found.setdefault(node.HEAD or data, (entry, data))
    if not found:
        raise UserError(
            f"this run of {cfg.MODEL.MODEL_NAME} tests no classes, so it predicts none; `videorl extract` gives its"
            " features, `videorl search` finds clips by text"
        )
    if head not in found and (head or len(found) > 1):
        hint = did_you_mean(head, found)
        raise UserError(f"--head {head or 'is missing'}{hint}: expected one of {', '.join(found)}")
    return found[head or next(iter(found))]
