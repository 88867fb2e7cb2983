"""Decode in a separate process that can be killed, for formats whose decoders may crash, hang or print.

    decoder = IsolatedDecoder()
    reply = decoder.decode(data, max_pixels=50_000_000, max_seconds=10)   # .image, .header; raises ImageRejected
    decoder.stop()                                                         # from any thread, at any time

The process (`decoder_process.py`) is started on first use and again after it was killed. It has a limit of CPU time per
image and a memory limit, its stderr is dropped, and its answer is read as data: a length, JSON, and the pixels. The
cost is one copy of the pixels through a pipe.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from PIL import Image

from vlm_detect.images.bounds import MAX_DECODE_S, MAX_PIXELS, ImageRejected

Encoding = Literal["file", "data_url", "json_data_url"]
MAX_HEADER_BYTES = 16 << 20
# Wall-clock factor, where CPU time cannot be limited: a loaded machine gives a process only a part of each second.
WALL_S, WALL_S_A_SECOND = 30, 10
_PACKAGE = Path(__file__).parents[2]
_LENGTH = struct.Struct("<Q")
_BAND_BYTES = 1 << 20


class Reply(NamedTuple):
    """The pixels of an image, and the process's header about it (`decoder_process.py`)."""

    image: Image.Image
    header: dict[str, Any]


class IsolatedDecoder:
    """One process that decodes one image at a time; other threads wait for their turn."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def decode(
        self,
        data: bytes | memoryview,
        *,
        encoding: Encoding = "file",
        with_facts: bool = False,
        max_pixels: int = MAX_PIXELS,
        max_seconds: float = MAX_DECODE_S,
    ) -> Reply:
        """Decode the image in `data` within `max_seconds` of CPU time; raises `ImageRejected` otherwise.

        `encoding` is the kind of data: a file, the characters of a data URL, or such characters with JSON escapes.
        """
        request = {
            "size": len(data),
            "encoding": encoding,
            "with_facts": with_facts,
            "max_pixels": max_pixels,
            "max_seconds": max_seconds,
        }
        with self._turn:
            process = self._running(max_pixels)
            timer = threading.Timer(WALL_S + WALL_S_A_SECOND * max_seconds, process.kill)
            timer.daemon = True
            timer.start()
            try:
                return self._converse(process, request, data, max_pixels)
            except ImageRejected:
                raise
            except (OSError, EOFError, ValueError, KeyError, struct.error) as error:
                raise self._ended(process, max_seconds) from error
            except BaseException:  # an interrupted read leaves part of an answer in the pipe
                self.stop()
                raise
            finally:
                timer.cancel()

    def start(self, max_pixels: int = MAX_PIXELS) -> None:
        """Start the process before its first image, because its imports take a moment."""
        with self._turn:
            self._running(max_pixels)

    def stop(self) -> None:
        """Kill the process and its current decoding; the next image starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _running(self, max_pixels: int) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        if self._process is not None:
            _close(self._process)
        path = os.pathsep.join(filter(None, [str(_PACKAGE), os.environ.get("PYTHONPATH")]))
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vlm_detect.images.decoder_process", str(max_pixels)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | threads | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the parent, which may let this image finish
        )
        return self._process

    @staticmethod
    def _converse(
        process: subprocess.Popen[bytes], request: dict[str, Any], data: bytes | memoryview, max_pixels: int
    ) -> Reply:
        assert process.stdin is not None
        assert process.stdout is not None
        head = json.dumps(request).encode()
        process.stdin.write(_LENGTH.pack(len(head)) + head)
        process.stdin.write(data)
        process.stdin.flush()
        (length,) = _LENGTH.unpack(_read(process.stdout, _LENGTH.size))
        if length > MAX_HEADER_BYTES:
            raise ValueError("an answer exceeds its limit")
        header = json.loads(_read(process.stdout, length))
        if "rejected" in header:
            reason, detail = header["rejected"]
            raise ImageRejected(str(reason), str(detail))
        width, height = int(header["width"]), int(header["height"])
        if not 0 < width * height <= max_pixels:
            raise ValueError("an image exceeds its limit")
        return Reply(_read_pixels(process.stdout, width, height), header)

    def _ended(self, process: subprocess.Popen[bytes], max_seconds: float) -> ImageRejected:
        """Why the process did not answer."""
        process.kill()
        status = process.wait()
        if status == -getattr(signal, "SIGXCPU", 0):
            return ImageRejected("too_slow", f"not decoded within {max_seconds:g} s of CPU time")
        if status == -getattr(signal, "SIGKILL", 0):
            return ImageRejected("too_slow", "its decoding was stopped")
        return ImageRejected("unreadable", f"its decoder crashed (status {status})")


def _read(stream: IO[bytes], size: int) -> bytes:
    found = stream.read(size)
    if len(found) < size:
        raise EOFError
    return found


def _read_pixels(stream: IO[bytes], width: int, height: int) -> Image.Image:
    """RGB of height x width x 3 bytes, in bands: Pillow unpacks bytes while holding the GIL."""
    image = Image.new("RGB", (width, height))
    rows = max(1, _BAND_BYTES // (3 * width))
    for top in range(0, height, rows):
        band = (width, min(rows, height - top))
        image.paste(Image.frombytes("RGB", band, _read(stream, band[0] * band[1] * 3)), (0, top))
    return image


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # pending writes have no reader
                stream.close()


# A decoder per concurrent thread, keyed by process id: those inherited by a fork belong to the parent.
_idle: dict[int, list[IsolatedDecoder]] = {}


@contextmanager
def shared_decoder() -> Iterator[IsolatedDecoder]:
    """A decoder of this process for exclusive use."""
    idle = _idle.setdefault(os.getpid(), [])
    try:
        decoder = idle.pop()
    except IndexError:
        decoder = IsolatedDecoder()
    try:
        yield decoder
    finally:
        idle.append(decoder)


@atexit.register
def _stop_shared() -> None:
    for decoder in _idle.pop(os.getpid(), []):
        decoder.stop()
