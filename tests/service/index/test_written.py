"""Rows in the order of their last writes: random histories against a dictionary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from service.filters import Filter
from service.index.segmented import SegmentedIndex
from service.records import ORIGIN, PositionKey, StoredNote, position_key
from tests.service.index.reference import ANY, ATTRIBUTE_NAMES, DIMENSION, FILTERS, STEPS, TIMES, Model, do_jobs, row

ENDLESS: PositionKey = (2**62, 0)


def position(number: int) -> str:
    """Return a log position; each three share a millisecond, as happens in a log."""
    return f"{1_700_000_000_000 + number // 3}-{number % 3}"


def expected(
    model: Model, after: PositionKey, until: PositionKey, count: int, where: Filter, now: float
) -> dict[str, PositionKey]:
    tested = replace(where, exclude=frozenset())
    keys = {
        note_id: position_key(stored.position)
        for note_id, stored in model.notes.items()
        if tested.accepts(stored) and not stored.expired(now)
    }
    within = {note_id: key for note_id, key in keys.items() if after < key <= until}
    return dict(sorted(within.items(), key=lambda entry: entry[1])[:count])


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(STEPS, max_size=12),
    where=FILTERS,
    bounds=st.tuples(st.integers(0, 40), st.integers(0, 60)),
    count=st.integers(1, 6),
    now=TIMES,
)
def test_rows_are_in_the_order_of_their_writes(
    steps: list[tuple[str, Any]], where: Filter, bounds: tuple[int, int], count: int, now: float
) -> None:
    index, model, number = SegmentedIndex(DIMENSION, growing_rows=3, attributes=ATTRIBUTE_NAMES), Model(), 0
    after, until = (position_key(position(bound)) for bound in bounds)
    for kind, argument in steps:
        if kind == "upsert":
            notes: dict[str, StoredNote] = {}
            for stored in argument:
                number += 1
                notes[stored.note.id] = replace(stored, position=position(number))
            index.upsert(list(notes.values()))
            model.upsert(list(notes.values()))
        else:
            getattr(index, kind)(argument)
            getattr(model, kind)(argument)
        do_jobs(index)
        assert index.written(after, until, count, where, now) == expected(model, after, until, count, where, now)
        assert list(index.written(position_key(ORIGIN), ENDLESS, 100, ANY, now).items()) == list(
            expected(model, position_key(ORIGIN), ENDLESS, 100, ANY, now).items()
        )


def test_position_that_is_too_large_for_a_column_is_the_last() -> None:
    index = SegmentedIndex(DIMENSION)
    index.upsert([replace(row("a"), position=f"{2**66}-{2**66}"), replace(row("b"), position="5-1")])
    assert list(index.written((0, 0), (2**63, 0), 10, ANY, 0.0)) == ["b", "a"]
