"""The cache's blocks: bounded, shared by what begins alike, and never written by one sequence into another's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.inference.kv_cache import BlockPool, BlockTable, CacheFull


def test_a_sequence_takes_as_many_blocks_as_its_tokens_need_and_gives_them_back() -> None:
    pool = BlockPool(4, tokens=8)
    table = BlockTable(pool)
    for tokens, blocks in ((5, 1), (3, 1), (1, 2), (16, 4)):
        table.grow(tokens)
        assert len(table.blocks) == blocks
    assert pool.free == 0
    table.cut(9)
    assert (table.length, pool.free) == (9, 2)
    table.close()
    assert (table.length, pool.free) == (0, 4)


def test_more_than_there_is_is_refused() -> None:
    table = BlockTable(BlockPool(1, tokens=8))
    with pytest.raises(CacheFull, match="all 1 blocks"):
        table.grow(9)


def test_what_begins_alike_is_held_once() -> None:
    pool = BlockPool(8, tokens=4)
    table = BlockTable(pool)
    table.grow(8)
    forks = [table.fork() for _ in range(5)]
    assert pool.free == 6
    for fork in forks:
        fork.close()
    table.close()
    assert pool.free == 8


@given(st.lists(st.tuples(st.sampled_from(["grow", "fork", "cut", "close"]), st.integers(0, 9)), max_size=40))
def test_every_sequence_reads_back_what_was_written_into_it(actions: list[tuple[str, int]]) -> None:
    """Against sequences that share nothing."""
    pool = BlockPool(200, tokens=4)
    slots: dict[tuple[int, int], int] = {}
    tables = [(BlockTable(pool), list[int]())]
    written = 0
    for action, number in actions:
        table, tokens = tables[number % len(tables)]
        if action == "grow":
            start = table.length
            table.grow(number)
            for of, to in pool.take_copies():
                slots |= {(to, i): slots[of, i] for i in range(4) if (of, i) in slots}
            for place in range(start, table.length):
                written += 1
                tokens.append(written)
                slots[table.blocks[place // 4], place % 4] = written
        elif action == "fork":
            tables.append((table.fork(), list(tokens)))
        elif action == "cut":
            table.cut(number)
            del tokens[number:]
        elif len(tables) > 1:
            table.close()
            tables.remove((table, tokens))
        for each, held in tables:
            assert [slots[each.blocks[i // 4], i % 4] for i in range(each.length)] == held
    for each, _ in tables:
        each.close()
    assert pool.free == 200
