"""The HTTP client of endpoints, whose servers are not trusted with this machine.

It follows no redirect, which would take the key or the photos to another server, and it bounds an answer's bytes and
the time in which they arrive. Answers are requested uncompressed and refused otherwise, because a few bytes may expand
to gigabytes.
"""

from __future__ import annotations

import time
from typing import Any

import openai

OUT_OF_BOUNDS = "out_of_bounds"  # the code of the error in place of such an answer
_MAX_BYTES = 64 * 2**20


class BoundedClient(openai.DefaultHttpxClient):
    """An `http_client` of `openai.OpenAI`; `timeout_s` bounds the wait for the answer, and then for its complete body.

    In place of an answer beyond the bounds it returns an error with status 400, because `openai.OpenAI` repeats a
    request for which its client raises an exception.
    """

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout=timeout_s, headers={"accept-encoding": "identity"})
        self._timeout_s = timeout_s

    def send(self, request: Any, **options: Any) -> Any:
        """The response with its body, complete; a redirect is returned as it is."""
        response = super().send(request, **options | {"stream": True, "follow_redirects": False})
        content: dict[str, Any]
        try:
            content, status = {"headers": response.headers, "content": self._read(response)}, response.status_code
        except _OutOfBoundsError as error:
            content, status = {"json": {"error": {"message": str(error), "code": OUT_OF_BOUNDS}}}, 400
        finally:
            response.close()
        return type(response)(status, **content, request=request, extensions=response.extensions)

    def _read(self, response: Any) -> bytes:
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise _OutOfBoundsError(f"the answer is compressed ({encoding[:20]}), although that was not accepted")
        body, deadline = bytearray(), time.monotonic() + self._timeout_s
        for part in response.iter_raw():
            body += part
            if len(body) > _MAX_BYTES:
                raise _OutOfBoundsError(f"the answer is over {_MAX_BYTES >> 20} MB, the limit")
            if time.monotonic() > deadline:
                raise _OutOfBoundsError(f"the answer takes over {self._timeout_s:g} s to arrive, the limit")
        return bytes(body)


class _OutOfBoundsError(Exception):
    """An answer beyond the bounds."""
