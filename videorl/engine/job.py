"""The life of a run in one process: folder, log, training, test, report."""

import logging
from collections.abc import Sequence
from pathlib import Path

from videorl import dist, log
from videorl.engine import evaluate, run
from videorl.engine.test import test
from videorl.engine.train import train
from videorl.engine.watch import Watch, forget
from videorl.registry import UserError

logger = logging.getLogger("videorl")


def run_phases(cfg, said: Sequence[str] = ()) -> None:
    """Trains and tests as TRAIN.ENABLE and TEST.ENABLE say, and writes the report.

    `said`: lines for the log, of how the config came about. Raises `SystemExit` with code 75 when a signal stopped it.
    """
    folder = run.folder_of(cfg)
    with run.held(folder):
        log.setup(folder, dist.is_main())
        for line in said:
            logger.info(line)
        dist.on_main(lambda: _clear(folder))
        with Watch(folder, cfg.DIST.TIMEOUT) as watch:
            # Read before training: a mistake in test.csv must not show after days.
            evaluations = evaluate.evaluations(cfg, at_test=True) if cfg.TEST.ENABLE else {}
            tested = {e.title: e.dataset for e in evaluations.values()}
            if cfg.TRAIN.ENABLE:
                train(cfg, watch, tested)
            else:
                data = run.agreed_data(tested)
                if dist.is_main():
                    run.note_test(folder, cfg, data)
            if cfg.TEST.ENABLE:
                try:
                    results = test(cfg, evaluations, alive=lambda doing: _go_on(watch, doing, folder))
                except UserError:
                    if dist.is_main():  # of what was trained and measured until then
                        _report(folder)
                    raise
        if dist.is_main():
            run.note(folder, {"finished": run.now()})
            _report(folder)
            if cfg.TEST.ENABLE and results:
                log.table("results", evaluate.table(results))


def _clear(folder: Path) -> None:
    """Removes what an earlier run says of its end."""
    (folder / "PREEMPTED").unlink(missing_ok=True)
    forget(folder)


def _go_on(watch: Watch, doing: str, folder: Path) -> None:
    """Ends this rank if it was told to stop while testing: there is nothing to save, the same command tests again."""
    watch.beat(doing)
    if told := watch.told_to_stop():
        run.preempted(folder, f"{told} at {doing}")


def _report(folder: Path) -> None:
    """Writes the report; whatever goes wrong there is said in one line, and changes nothing of how the run ends."""
    from videorl import report

    try:
        logger.info("report: %s", report.write(folder).resolve())
    except Exception as error:
        logger.warning("report.html cannot be written (%s: %s)", type(error).__name__, " ".join(str(error).split()))
