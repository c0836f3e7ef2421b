"""The life of a run in one process: folder, log, training, test, report."""

import contextlib
import logging
from pathlib import Path

from videorl import dist, log
from videorl.engine import run
from videorl.engine.test import test
from videorl.engine.train import train

logger = logging.getLogger("videorl")


def run_phases(cfg) -> None:
    """Trains and tests as TRAIN.ENABLE and TEST.ENABLE say, and writes the report."""
    folder = run.folder_of(cfg)
    with run.held(folder) if dist.is_main() else contextlib.nullcontext():
        log.setup(folder, dist.is_main())
        if dist.is_main():
            (folder / "PREEMPTED").unlink(missing_ok=True)
        if cfg.TRAIN.ENABLE:
            train(cfg)
        if cfg.TEST.ENABLE:
            results = test(cfg)
        if dist.is_main():
            run.update_json(folder / "run.json", {"finished": run.now()})
            _report(folder)
            for name, found in results.items() if cfg.TEST.ENABLE else ():
                logger.info("%s: %s", name, _headline(found))


def _headline(found: dict) -> str:
    from videorl.engine.evaluate import readable

    return readable(found)


def _report(folder: Path) -> None:
    from videorl import report

    logger.info("report: %s", report.write(folder).resolve())
