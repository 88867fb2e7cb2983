"""The log of a server: on stderr, as text (errors only) or as JSON lines (also one line for each request).

    {"time": "2026-01-31T12:00:00.123Z", "level": "info", "message": "request", "request_id": "5f2c...", "route":
     "/v1/verdict", "method": "POST", "status": 200, "seconds": 0.081, "key": "newsroom", "replica": 1}

No line holds anything from a request but its id, whose characters and length are limited.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from contextvars import ContextVar
from typing import Any

REQUEST_ID = "x-request-id"  # the header
_USABLE = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_requests = logging.getLogger("vlm_detect.requests")


def begin_request(given: str | None) -> str:
    """The id of the request of the calling task: the client's own where it is usable, otherwise a new one."""
    found = given if given is not None and _USABLE.fullmatch(given) else uuid.uuid4().hex
    _request_id.set(found)
    return found


def current_request() -> str | None:
    """The id of the request that the calling task answers."""
    return _request_id.get()


def log_request(**facts: Any) -> None:
    """One line for an answered request; shown in JSON logs only."""
    _requests.info("request", extra={"facts": facts})


def set_up_logs(as_json: bool, replica: int | None = None) -> None:
    """Send the log of this process to stderr; `replica` is its number if it is one of several."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines(replica) if as_json else _Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("vlm_detect").setLevel(logging.INFO if as_json else logging.WARNING)
    # It logs every oddity of a body: strangers must not fill the log. Of Pillow `set_up_process` says so.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


def _request_of(record: logging.LogRecord) -> str | None:
    return getattr(record, "request_id", None) or current_request()


class _Text(logging.Formatter):
    """The message, after the id of the request that it is about."""

    def format(self, record: logging.LogRecord) -> str:
        request_id = _request_of(record)
        return (f"[{request_id}] " if request_id else "") + super().format(record)


class _JsonLines(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, replica: int | None) -> None:
        super().__init__()
        self._replica = replica

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        facts: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "request_id": _request_of(record),
            "replica": self._replica,
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in facts.items() if value is not None})
