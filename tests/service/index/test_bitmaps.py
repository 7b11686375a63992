"""Bitmaps of row numbers against the masks that they are packed from."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.index.bitmaps import count_of, has, mask_of, packed_bits, rows_of


@given(st.lists(st.booleans(), max_size=70))
def test_packed_bits_answer_as_their_mask(members: list[bool]) -> None:
    mask = np.array(members, np.bool_)
    bits = packed_bits(mask)
    assert rows_of(bits).tolist() == np.flatnonzero(mask).tolist()
    assert count_of(bits) == sum(members)
    assert [has(bits, row) for row in range(len(members) + 20)] == members + [False] * 20
    assert mask_of(bits, np.arange(len(members) + 20)).tolist() == members + [False] * 20
