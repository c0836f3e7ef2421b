"""How a process ends: its exit codes, and the one line on stderr. Imports no torch: a mistake is told at once."""

import contextlib

from videorl import console
from videorl.registry import UserError, printable

EXIT_USER_ERROR = 2
EXIT_LOST = 70  # EX_SOFTWARE: another process of the run died or hangs
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: "try again", what queue systems requeue on


class Lost(RuntimeError):
    """Another process of the run died, hangs or cannot be reached; the text names it."""


@contextlib.contextmanager
def exit_codes(debug: bool = False):
    """Turns `UserError`, `Lost` and Ctrl-C into one line on stderr and exit codes 2, 70 and 130; a full stdout too."""
    try:
        with console.guarded():
            yield
    except KeyboardInterrupt:
        if debug:
            raise
        console.tell("interrupted: the same command goes on from what was saved last")
        raise SystemExit(130) from None
    except (UserError, Lost, console.Unwritten) as error:
        if debug:
            raise
        console.tell(f"error: {printable(str(error))}")
        raise SystemExit(EXIT_LOST if isinstance(error, Lost) else EXIT_USER_ERROR) from None
