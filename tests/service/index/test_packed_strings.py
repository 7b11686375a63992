"""PackedStrings and PackedLists: strings, and lists of them, in less memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.index.packed_strings import HashedStrings, PackedLists, PackedStrings

TEXTS = st.lists(st.text(max_size=12), max_size=20, unique=True)


def check(ids: PackedStrings, texts: list[str]) -> None:
    assert [ids[row] for row in range(len(ids))] == ids.at(np.arange(len(ids))) == texts
    assert [ids.row(text) for text in texts] == list(range(len(texts)))
    assert ids.row("none of them, since it is longer") is None
    strings = HashedStrings.of(["none of them, since it is longer", *texts])
    assert ids.rows(strings) == {text: row for row, text in enumerate(texts)}


@given(TEXTS, st.data())
def test_packed_strings_read_back_as_given(texts: list[str], data: st.DataObject) -> None:
    ids = PackedStrings.of(texts)
    check(ids, texts)
    rows = sorted(data.draw(st.sets(st.integers(0, len(texts) - 1)))) if texts else []
    check(ids.take(np.array(rows, np.int64)), [texts[row] for row in rows])
    middle = len(texts) // 2
    check(PackedStrings.joined([PackedStrings.of(texts[:middle]), PackedStrings.of(texts[middle:])]), texts)


@given(st.lists(st.lists(st.text(max_size=5), max_size=4).map(tuple), max_size=12), st.data())
def test_packed_lists_read_back_as_given(lists: list[tuple[str, ...]], data: st.DataObject) -> None:
    def check(packed: PackedLists, expected: list[tuple[str, ...]]) -> None:
        restored = PackedLists.restored("tags", packed.arrays("tags"))
        assert [restored[row] for row in range(len(expected))] == expected
        assert restored.strings() == [text for texts in expected for text in texts]

    packed = PackedLists.of(lists)
    check(packed, lists)
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1))) if lists else []
    taken = packed.take(np.array(rows, np.int64))
    check(taken, [lists[row] for row in rows])
    check(PackedLists.joined([packed, taken]), [*lists, *(lists[row] for row in rows)])


def test_row_with_equal_hashes_finds_own_string(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.index.packed_strings.hash", len, raising=False)
    check(PackedStrings.of(["ab", "cd", "", "e", "fg"]), ["ab", "cd", "", "e", "fg"])
    assert PackedStrings.of(["ab"]).row("cd") is None


def test_take_of_several_batches_returns_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.index.packed_strings.COPY_BATCH_SIZE", 3)
    texts = [f"note {number}" for number in range(20)]
    check(PackedStrings.of(texts).take(np.arange(0, 20, 2)), texts[::2])
