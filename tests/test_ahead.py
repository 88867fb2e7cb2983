"""Work done ahead in threads: in order, bounded, and each error at its own item."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from vlm_detect.ahead import ahead


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_the_order_of_their_items(threads: int) -> None:
    assert list(ahead(str, range(20), threads)) == [str(number) for number in range(20)]
    assert list(ahead(str, [], threads)) == []


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_is_raised_at_its_items_turn(threads: int) -> None:
    def half(number: int) -> int:
        if number == 3:
            raise ValueError(number)
        return number // 2

    found = ahead(half, range(10), threads)
    assert [next(found) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ValueError, match="3"):
        next(found)


def test_it_works_ahead_but_no_further_than_its_threads() -> None:
    taken: list[int] = []
    second = threading.Event()

    def items() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        if number == 1:
            second.set()
        return number

    found = ahead(work, items(), 2)
    assert next(found) == 0
    assert second.wait(10), "the second item is not begun while the first is used"
    assert len(taken) == 3  # the result that is used, and one for each thread


def test_more_results_than_threads_may_wait() -> None:
    done: list[int] = []
    sixth = threading.Event()

    def work(number: int) -> int:
        done.append(number)
        if len(done) == 6:
            sixth.set()
        return number

    found = ahead(work, range(10), 1, waiting=5)
    assert next(found) == 0
    assert sixth.wait(10)
    assert done == [0, 1, 2, 3, 4, 5]
    assert list(found) == list(range(1, 10))


def test_nothing_is_begun_after_the_caller_stops() -> None:
    begun: list[int] = []
    gate = threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number:
            gate.wait(10)
        return number

    found = ahead(work, range(10), 1)
    next(found)
    gate.set()
    found.close()  # type: ignore[attr-defined]  # a generator, as for an exception or Ctrl-C in the loop
    assert len(begun) <= 2
