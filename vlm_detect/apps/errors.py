"""Error responses: one shape for every route, which both the OpenAI and the moondream clients read.

{"error": {"message": "...", "type": "invalid_request_error", "param": null, "code": "not_an_image"}}
"""

from __future__ import annotations

from typing import Any

from vlm_detect.errors import UserError
from vlm_detect.images.bounds import ImageRejected

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Busy(Exception):
    """The queue is full; `retry_after_s` estimates when there will be room."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too many requests are waiting: try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Expired(Exception):
    """The job's deadline passed before it was done."""


class Stopped(Exception):
    """The server is shutting down."""


class ApiError(Exception):
    """Answered with `status` and a body in the shape above; `retry_after_s` becomes the header of that name."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def refused_image(error: ImageRejected, param: str = "image_url") -> ApiError:
    if error.reason == "not_a_data_url":
        return ApiError(400, error.reason, error.detail, param=param)
    return ApiError(400, error.reason, f"the image cannot be used: {error}", param=param)


def as_api_error(error: Exception) -> ApiError:
    """The response for a failed job or an unusable image."""
    match error:
        case ApiError():
            return error
        case Busy():
            return ApiError(429, "queue_full", str(error), retry_after_s=error.retry_after_s)
        case Expired():
            return ApiError(503, "deadline_exceeded", str(error), retry_after_s=1)
        case Stopped():
            return ApiError(503, "shutting_down", str(error), retry_after_s=5)
        case ImageRejected():
            return refused_image(error)
        case UserError():
            return ApiError(400, "invalid_request", str(error))
        case MemoryError() | RuntimeError() if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
            return ApiError(503, "out_of_memory", "the model ran out of memory: send fewer or smaller images")
    return ApiError(500, "internal_error", "the model failed on this request; see the server's log")
