"""One run at a time per output folder: a second one fails with the process of the first.

    with held(Path("runs/moondream_lora"), flag="--output_dir"):
        ...                                  # UserError if another process holds the lock
    is_held(Path("runs/moondream_lora"))

It is a lock of the operating system, released when its process ends in any way. It belongs to the process that took it,
not to its forks, so a worker that outlives a killed run does not hold it. The file `.NAME.lock` next to the place
identifies the holder; a killed run leaves the file, which is then unlocked.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vlm_detect.config import command_line
from vlm_detect.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HELD_BY_ANOTHER = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}
_held: set[Path] = set()  # by this process


@contextmanager
def held(out: Path, *, flag: str = "--out", when: bool = True, is_file: bool = False) -> Iterator[None]:
    """Hold the lock of `out`; raises `UserError` if another process holds it.

    `when` is False in all but the first process of a run, which holds the lock for all. `out` is a folder, which is
    created with its parents, or a file, which is not created: its writer reports failures.
    """
    place = out.resolve()
    if not when or place in _held or (is_file and not place.parent.is_dir()):
        yield
        return
    with _locked(place, flag):
        _held.add(place)
        try:
            yield
        finally:
            _held.remove(place)


def is_held(out: Path) -> bool:
    """Whether a process holds the lock of `out`; False where the file system has no locks."""
    place = out.resolve()
    if place in _held:
        return True
    for path in (place.with_name(f".{place.name}.lock"), place / ".lock"):
        try:
            with path.open("r+b") as file:
                _lock(file, shared=True)
        except OSError as error:
            if error.errno in _HELD_BY_ANOTHER:
                return True
    return False


@contextmanager
def _locked(place: Path, flag: str) -> Iterator[None]:
    path, file = _open(place, flag)
    with contextlib.ExitStack() as stack:
        stack.enter_context(file)
        try:
            while not _is_taken(path, file, place, flag):
                path, file = _open(place, flag)
                stack.enter_context(file)
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:  # without support by the file system there is no lock
                raise
        file.seek(0)
        file.truncate()
        file.write(json.dumps(_about_us()).encode())
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows, where an open file cannot go
                path.unlink()


def _open(place: Path, flag: str) -> tuple[Path, IO[bytes]]:
    """The lock file: next to the place, or inside it if its parent is not writable."""
    outside, inside = place.with_name(f".{place.name}.lock"), place / ".lock"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        return outside, outside.open("a+b")
    except OSError as error:
        if not place.is_dir():
            # Creating a folder inside a file fails with "file exists".
            reason = "Not a directory" if isinstance(error, FileExistsError) else error.strerror
            raise UserError(f"{place}: cannot be written ({reason}); give another {flag}") from error
    try:
        return inside, inside.open("a+b")
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror}); give another {flag}") from error


def _is_taken(path: Path, file: IO[bytes], place: Path, flag: str) -> bool:
    """Take the lock; False if the previous holder removed the file while we waited to open it."""
    try:
        _lock(file)
    except OSError as error:
        if error.errno not in _HELD_BY_ANOTHER:
            raise
        raise UserError(f"{place} is held by another run{_who(path)}: wait for it, or give another {flag}") from error
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: IO[bytes], *, shared: bool = False) -> None:
    if fcntl is not None:
        # A record lock, not `flock`: a forked process inherits the latter, and may outlive us.
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return
    import msvcrt

    file.seek(1 << 30)  # of an unused byte
    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


def _about_us() -> dict[str, Any]:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"process": os.getpid(), "host": socket.gethostname(), "since": now, "command": command_line()}


def _who(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return f" (process {int(found['process'])} on {found['host']!s:.60}, since {found['since']!s:.30})"
    except (OSError, ValueError, KeyError, TypeError):  # it is being written
        return ""
