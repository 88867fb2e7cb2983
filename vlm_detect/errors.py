"""Errors that are the user's to mend, and the one way every program ends.

A `UserError` says in one line what was given, what the limit is and what to do. Programs run their `main` through
`run_main`, which turns it into that line on stderr and exit status 1 (`--debug` shows the traceback instead).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """The request cannot be met. The message names the value, the limit and the remedy, in one line."""


def run_main(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call `main(argv)` and exit: 0 done, 1 failed (one line on stderr), 2 wrong arguments, 130 interrupted."""
    argv = sys.argv[1:]
    debug = "--debug" in argv
    argv = [arg for arg in argv if arg != "--debug"]
    try:
        status = main(argv) or 0
    except UserError as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        status = 130
    sys.exit(status)
