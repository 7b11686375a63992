"""Work shared by two threads, calls that change an index one at a time, and reads between two changes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from service.index.seqlock import MAX_OPTIMISTIC_READS, SeqLock
from service.index.threads import IndexWriter, map_in_two_threads


def test_results_come_in_the_order_of_the_items() -> None:
    assert map_in_two_threads(lambda number: number * number, range(100)) == [n * n for n in range(100)]
    assert map_in_two_threads(str, []) == []


def test_two_threads_work_at_once() -> None:
    both = threading.Barrier(2, timeout=30)  # passes only if two calls wait at the same time
    assert len(map_in_two_threads(lambda _: both.wait(), range(2))) == 2


def test_caller_gets_through_while_no_other_thread_is_free() -> None:
    """In nested calls, all helper threads may be busy with outer calls that wait."""

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


@pytest.fixture
def writer() -> Iterator[IndexWriter]:
    writer = IndexWriter()
    yield writer
    writer.shutdown()


@pytest.mark.anyio
async def test_short_call_runs_in_the_event_loop_and_others_in_a_thread(writer: IndexWriter) -> None:
    assert await writer.run_short(threading.get_ident) == threading.get_ident()
    assert await writer.run(threading.get_ident) != threading.get_ident()


@pytest.mark.anyio
async def test_short_call_waits_for_the_call_that_runs(writer: IndexWriter) -> None:
    began, go_on, calls = asyncio.Event(), threading.Event(), list[str]()
    loop = asyncio.get_running_loop()

    def long_call() -> None:
        loop.call_soon_threadsafe(began.set)
        go_on.wait(30)
        calls.append("long")

    running = asyncio.create_task(writer.run(long_call))
    await began.wait()
    short = asyncio.create_task(writer.run_short(lambda: calls.append("short")))
    await asyncio.sleep(0)  # lets the short call see that another one runs
    go_on.set()
    await asyncio.gather(running, short)
    assert calls == ["long", "short"]


@pytest.mark.anyio
async def test_call_that_fails_lets_the_next_one_run(writer: IndexWriter) -> None:
    for run in (writer.run, writer.run_short):
        with pytest.raises(ZeroDivisionError):
            await run(lambda: 1 // 0)
    assert await writer.run_short(lambda: "next") == "next"


def test_read_beside_which_something_changed_is_repeated() -> None:
    lock, halves, reads = SeqLock(), [0, 0], 0

    def change() -> None:
        with lock.change():
            halves[0] += 1
            halves[1] += 1

    def look() -> tuple[int, int]:
        nonlocal reads
        first, reads = halves[0], reads + 1
        if reads < MAX_OPTIMISTIC_READS:
            change()
        return first, halves[1]

    assert (lock.read(look), reads) == ((MAX_OPTIMISTIC_READS - 1, MAX_OPTIMISTIC_READS - 1), MAX_OPTIMISTIC_READS)


def test_read_that_was_overtaken_again_and_again_makes_changes_wait() -> None:
    lock, value, reads = SeqLock(), 0, 0

    def change() -> None:
        nonlocal value
        with lock.change():
            value += 1

    late = threading.Thread(target=change)

    def look() -> tuple[int, int]:
        nonlocal reads
        first, reads = value, reads + 1
        if reads <= MAX_OPTIMISTIC_READS:
            change()
        else:
            late.start()
        return first, value

    assert lock.read(look) == (MAX_OPTIMISTIC_READS, MAX_OPTIMISTIC_READS)
    late.join()
    assert value == MAX_OPTIMISTIC_READS + 1, "the change that waited"


def test_read_that_begins_during_a_change_sees_all_of_it() -> None:
    lock, halves, began, seen = SeqLock(), [0, 0], threading.Event(), list[tuple[int, int]]()

    def read() -> None:
        began.set()
        seen.append(lock.read(lambda: (halves[0], halves[1])))

    reader = threading.Thread(target=read)
    with lock.change():
        halves[0] = 1
        reader.start()
        began.wait()
        halves[1] = 1
    reader.join()
    assert seen == [(1, 1)]


def test_change_that_fails_leaves_the_lock_usable() -> None:
    lock = SeqLock()
    with pytest.raises(IndexError), lock.change():
        raise IndexError
    with lock.change():
        pass
    assert lock.read(lambda: "read") == "read"
