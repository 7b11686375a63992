"""OtherSpaceNotes: the notes written between two positions, after any history of writes and removals."""

from __future__ import annotations

import random

import pytest

from service.index import other_space
from service.index.other_space import OtherSpaceNotes
from service.records import position_key


@pytest.mark.parametrize("seed", range(5))
def test_notes_are_found_by_their_last_writes_in_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_space, "MIN_STALE", 10)
    chance = random.Random(seed)
    expected = {
        f"n{number}": f"{chance.randrange(1, 500)}-{number}" for number in range(60)
    }  # positions as from a scan
    notes = OtherSpaceNotes(expected)
    for step in range(400):
        note_id = f"n{chance.randrange(80)}"
        if chance.random() < 0.5:
            notes.put({note_id: f"{1000 + step}-0"})
            expected[note_id] = f"{1000 + step}-0"
        else:
            notes.remove([note_id, "nobody"])
            expected.pop(note_id, None)
        first, last = sorted((chance.randrange(2000), 0) for _ in range(2))
        found = notes.written(first, last, 7)
        within = sorted((position_key(at), one) for one, at in expected.items() if first < position_key(at) <= last)
        assert list(found.items()) == [(one, key) for key, one in within[:7]]
    for _ in range(5):
        notes.put(expected)
    assert list(notes.written((0, 0), (9999, 0), 999)) == sorted(expected, key=lambda one: position_key(expected[one]))
    assert notes.positions() == {note_id: position_key(at) for note_id, at in expected.items()}
    assert len(notes) == len(expected)


def test_notes_that_expire_leave_at_their_time() -> None:
    notes = OtherSpaceNotes({"a": "1-0", "b": "2-0", "c": "3-0"}, {"a": 10.0, "b": 10.0})
    notes.put({"b": "4-0"}, {"b": 20.0})  # rewritten with another expiry
    notes.put({"d": "5-0"}, {"d": 5.0})
    notes.put({"d": "6-0"})  # rewritten without an expiry
    assert (notes.expire(9.0), notes.expire(10.0), notes.expire(10.0)) == (False, True, False)
    assert notes.positions().keys() == {"b", "c", "d"}
    assert notes.expiries() == {"b": 20.0}
    assert list(notes.written((0, 0), (9, 0), 9)) == ["c", "b", "d"]
