"""How many images go through a model at once: as many as the free memory holds, and fewer after an out-of-memory error.

    size = BatchSize(16, lambda: images_that_fit(vlm, reserved=cache_bytes))
    size.run(images, work)      # work(some images) gives one result each; out of memory, it is asked about half as many

What fits is estimated from the model's config (`infer.footprint`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from vlm_detect.errors import UserError
from vlm_detect.infer.footprint import Footprint
from vlm_detect.machine import empty_cache, free_device_bytes, is_out_of_memory
from vlm_detect.models.base import VLM

Item = TypeVar("Item")
Result = TypeVar("Result")

SPARE_BYTES = 1e9  # of the free memory, at least a tenth of it: fragmentation, and the kernels' own workspaces


class BatchSize:
    """At most `most` at once. `fitting` says how many fit the free memory, None where that is unknown.

    `give_up` frees what can be computed again, before a smaller batch is tried. With `fixed` neither the free memory
    nor an error changes the size: processes that gather weights from each other must make the same batches.
    """

    def __init__(
        self,
        most: int,
        fitting: Callable[[], int | None] = lambda: None,
        *,
        what: str = "images",
        give_up: Callable[[], None] = lambda: None,
        fixed: bool = False,
    ) -> None:
        self._most = most
        self._fitting = fitting
        self._what = what
        self._give_up = give_up
        self._fixed = fixed
        self._found: int | None = most if fixed else None

    @property
    def now(self) -> int:
        """The size of the next batch. Estimated on first use, when all models are loaded."""
        if self._found is None:
            fitting = self._fitting()
            self._found = self._most if fitting is None else max(1, min(self._most, fitting))
        return self._found

    def batches(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """Consecutive parts of `items`, each of the size that holds when it is asked for."""
        start = 0
        while start < len(items):
            some = items[start : start + self.now]
            yield some
            start += len(some)

    def halve(self, failed: int) -> None:
        """From now on at most half as many as the `failed` ones that memory did not hold."""
        if not self._fixed:
            self._found = max(1, min(self.now, failed // 2))
            self._give_up()
            empty_cache()

    def run(self, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result]:
        """The results of `work` on batches of `items`, in order.

        Raises:
            UserError: where memory does not hold a single item.
        """
        results: list[Result] = []
        failed: int | None = None  # the size that did not fit
        while len(results) < len(items):
            some = items[len(results) : len(results) + self.now]
            found = self._try(some, work)
            if found is None:
                failed = failed or len(some)
                self.halve(len(some))
                continue
            results += found
            if failed:
                message = f"out of memory with {failed} {self._what} at once: going on with {self.now}"
                print(message, file=sys.stderr)
                failed = None
        return results

    def _try(self, some: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> Sequence[Result] | None:
        """The results, or None where the memory did not hold them."""
        try:
            return work(some)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if self._fixed or not is_out_of_memory(error):
                raise
            if len(some) == 1:
                one = self._what.removesuffix("s")
                raise UserError(
                    f"out of memory with one {one} at once: free the device of other programs, or take a smaller model"
                ) from error
        return None  # and no error any more, which would hold the tensors of the frames that it left


def images_that_fit(vlm: VLM, *, reserved: float = 0) -> int | None:
    """How many images can be encoded, prefilled and asked at once in the memory that is free, `reserved` bytes apart.

    None on a device that does not say.
    """
    free = free_device_bytes(vlm.device)
    return None if free is None else int((usable(free) - reserved) / Footprint.of(vlm).image_bytes)


def rows_that_fit(vlm: VLM, *, reserved: float = 0) -> int | None:
    """As `images_that_fit`, for prompts that are each decoded after a copy of an image's prefix."""
    free = free_device_bytes(vlm.device)
    return None if free is None else int((usable(free) - reserved) / Footprint.of(vlm).row_bytes)


def bytes_to_hold(vlm: VLM) -> int | None:
    """How much prefixes that are kept between calls may take: a quarter of the free memory, and half of what one image
    leaves. None on a device that does not say."""
    free = free_device_bytes(vlm.device)
    return None if free is None else int(max(0, min(free / 4, (usable(free) - Footprint.of(vlm).image_bytes) / 2)))


def usable(free: float) -> float:
    """Of free bytes those that tensors can take."""
    return free - max(SPARE_BYTES, free / 10)
