"""A test of this suite that fails leaves no process, whichever way it fails."""

import os
import subprocess
import sys

import pytest

from tests.faults.conftest import ROOT

# Each test but the last leaves a process that has lost its parent and leads a session of its own.
TESTS = """
import os, subprocess, time
from pathlib import Path
import pytest

PIDS = Path(os.environ["PIDS"])

def leave():
    left = subprocess.run("setsid sleep 9999 >/dev/null 2>&1 & echo $!", shell=True, capture_output=True, text=True)
    with PIDS.open("a") as file:
        file.write(left.stdout)

def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False

@pytest.fixture
def broken():
    leave()
    raise RuntimeError

@pytest.fixture
def broken_at_the_end():
    yield
    leave()
    raise RuntimeError

def test_fails():
    leave()
    assert False

def test_fails_before(broken):
    pass

def test_fails_after(broken_at_the_end):
    pass

def test_nothing_is_left():
    pids = PIDS.read_text().split()
    end = time.monotonic() + 600
    while any(map(lives, pids)):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert len(pids) == 3
"""


@pytest.mark.slow
def test_a_test_that_fails_leaves_no_process(tmp_path):
    (tmp_path / "test_inner.py").write_text(TESTS)
    words = ["-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-p", "tests.faults.conftest", "-rA"]
    env = {**os.environ, "PIDS": str(tmp_path / "pids"), "PYTHONPATH": str(ROOT)}
    inner = [sys.executable, *words, "--rootdir", str(tmp_path), str(tmp_path / "test_inner.py")]
    out = subprocess.run(inner, env=env, cwd=tmp_path, capture_output=True, text=True).stdout
    assert "PASSED test_inner.py::test_nothing_is_left" in out, out[-3000:]
    assert "1 failed, 2 passed, 2 errors" in out
