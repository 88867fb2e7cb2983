"""Files of object stores and of the Hub, by fsspec: s3://, gs://, hf://, and what else it knows.

    for url in list_files("s3://bucket/photos"): ...      # recursively, in order of names
    data = read_file(url)
    with open_file(url) as file: ...                            # to seek in

What cannot be reached, or needs credentials or a package that are missing, is a `UserError` of one line. A single file
that is missing or too large is an `ImageRejected`. A store that stops answering, or no longer accepts its credentials,
ends the work after `_TRIES`: images that were not read are not called unreadable.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import IO, Any, cast

from vlm_detect.errors import UserError, first_line
from vlm_detect.extras import how_to_install
from vlm_detect.images.bounds import MAX_BYTES, ImageRejected

_TRIES, _PAUSE_S = 3, 2.0
# How a store is signed in to, and the extra with its package.
_STORES = {
    "s3": ("s3", "AWS_PROFILE, AWS_ACCESS_KEY_ID or a role; AWS_ENDPOINT_URL for another store"),
    "gs": ("gs", "GOOGLE_APPLICATION_CREDENTIALS or gcloud auth application-default login"),
    "gcs": ("gs", "GOOGLE_APPLICATION_CREDENTIALS or gcloud auth application-default login"),
    "hf": ("", "hf auth login, or HF_TOKEN"),
}
# botocore waits a minute for each of five attempts by default.
_OPTIONS = {"s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}}}}
# Errors of one file, which say nothing about its neighbours.
_OF_ONE_FILE = (FileNotFoundError, IsADirectoryError)


def is_url(spec: str) -> bool:
    """Whether `spec` names files by a URL and not by a path."""
    scheme, found, _ = spec.partition("://")
    return bool(found) and scheme.isalnum()


def list_files(spec: str) -> Iterator[str]:
    """The URLs of the file `spec`, of a glob's matches, or of every file below a folder but hidden ones.

    Raises:
        UserError: nothing is there, or the store cannot be reached.
    """
    import fsspec

    found: dict[str, Any] = {}
    with suppress(*_OF_ONE_FILE), _reported(spec):  # a bucket that is not there
        fs, path = _open_store(spec)
        if fsspec.core.has_magic(path):
            found = fs.glob(path, detail=True)
        elif fs.isfile(path):
            found = {path: fs.info(path)}
        else:
            found = fs.find(path, detail=True)
    files = [name for name, about in found.items() if about["type"] == "file" and not _is_hidden(name, path)]
    if not files:
        raise UserError(f"{spec}: nothing is found there; check the name, and that it is readable ({_sign_in(spec)})")
    for name in sorted(files, key=lambda name: PurePosixPath(name).parts):
        yield fs.unstrip_protocol(name)


def read_file(url: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a file; raises `ImageRejected` for one that cannot be used, `UserError` where the store is gone."""

    def read() -> bytes:
        fs, path = _open_store(url)
        size = fs.info(path).get("size")  # None of a web server that does not say it
        if size == 0:  # of which S3 has no part to give
            return b""
        data = b"" if size and size > max_bytes else fs.cat_file(path, start=0, end=max_bytes + 1)
        if (size or len(data)) > max_bytes:
            raise ImageRejected("too_large", f"{size or len(data)} bytes, at most {max_bytes}")
        return bytes(data)

    try:
        return _tried(url, read)
    except _OF_ONE_FILE as error:
        raise ImageRejected("unreadable", error.strerror or first_line(error)) from error


@contextmanager
def open_file(place: str) -> Iterator[IO[bytes]]:
    """A local file or a URL, to read and to seek in: `OSError` of a file, `UserError` where the store is gone."""
    if not is_url(place):
        with open(place, "rb") as file:  # noqa: PTH123, because the name may be bytes that are no valid text
            yield file
        return

    def open_url() -> Any:
        fs, path = _open_store(place)
        return fs.open(path, "rb")

    with _tried(place, open_url) as opened:
        yield cast(IO[bytes], _StoreFile(place, opened))


class _StoreFile(io.RawIOBase):
    """A file of a store, with tries: what is wrong with the store is not taken for what is wrong with the file."""

    def __init__(self, url: str, file: Any) -> None:
        self._url, self._file = url, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        data = _tried(self._url, lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)


def _tried(url: str, ask: Callable[[], Any]) -> Any:
    """What the store answers; errors of one file at once, `UserError` after a few tries."""
    for pause in range(1, _TRIES):
        try:
            with _reported(url):
                return ask()
        except ImageRejected:
            raise
        except UserError:
            time.sleep(_PAUSE_S * pause)
    with _reported(url):
        return ask()


def _open_store(spec: str) -> tuple[Any, str]:
    """(the file system, the path in it); fsspec keeps one file system a process."""
    import fsspec

    scheme = spec.partition("://")[0]
    fs, path = fsspec.core.url_to_fs(spec, **_OPTIONS.get(scheme, {}))
    return fs, str(path)


@contextmanager
def _reported(spec: str) -> Iterator[None]:
    try:
        yield
    except (UserError, *_OF_ONE_FILE):
        raise
    except ImportError as error:
        extra = _STORES.get(spec.partition("://")[0], ("", ""))[0]
        remedy = f"run: {how_to_install(extra)}" if extra else first_line(error)
        raise UserError(f"{spec}: this store needs a package that is not installed; {remedy}") from error
    except Exception as error:  # each store has the errors of its own client
        raise UserError(
            f"{spec}: cannot be reached ({first_line(error)}); check the name, the network, and {_sign_in(spec)}"
        ) from error


def _sign_in(spec: str) -> str:
    return _STORES.get(spec.partition("://")[0], ("", "its credentials"))[1]


def _is_hidden(name: str, folder: str) -> bool:
    below = name[len(folder) :] if name.startswith(folder) else PurePosixPath(name).name
    return any(part.startswith(".") for part in PurePosixPath(below).parts)
