"""stdout and stderr: log lines beside a bar, a stdout that is full, closed, or left by its reader."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from videorl import log as logs
from videorl.log import Progress, log

ROOT = Path(__file__).parents[1]


class Terminal(io.StringIO):
    """What stdout and stderr show together."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """After all carriage returns, without what is blank."""
        shown = []
        for line in self.getvalue().split("\n"):
            cells: list[str] = []
            for part in line.split("\r"):
                cells[: len(part)] = part
            shown.append("".join(cells).strip())
        return [line for line in shown if line]


def test_a_log_line_and_the_bar_share_no_line(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    logs.setup(tmp_path, main=True)
    progress = Progress(3, "train", shown=True)
    for step in range(3):
        progress.step()
        log.info("step %d", step)
    progress.close()
    log.handlers.clear()
    assert [line.partition("] ")[2] for line in terminal.lines()] == ["step 0", "step 1", "step 2"]
    assert "train:" in terminal.getvalue()


def test_a_terminal_that_is_gone_ends_no_run(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(300, "train", shown=True)
    monkeypatch.setattr(terminal, "write", lambda text: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    progress.bar.mininterval = 0.0
    for _ in range(300):
        progress.step()
    progress.close()
    assert progress.done == 300


def outcome(code: str, redirect: str) -> tuple[int, str]:
    """Exit code and stderr of Python code whose stdout goes where the shell is told."""
    words = ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {redirect}', sys.executable, code]
    done = subprocess.run(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


PRINTS = """
from videorl import console
try:
    with console.guarded():
        print("x" * {size})
except console.Unwritten as error:
    console.tell(f"error: {{error}}")
    raise SystemExit(2)
"""
RUNS = """
import pathlib, sys
from videorl import console, log
with console.guarded():
    log.setup(None, True)
    for step in range(5):
        log.log.info("step %d", step)
    pathlib.Path(sys.argv[0]).exists()
"""


@pytest.mark.parametrize("size", [3, 300_000])
def test_what_a_tool_prints_on_a_full_disk_is_an_error_of_one_line(size):
    line = "error: stdout cannot be written ([Errno 28] No space left on device)\n"
    assert outcome(PRINTS.format(size=size), "> /dev/full") == (2, line)


def test_a_reader_that_leaves_is_told_in_one_line():
    line = "error: stdout cannot be written ([Errno 32] Broken pipe)\n"
    assert outcome(PRINTS.format(size=300_000), "| head -c 1 > /dev/null") == (2, line)


@pytest.mark.parametrize("where", ["full", "closed"])
def test_a_run_goes_on_without_its_console(where):
    line = "stdout cannot be written ([Errno 28] No space left on device); the run goes on without\n"
    redirect = {"full": "> /dev/full", "closed": ">&-"}[where]
    assert outcome(RUNS, redirect) == (0, line if where == "full" else "")


def test_no_file_takes_the_place_of_a_closed_stream():
    code = "import os; from videorl import console\nwith console.guarded(): raise SystemExit(os.open('.', os.O_RDONLY))"
    code_of_first_file, _ = outcome(code, "<&- >&-")
    assert code_of_first_file > 2


def test_warnings_of_tools_go_to_stderr():
    code = "from videorl import console, log\nwith console.guarded(): log.log.warning('careful'); log.log.info('no')"
    assert outcome(code, "> /dev/null") == (0, "careful\n")


@pytest.mark.slow
def test_the_commands_say_it_too():
    words = f'"{sys.executable}" tools/run_net.py --help-config > /dev/full'
    done = subprocess.run(words, cwd=ROOT, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n"), done.stderr[:30]) == (2, 1, "error: stdout cannot be writte")
