"""The keys of a server: one key for all, or a file of named keys, each with a rate limit of its own.

    [newsroom]
    key = "a long random string"
    limit = "60/minute"                  # of requests; without it there is none

    [archive]
    sha256 = "9f86d081884c7d65..."       # of the key, so that the file does not hold it

A limit holds for any window of its length, over all replicas: requests are counted in the process that clients connect
to, from its start.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from vlm_detect.apps.errors import ApiError
from vlm_detect.apps.settings import ServerSettings, check_key
from vlm_detect.errors import UserError

MAX_PER_WINDOW = 100_000  # requests of a limit: the time of each is kept
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")


@dataclass(frozen=True)
class Key:
    """`name` is None for the one key of `--api_key`."""

    name: str | None
    sha256: str
    limit: RateLimitItem | None = None


class Keys:
    """Admits requests by their key, within its limit."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self.replace(keys)

    @classmethod
    def from_settings(cls, settings: ServerSettings) -> Keys | None:
        """The keys that `settings` ask for, or None; `UserError` where their file cannot be used."""
        if settings.api_keys is not None:
            return cls(read_keys(Path(settings.api_keys)))
        return None if settings.api_key is None else cls([Key(None, _sha256(settings.api_key))])

    def replace(self, keys: Sequence[Key]) -> None:
        """From now on `keys` are valid; what a name has used of its limit stays used."""
        self._by_hash = {key.sha256: key for key in keys}

    def name_of(self, given: str) -> str | None:
        """The name of a given key; `ApiError` where it is unknown."""
        # Hashes are looked up, so the time that this takes says nothing about the keys.
        found = self._by_hash.get(_sha256(given))
        if found is None:
            raise ApiError(401, "invalid_api_key", "give a key of this server as `Authorization: Bearer KEY`")
        return found.name

    def count(self, given: str) -> None:
        """Count a request against the limit of a valid key; `ApiError` where it is used up."""
        key = self._by_hash[_sha256(given)]
        if key.limit is None or self._limiter.hit(key.limit, str(key.name)):
            return
        wait_s = math.ceil(self._limiter.get_window_stats(key.limit, str(key.name)).reset_time - time.time())
        message = f"this key's limit of {key.limit} is used up: try again in {wait_s} s"
        raise ApiError(429, "rate_limited", message, retry_after_s=max(1, wait_s))


def read_keys(path: Path) -> list[Key]:
    """The keys of a TOML file; `UserError` with the place of what cannot be used. No message shows a key."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--api_keys {path}: {error.strerror}: give a TOML file of keys") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--api_keys {path}: not TOML: {error}") from error
    if not tables:
        raise UserError(f'--api_keys {path}: no keys: give one as [NAME] with key = "..."')
    keys = [_read_key(f"--api_keys {path}: [{name}]", name, table) for name, table in tables.items()]
    names: dict[str, str | None] = {}
    for key in keys:
        if key.sha256 in names:
            raise UserError(f"--api_keys {path}: [{key.name}] has the key of [{names[key.sha256]}]: give it its own")
        names[key.sha256] = key.name
    return keys


def _read_key(place: str, name: str, table: Any) -> Key:
    if not _NAME.fullmatch(name):
        raise UserError(f"{place}: a name has 1 to 40 letters, digits, '.', '_' and '-'")
    if not isinstance(table, Mapping):
        raise UserError(f'{place}: not a table: write [{name}] and key = "..." under it')
    if unknown := sorted(set(table) - {"key", "sha256", "limit"}):
        raise UserError(f"{place}: {unknown[0]}: unknown; give key or sha256, and limit")
    if wrong := sorted(field for field, value in table.items() if not isinstance(value, str)):
        raise UserError(f"{place}: {wrong[0]} is not a string: put it in quotes")
    if ("key" in table) == ("sha256" in table):
        raise UserError(f"{place}: give either key or sha256")
    if "key" in table:
        check_key(table["key"], f"{place}: key")
    sha256 = _sha256(table["key"]) if "key" in table else table["sha256"].lower()
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise UserError(f"{place}: sha256 is not a SHA-256 in hexadecimal: 64 digits, as sha256sum prints them")
    return Key(name, sha256, _read_limit(place, table["limit"]) if "limit" in table else None)


def _read_limit(place: str, text: str) -> RateLimitItem:
    try:
        (limit,) = parse_many(text)
    except ValueError as error:
        raise UserError(f'{place}: limit {text!r}: give one such as "60/minute" or "1000/hour"') from error
    if not 1 <= limit.amount <= MAX_PER_WINDOW:
        raise UserError(f"{place}: limit {text!r}: give 1 to {MAX_PER_WINDOW} requests")
    return limit


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
