"""Images prepared in threads before their turn comes, so that a GPU does not wait for the CPU to cut crops.

    ready = PreparedAhead(vlm)
    ready.begin(next_images)       # returns at once
    ready.key(image)               # `image_key` of an image, found ahead where it was begun
    ready.batch(images)            # as vlm.prepare(images): what was begun is waited for, the rest is prepared here

What is prepared is kept with its image, for as long as that lives, and given out once. On a CPU nothing is begun ahead:
its cores compute.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from PIL import Image

from vlm_detect.ahead import MOST_THREADS, threads_for
from vlm_detect.machine import cpu_cores
from vlm_detect.models.base import VLM

Prepare = Callable[[Sequence[Image.Image]], Any]  # images to a batch, as `VLM.prepare`
_BAND_PIXELS = 1 << 18


class Ready(NamedTuple):
    """An image's key, and what `prepare` makes of it alone; None where that was given out, or is not needed."""

    key: bytes
    prepared: Any


class PreparedAhead:
    """Images whose keys are `held` need no preparing: what the model has read of them is kept."""

    def __init__(self, vlm: VLM, held: Container[bytes] = ()) -> None:
        self.vlm = vlm
        self._held = held
        self._begun: dict[int, Future[Ready]] = {}  # by the identity of a living image
        self._threads = ThreadPoolExecutor(min(MOST_THREADS, cpu_cores()), "prepare")  # of which none runs yet

    def begin(self, images: Sequence[Image.Image]) -> None:
        """Prepare these in threads, in their order."""
        if threads_for(self.vlm.device) == 0:
            return
        for image in images:
            if id(image) in self._begun:
                continue
            self._begun[id(image)] = self._threads.submit(self._prepare, image)
            weakref.finalize(image, self._begun.pop, id(image), None).atexit = False

    def key(self, image: Image.Image | None) -> bytes:
        """`image_key`, of what was begun without hashing it again."""
        ready = self._ready(image)
        return image_key(image) if ready is None else ready.key

    def batch(self, images: Sequence[Image.Image]) -> Any:
        """What `prepare` makes of images, bit for bit."""
        found = [self._ready(image) for image in images]
        if all(ready is None or ready.prepared is None for ready in found):
            return self.vlm.prepare(images)
        parts = []
        for image, ready in zip(images, found, strict=True):
            if ready is None or ready.prepared is None:
                parts.append(self.vlm.prepare([image]))
            else:
                parts.append(ready.prepared)
                self._begun[id(image)] = _done(ready._replace(prepared=None))
        return self.vlm.collate(parts)

    def _prepare(self, image: Image.Image) -> Ready:
        key = image_key(image)
        is_read = key not in self._held and not self.vlm.refusal(image.size)
        return Ready(key, self.vlm.prepare([image]) if is_read else None)

    def _ready(self, image: Image.Image | None) -> Ready | None:
        """What was begun, waited for. An error is raised once: it holds the image, which is then prepared again."""
        begun = self._begun.get(id(image))
        try:
            return None if begun is None else begun.result()
        except BaseException:
            self._begun.pop(id(image), None)
            raise


def _done(ready: Ready) -> Future[Ready]:
    future: Future[Ready] = Future()
    future.set_result(ready)
    return future


def image_key(image: Image.Image | None) -> bytes:
    """A digest of an image's pixels, palette and size."""
    if image is None:
        return b""
    header = f"{image.mode} {image.size}".encode()
    digest = hashlib.sha256(header + bytes(image.getpalette("RGBA") or ()))
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):  # in bands: hashing a large image at once blocks the other threads
        digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return digest.digest()
