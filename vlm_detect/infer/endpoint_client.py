"""The client of an OpenAI-compatible endpoint, and its failures in one line each.

    client = EndpointClient("http://localhost:8000/v1", "qwen-image", api_key=None, flag="--generator_endpoint")
    with client.explained():
        client.openai.images.generate(...)

Rate limits, timeouts and server errors are retried with exponential backoff, or after the server's `Retry-After`.
Messages contain what the server says, made printable, and never the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from vlm_detect.errors import UserError
from vlm_detect.extras import require
from vlm_detect.printable import printable

_HERE = ("localhost", "127.0.0.1", "::1")
_OF_ONE_REQUEST = (400, 413, 422)  # statuses that say nothing about other requests
_BILLING = "billing_hard_limit_reached"  # a code with status 400, although every request gets it
_UNKNOWN_CODES = ("unknown_parameter", "unsupported_parameter")
# How servers call the field NAME unknown: OpenAI and Python functions; pydantic, in any notation.
_UNKNOWN = (
    r"\b(?:unknown|unrecogni[sz]ed|unsupported|unexpected|extra)(?: \w+)? "
    r"(?:parameter|argument|field|input|key|property)s?(?: \w+)?\W{1,3}NAME\b",
    r"\bextra_forbidden\W+loc\W+(?:\w+\W+)?NAME\b",
)


class Unavailable(UserError):
    """A failure that every request would have: a wrong key, an unknown model, a server that is down."""


class Failed(UserError):
    """The server failed at one request, despite retries."""


class TimedOut(Failed):
    """A request was not answered in time, despite retries."""


class Refused(UserError):
    """The server rejects one request."""

    def __init__(self, message: str, said: str = "", param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self._said, self._param, self._code = said[:2000], param, code

    def unknown_field(self, names: Sequence[str], *, sent: str) -> str | None:
        """The one of `names` that the server calls an unknown field; None for any other reason.

        `sent` is the request's own text, which the server may quote.
        """
        if self._param in names and self._code in _UNKNOWN_CODES:
            return self._param
        for name in names:
            form = re.compile("|".join(_UNKNOWN).replace("NAME", re.escape(name)), re.IGNORECASE)
            if form.search(self._said) and not form.search(sent):
                return name
        return None


class OutOfBounds(Refused):
    """The answer to one request is beyond the bounds of `BoundedClient`."""


class EndpointClient:
    """One model behind an endpoint; `flag` is the option with its URL."""

    def __init__(
        self, url: str, model: str, *, api_key: str | None, flag: str, retries: int = 6, timeout_s: float = 120.0
    ) -> None:
        require("eval", "openai", wanted_by=flag)
        import openai

        from vlm_detect.infer.bounded_client import BoundedClient

        if not url.startswith(("http://", "https://")):
            raise UserError(f"{flag} {url}: not a URL; it begins with http:// or https:// and usually ends with /v1")
        self.url, self.model, self._key = url, model, api_key
        self.openai = openai.OpenAI(
            base_url=url,
            api_key=api_key or "none",  # a local server needs none, but the client requires one
            max_retries=retries,
            timeout=timeout_s,
            http_client=BoundedClient(timeout_s),
        )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise Unavailable for failures of every request, Failed or Refused for those of one."""
        import openai

        from vlm_detect.infer.bounded_client import OUT_OF_BOUNDS

        try:
            yield
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise Unavailable(
                f"{self.url} refuses the key ({self._shown(error)}): set a valid one in the variable of --api_key_env"
            ) from error
        except openai.NotFoundError as error:
            raise Unavailable(
                f"{self.url} has no model {self.model!r} for this request ({self._shown(error)}); see its /models"
            ) from error
        except (openai.RateLimitError, openai.InternalServerError, openai.APIConnectionError) as error:
            if isinstance(error, openai.InternalServerError) and error.status_code == 500:
                raise Failed(
                    f"{self.url} fails at a request, despite retries ({self._shown(error)}): see its log, then run the "
                    "same command again to continue"
                ) from error
            kind = TimedOut if isinstance(error, openai.APITimeoutError) else Unavailable
            raise kind(
                f"{self.url} does not answer ({self._shown(error)}): check the URL and its server, then run the same "
                "command again to continue, with fewer concurrent requests if it limits the rate"
            ) from error
        except openai.APIStatusError as error:
            if 300 <= error.status_code < 400:
                target = self.shown(error.response.headers.get("location", ""))
                raise Unavailable(
                    f"{self.url} redirects to {target!r}, which is not followed; give that URL if you trust its server"
                ) from error
            if error.code == OUT_OF_BOUNDS:
                raise OutOfBounds(self._shown(error)) from error
            if error.status_code in _OF_ONE_REQUEST and error.code != _BILLING:
                param = error.param if isinstance(error.param, str) else None
                raise Refused(self._shown(error), _said(error), param, error.code) from error
            raise Unavailable(f"{self.url} refuses every request ({self._shown(error)})") from error

    def _shown(self, error: Exception) -> str:
        """The server's message in one line, shortened."""
        return self.shown(_said(error))

    def shown(self, said: str) -> str:
        """Text of the server as it may be shown: in one line, shortened, without the key."""
        said = said.replace(self._key, "***") if self._key else said
        return printable(" ".join(said.split()))[:200]


def _said(error: Exception) -> str:
    """The server's message. The client reads only the form of OpenAI; others answer {"detail": ...} or a text."""
    message, body = str(getattr(error, "message", None) or error), getattr(error, "body", None)
    said = body.get("detail") if isinstance(body, dict) else body
    return f"{message}: {said}" if said else message


def is_this_machine(url: str) -> bool:
    """Whether requests to `url` stay on this machine."""
    return urlsplit(url).hostname in _HERE
