"""Decode the images of requests in separate processes, so that untrusted input is opened where it can be killed.

    decoding = Decoding(settings)
    picture = await decoding.picture(part)      # `ImageRejected` where it is not an image

Base64, pixels and metadata are read there. When a request is cancelled, at its deadline or because its client
disconnects, the process that works for it is killed.
"""

from __future__ import annotations

import asyncio

from vlm_detect.apps.bodies import Part
from vlm_detect.apps.errors import Busy
from vlm_detect.apps.settings import ServerSettings
from vlm_detect.images.isolated import IsolatedDecoder, Reply
from vlm_detect.infer.picture import Picture, picture_of


class Decoding:
    """`settings.decoders` images at a time; `settings.max_jobs` more may wait."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._all = [IsolatedDecoder() for _ in range(settings.decoders)]
        self._idle = list(self._all)
        self._free = asyncio.Semaphore(settings.decoders)
        self._waiting = 0
        for decoder in self._all:
            decoder.start(settings.max_pixels)

    async def picture(self, part: Part) -> Picture:
        """The image and its file's metadata; `Busy` where too many wait."""
        if self._waiting >= self._settings.max_jobs:
            raise Busy(1)
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        decoder = self._idle.pop()
        try:
            reply = await asyncio.to_thread(self._decode, decoder, part)
        except asyncio.CancelledError:
            decoder.stop()
            raise
        finally:
            self._idle.append(decoder)
            self._free.release()
        return picture_of(reply)

    def _decode(self, decoder: IsolatedDecoder, part: Part) -> Reply:
        return decoder.decode(
            part.data,
            encoding=part.encoding,
            with_facts=True,
            max_pixels=self._settings.max_pixels,
            max_seconds=self._settings.decode_s,
        )

    def stop(self) -> None:
        """End the processes and their current work."""
        for decoder in self._all:
            decoder.stop()
