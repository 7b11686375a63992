"""SharedLru: whose values are evicted first, and that every byte is released."""

from __future__ import annotations

import subprocess
import sys

from service.search.shared_lru import SharedLru


def test_value_that_was_asked_for_least_recently_goes_first_whoever_owns_it() -> None:
    lru = SharedLru[str](30)
    idle, busy = lru.new_owner(), lru.new_owner()
    for key in "abc":
        lru.put(idle, key, key.upper(), 10)
    assert lru.get(idle, "a") == "A"
    for key in "xy":
        lru.put(busy, key, key.upper(), 10)
    assert [lru.get(idle, key) for key in "abc"] == ["A", None, None]
    assert [lru.get(busy, key) for key in "xy"] == ["X", "Y"]
    assert (lru.used, lru.count(idle), lru.count(busy)) == (30, 1, 2)


YOUNG_OBJECTS_AFTER_READS = """
import gc
from service.search.shared_lru import SharedLru

lru = SharedLru[str](10_000)
owner = lru.new_owner()
for number in range(1000):
    lru.put(owner, f"key {number}", "value", 1)
gc.collect()
gc.disable()
for number in range(1000):
    assert lru.get(owner, f"key {number}") == "value"
print(len(gc.get_objects(generation=0)))
"""
"""Program that prints how many objects a thousand reads leave to the garbage collector. It has its own process, since
the threads of other tests create objects, too."""


def test_reads_make_no_objects_that_the_garbage_collector_goes_through() -> None:
    program = [sys.executable, "-c", YOUNG_OBJECTS_AFTER_READS]
    assert int(subprocess.run(program, check=True, capture_output=True, text=True).stdout) < 100


def test_dropped_and_replaced_values_give_their_bytes_back() -> None:
    lru = SharedLru[str](100)
    one, other = lru.new_owner(), lru.new_owner()
    lru.put(one, "a", "A", 10)
    lru.put(one, "a", "B", 20)
    lru.put(one, "b", "B", 10)
    lru.put(other, "a", "O", 5)
    lru.drop(one, "nothing")
    assert (lru.used, lru.get(one, "a")) == (35, "B")
    lru.drop_all(one)
    assert (lru.used, lru.count(one), lru.get(one, "a"), lru.get(other, "a")) == (5, 0, None, "O")


class ComparedOwner(int):
    """Number of an owner that counts how often it is compared."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        self.comparisons += 1
        return int(self) == other

    __hash__ = int.__hash__


def test_dropping_all_values_of_an_owner_looks_at_none_of_others() -> None:
    lru = SharedLru[str](10_000)
    owner, other = ComparedOwner(lru.new_owner()), lru.new_owner()
    for number in range(1000):
        lru.put(other, number, "O", 1)
    lru.put(owner, "a", "A", 1)
    owner.comparisons = 0
    lru.drop_all(owner)
    assert owner.comparisons < 10
    assert (lru.used, lru.count(owner), lru.count(other)) == (1000, 0, 1000)


def test_value_that_is_larger_than_all_memory_is_not_kept() -> None:
    lru = SharedLru[str](5)
    lru.put(lru.new_owner(), "a", "A", 10)
    assert (lru.used, lru.get(0, "a")) == (0, None)
