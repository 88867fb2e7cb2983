"""The limits of a server, in one place."""

from __future__ import annotations

import ipaddress
import sys
from dataclasses import dataclass

from vlm_detect.config import check_at_least, check_between
from vlm_detect.errors import UserError


@dataclass(frozen=True)
class ServerSettings:
    """Sizes in bytes and pixels, times in seconds. `max_held_bytes` bounds all request bodies in memory together."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    api_keys: str | None = None  # a file of keys, see keys.py
    without_key: bool = False  # beyond loopback
    max_body_bytes: int = 32 << 20
    max_held_bytes: int = 512 << 20
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    write_timeout_s: float = 30.0  # within which a client has to continue reading
    max_idle_connections: int = 256  # connections with an incomplete request
    max_uploads: int = 128  # concurrent uploads
    max_pixels: int = 50_000_000
    decoders: int = 2  # images decoded concurrently, each in its own process
    decode_s: float = 10.0  # processor time of one image
    max_held_pixels: int = 400_000_000
    max_images: int = 32
    max_question_chars: int = 4000
    max_new_tokens: int = 512
    only_confirmed: bool = False  # of explanations, what a measurement confirms
    max_jobs: int = 64
    max_batch: int = 16
    deadline_s: float = 120.0
    drain_s: float = 30.0
    log_json: bool = False
    replicas: int | None = None  # processes behind the port; None: this one serves alone

    @property
    def has_key(self) -> bool:
        return self.api_key is not None or self.api_keys is not None

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback name; a name such as 127.example.org is not."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_settings(settings: ServerSettings) -> None:
    """`UserError` for an invalid port, or where the server would be open to the network without a key."""
    check_between(settings, 0, 65535, "port")
    check_at_least(settings, 1, "replicas")
    if settings.replicas is not None and sys.platform == "win32":
        raise UserError("--replicas needs Unix sockets: use Linux or macOS, or serve without it")
    if settings.api_key is not None:
        check_key(settings.api_key, "--api_key")
    if settings.api_key is not None and settings.api_keys is not None:
        raise UserError("--api_keys and --api_key (or VLM_DETECT_API_KEY): give one of them")
    if not (settings.has_key or settings.is_loopback or settings.without_key):
        raise UserError(
            f"--host {settings.host} opens the server to the network: give --api_key KEY (or VLM_DETECT_API_KEY), "
            "--api_keys FILE, or --without_key if a proxy in front of it controls access"
        )


def check_key(key: str, name: str) -> None:
    """`UserError`, without the key in it, where `key` cannot be used; `name` says where it was given."""
    if not key.strip():
        raise UserError(f"{name} is empty: give a long random string, or omit it")
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        raise UserError(f"{name} cannot be sent in a header: use ASCII characters without spaces at the ends")
