"""What a server allows: every bound in one place."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from vlm_detect.config import check_between
from vlm_detect.errors import UserError


@dataclass(frozen=True)
class ServerSettings:
    """Sizes in bytes and pixels, times in seconds. `max_held_bytes` bounds all request bodies in memory together."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    without_key: bool = False  # beyond loopback, that is
    max_body_bytes: int = 32 << 20
    max_held_bytes: int = 512 << 20
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    write_timeout_s: float = 30.0  # in which a client has to read on
    max_idle_connections: int = 256  # those that owe a request
    max_uploads: int = 128  # bodies that arrive at a time
    max_pixels: int = 50_000_000
    decoders: int = 2  # images that are decoded at a time, each in a process of its own
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

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine to itself; a name such as 127.example.org does not."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_settings(settings: ServerSettings) -> None:
    """`UserError` where there is no such port, or the server would be open to the network without a key."""
    check_between(settings, 0, 65535, "port")
    key = settings.api_key
    if key is not None and not key.strip():
        raise UserError("--api_key is empty: give a long random text, or leave the flag out")
    if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise UserError("--api_key holds what no header can carry: give ASCII characters without spaces at the ends")
    if key is None and not settings.is_loopback and not settings.without_key:
        raise UserError(
            f"--host {settings.host} opens the server to the network: give --api_key KEY (or VLM_DETECT_API_KEY), or "
            "--without_key where something in front of it lets nobody else in"
        )
