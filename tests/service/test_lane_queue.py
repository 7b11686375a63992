"""LaneQueue: tenants take turns, and one tenant's entries keep their order."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from service.lane_queue import LaneQueue

Entry = tuple[str, int]


def queue_of(*entries: Entry) -> LaneQueue[Entry]:
    queue = LaneQueue[Entry](lambda entry: entry[0])
    queue.extend(entries)
    return queue


def test_tenants_take_turns() -> None:
    queue = queue_of(("a", 1), ("a", 2), ("a", 3), ("b", 1), ("c", 1), ("b", 2))
    assert [queue.take() for _ in range(len(queue))] == [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("b", 2), ("a", 3)]
    assert queue.first is None


def test_dropped_entry_takes_no_turn() -> None:
    queue = queue_of(("a", 1), ("a", 2), ("b", 1))
    assert queue.drop() == ("a", 1)
    assert [queue.take(), queue.take()] == [("a", 2), ("b", 1)]


def test_entries_put_back_have_their_old_turns() -> None:
    queue = queue_of(("a", 1), ("a", 2), ("b", 1), ("b", 2))
    taken = [queue.take() for _ in range(3)]
    for entry in reversed(taken):
        queue.put_back(entry)
    assert [queue.take() for _ in range(4)] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_discarded_entries_are_gone_and_the_others_keep_their_turns() -> None:
    queue = queue_of(("a", 1), ("b", 1), ("b", 2), ("c", 1), ("a", 2))
    assert queue.discard([("b", 2), ("b", 1), ("a", 1), ("d", 1), ("a", 9)]) == 3
    assert [queue.take() for _ in range(len(queue))] == [("a", 2), ("c", 1)]
    assert queue.first is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_any_history_keeps_order_and_loses_nothing(steps: list[tuple[str, bool]]) -> None:
    queue, taken = queue_of(), list[Entry]()
    counts: defaultdict[str, int] = defaultdict(int)
    for tenant, adds in steps:
        if adds:
            queue.extend([(tenant, counts[tenant])])
            counts[tenant] += 1
        elif queue:
            first = queue.first
            taken.append(queue.take())
            assert taken[-1] == first
    assert len(queue) == len(list(queue)) == sum(counts.values()) - len(taken)
    taken += [queue.take() for _ in range(len(queue))]
    for tenant, count in counts.items():
        assert [number for name, number in taken if name == tenant] == list(range(count))
