"""Work that two threads share."""

from __future__ import annotations

import threading

import pytest

from service.index.threads import map_in_two_threads


def test_results_come_in_the_order_of_the_items() -> None:
    assert map_in_two_threads(lambda number: number * number, range(100)) == [n * n for n in range(100)]
    assert map_in_two_threads(str, []) == []


def test_two_threads_work_at_once() -> None:
    both = threading.Barrier(2, timeout=30)  # passes where two calls wait for each other
    assert len(map_in_two_threads(lambda _: both.wait(), range(2))) == 2


def test_caller_gets_through_while_no_other_thread_is_free() -> None:
    """A call inside a call: the threads beside are taken by those that wait."""

    def outer(number: int) -> list[int]:
        return map_in_two_threads(lambda inner: 10 * number + inner, range(4))

    assert map_in_two_threads(outer, range(20)) == [[10 * n + i for i in range(4)] for n in range(20)]


@pytest.mark.parametrize("failing", [0, 7])
def test_error_of_a_call_is_raised(failing: int) -> None:
    def call(number: int) -> int:
        if number == failing:
            raise IndexError(number)
        return number

    with pytest.raises(IndexError):
        map_in_two_threads(call, range(8))
