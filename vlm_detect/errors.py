"""User errors, and the common entry point of all programs.

A `UserError` states in one line the value, the limit and the remedy. Programs run their `main` through `run_main`,
which prints that line on stderr and exits with status 1, or 2 for a `UsageError` (`--debug` shows the traceback
instead; followed by a value it is the Trainer's flag of that name). Every program accepts `--allow_local_paths`,
documented in `images/local_files.py`.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import NoReturn

from vlm_detect.loading_line import loading_line
from vlm_detect.printable import printable

# A path that may not be read or written, or a full disk: reported without a traceback.
_OF_PLACES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_OF_PLACES |= {errno.ENOSPC, errno.EDQUOT}
ALLOW_LOCAL_PATHS, LOCAL_PATHS_ALLOWED = "--allow_local_paths", "VLM_DETECT_ALLOW_LOCAL_PATHS"
_DEBUG_VALUES = {"underflow_overflow", "tpu_metrics_debug"}  # of transformers' own --debug


class UserError(Exception):
    """The request cannot be met. The message names the value, the limit and the remedy, in one line."""


class UsageError(UserError):
    """The command line alone shows that the request cannot be met: exit status 2."""


def first_line(error: BaseException) -> str:
    """Another library's error message in one line; its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def run_main(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call `main(argv)` and exit: 0 done, 1 failed (one line on stderr), 2 wrong arguments, 130 interrupted.

    `main` imports torch itself, after the set-up here.
    """
    set_up_process()
    given = sys.argv[1:]
    argv = [arg for arg, after in pairwise([*given, ""]) if arg != "--debug" or after in _DEBUG_VALUES]
    debug = len(argv) < len(given)
    if ALLOW_LOCAL_PATHS in argv:
        argv.remove(ALLOW_LOCAL_PATHS)
        os.environ[LOCAL_PATHS_ALLOWED] = "1"  # workers inherit it
    try:
        with loading_line():
            status = main(argv) or 0
        print(end="", flush=True)  # not sys.stdout.flush(): a closed stdout has none
    except UserError as error:
        if debug:
            raise
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        status = 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again to resume", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        if debug or not _reader_has_gone():
            raise
        status = 1
    except OSError as error:
        if debug or error.errno not in _OF_PLACES:
            raise
        place = error.filename or "what was being written"
        print(f"error: {place}: {error.strerror}; free some space there, or give another path", file=sys.stderr)
        status = 1
    if status == 0:
        _leave_process_group()
    sys.exit(status)


def set_up_process() -> None:
    """Set up the process of a program or its workers; imports change no settings of another program."""
    # Torch's CPU threads wait for each other by spinning, by default long enough that, if other programs run on the
    # machine, they occupy the core of the thread they wait for. A short spin costs little on an idle machine and saves
    # much on a shared one (tests/bench/waiting.py). OpenMP reads this when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Imported by peft on some CPUs, bitsandbytes recommends a package on stderr, where only our one-line messages
    # belong.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # Pillow logs defects of a file in any number of lines; rejects and notes record them.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def _reader_has_gone() -> bool:
    """Whether the reader of stdout has gone, such as `head`; stdout is then redirected to the null device."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again at exit
        return True
    return False


def _leave_process_group() -> None:
    """Stop the threads of torch.distributed, if it was used: one that is still running when Python exits aborts it.

    Not after a failure: the other processes may never get here, and NCCL would wait for them.
    """
    distributed = sys.modules.get("torch.distributed")  # programs that do not use torch do not load it for this
    if distributed and distributed.is_available() and distributed.is_initialized():
        gc.collect()  # a Trainer and its model are in reference cycles and keep the group alive too
        distributed.destroy_process_group()
