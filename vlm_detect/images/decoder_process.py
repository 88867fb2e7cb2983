"""The process behind `IsolatedDecoder`: reads requests from stdin, writes images to stdout, until stdin ends.

    python -m vlm_detect.images.decoder_process MAX_PIXELS

A request is the length of a JSON object (8 bytes, little-endian), the object (`size`, `encoding`, `with_facts`,
`max_pixels`, `max_seconds`) and `size` bytes. The answer is a length and a JSON object: `rejected` [reason, detail], or
the fields of `DecodedImage` and the `facts` of the file, and then width x height x 3 bytes of RGB.

It is killed by SIGXCPU if an image takes more CPU time than allowed; its memory is bounded by the maximum of pixels. On
Windows neither limit exists, and only the parent's timeout applies.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import sys
from dataclasses import asdict
from typing import IO, Any

from vlm_detect.images.bounds import ImageRejected
from vlm_detect.images.data_url import bytes_of_data_url
from vlm_detect.images.decode import decode_here
from vlm_detect.images.provenance import provenance

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_LENGTH = struct.Struct("<Q")
_BASE_BYTES = 2 << 30  # of address space: the interpreter, its libraries and the file
_BYTES_A_PIXEL = 64  # RGBA, RGB and the arrays that compare them


def main() -> None:
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # output of libraries must not mix with answers
    if resource is not None:
        _bound(resource.RLIMIT_AS, _BASE_BYTES + _BYTES_A_PIXEL * int(sys.argv[1]))
        _bound(resource.RLIMIT_CORE, 0)
    while head := requests.read(_LENGTH.size):
        request = json.loads(requests.read(*_LENGTH.unpack(head)))
        answer(requests.read(request["size"]), request, answers)


def answer(data: bytes, request: dict[str, Any], answers: IO[bytes]) -> None:
    if resource is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _bound(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + request["max_seconds"]))
    pixels = b""
    try:
        if request["encoding"] != "file":
            data = bytes_of_data_url(data, escaped=request["encoding"] == "json_data_url")
        decoded = decode_here(data, max_pixels=request["max_pixels"])
        header = {name: getattr(decoded, name) for name in ("format", "width", "height", "sha256", "is_plain", "notes")}
        header["jpeg"] = asdict(decoded.jpeg) if decoded.jpeg else None
        header["facts"] = [asdict(fact) for fact in provenance(data)] if request["with_facts"] else []
        pixels = decoded.image.tobytes()
    except ImageRejected as rejected:
        header = {"rejected": (rejected.reason, rejected.detail)}
    except MemoryError:
        header = {"rejected": ("too_large", "it exceeds the memory limit")}
    head = json.dumps(header).encode()
    answers.write(_LENGTH.pack(len(head)) + head)
    answers.write(pixels)
    answers.flush()


def _bound(kind: int, value: int) -> None:
    """Lower a limit of this process, never above its hard limit."""
    _, hard = resource.getrlimit(kind)
    with contextlib.suppress(OSError, ValueError):  # a system without this limit
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    main()
