"""What the server knows about a running request: its images, its deadline, and whether the client is still
connected."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request

from vlm_detect.apps.bodies import Content, Part
from vlm_detect.apps.errors import ApiError, Expired

T = TypeVar("T")
POLL_S = 0.25  # how often a waiting request checks that its client is still connected


@dataclass(frozen=True)
class Asked:
    """`deadline` is a time of `time.monotonic()`, `content` the images and parts taken out of the body."""

    request: Request
    content: Content
    deadline: float

    async def within_deadline(self, result: Awaitable[T]) -> T:
        """Await `result`; raises `Expired` at the deadline and `ApiError` when the client disconnects first."""
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                return await unless_gone(self.request, result)
        except TimeoutError:
            raise Expired("the deadline passed before the images were read") from None


_asked: ContextVar[Asked] = ContextVar("asked")


def asked() -> Asked:
    """The request of the calling task."""
    return _asked.get()


def answer_in_this_task(request: Asked) -> None:
    _asked.set(request)


def part_of(source: str) -> Part:
    """The image that a string of the body stands for: the part that it names, or the string itself (a short data
    URL)."""
    return asked().content.images.get(source) or Part(memoryview(source.encode("utf-8", "replace")), "data_url")


def client_gone() -> ApiError:
    return ApiError(499, "client_gone", "the client closed the connection")


async def unless_gone(request: Request, result: Awaitable[T]) -> T:
    """Await `result`; raises `ApiError` when the client disconnects first."""

    async def gone() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(POLL_S)

    wanted, watch = asyncio.ensure_future(result), asyncio.ensure_future(gone())
    try:
        await asyncio.wait([wanted, watch], return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            raise client_gone()
        return wanted.result()
    finally:
        wanted.cancel()
        watch.cancel()
