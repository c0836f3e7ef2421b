"""Rules for all tests: none is skipped in CI, and a skip elsewhere stands in the summary with its reason."""

import contextlib
import errno
import logging
import os

import pytest

IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


@pytest.fixture(autouse=True)
def _log_of_a_new_process():
    """A run sets up the log of its process, which here is that of all tests: also in a fixture before the first."""
    _reset_log()
    yield
    _reset_log()


def _reset_log() -> None:
    log = logging.getLogger("videorl")
    for handler in log.handlers[:]:
        log.removeHandler(handler)
        with contextlib.suppress(OSError):  # a full disk
            handler.close()
    log.propagate = True
    log.setLevel(logging.NOTSET)


@pytest.fixture
def full_disk(monkeypatch):
    """`full_disk()`: from then on nothing can be written as a whole."""

    def full(handle: int):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda: monkeypatch.setattr(os, "fsync", full)


def pytest_collection_modifyitems(config, items):
    """Leaves out tests marked `gpu` where there is no CUDA device."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and not _has_gpu():
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if item not in gpu]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """In CI a skipped test fails: what it needs must be installed there, or nobody notices that it stopped running."""
    report = yield
    return _fail_if_skipped(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """The same for whole modules (`pytest.importorskip` at the top)."""
    report = yield
    return _fail_if_skipped(report)


def _fail_if_skipped(report):
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may be skipped: {reason}"
    return report
