"""What the server knows of the request that it answers: its images, its deadline, and whether anybody still waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request

from vlm_detect.apps.bodies import Content, Part
from vlm_detect.apps.errors import ApiError
from vlm_detect.apps.worker import Expired

T = TypeVar("T")
POLL_S = 0.25  # how often a waiting request looks whether its client is still there


@dataclass(frozen=True)
class Asked:
    """`deadline` is a time of `time.monotonic()`, `content` what was taken out of the body."""

    request: Request
    content: Content
    deadline: float

    async def within_deadline(self, result: Awaitable[T]) -> T:
        """`result`, given up with `Expired` at the deadline and with an `ApiError` when the client goes first."""
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                return await unless_gone(self.request, result)
        except TimeoutError:
            raise Expired("the deadline passed before the images were read") from None


_asked: ContextVar[Asked] = ContextVar("asked")


def asked() -> Asked:
    """The request of the task that calls."""
    return _asked.get()


def answer_in_this_task(request: Asked) -> None:
    _asked.set(request)


def part_of(source: str) -> Part:
    """What a string of the body holds of an image: the part that it names, or itself, a short data URL."""
    return asked().content.images.get(source) or Part(memoryview(source.encode("utf-8", "replace")), "data_url")


def client_gone() -> ApiError:
    return ApiError(499, "client_gone", "the client closed the connection")


async def unless_gone(request: Request, result: Awaitable[T]) -> T:
    """`result`, given up with an `ApiError` when the client disconnects first."""

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
