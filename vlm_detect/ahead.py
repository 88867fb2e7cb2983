"""Work done in threads ahead of the one that takes its results: decode and prepare images while the device computes.

    for prepared in ahead(prepare, batches, threads=4):      # in the order of `batches`
        encode(prepared)

Decoding, resizing and NumPy release Python's lock, so that threads run side by side and nothing is pickled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from vlm_detect.machine import cpu_cores

MOST_THREADS = 8  # more would only hold more images in memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, waiting: int | None = None
) -> Iterator[Result]:
    """`function` of each item, in their order, with at most `waiting` results ahead (None: one a thread).

    With 0 threads nothing is ahead, and there are no threads. `items` are taken in the caller's thread.
    An exception is raised when its item's turn comes: `function` returns what should not end the rest. Where the caller
    stops, by an exception or Ctrl-C, nothing more is begun.
    """
    if threads == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        most = threads if waiting is None else waiting
        begun: deque[Future[Result]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(function, item))
                if len(begun) > most:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def threads_for(device: torch.device) -> int:
    """How many threads prepare images for this device: none for the CPU, whose time they would take."""
    return 0 if device.type == "cpu" else min(MOST_THREADS, cpu_cores())
