"""KV cache blocks: bounded, shared by sequences that begin alike, never written into by another sequence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.inference.kv_cache import BlockPool, BlockTable, CacheFull


def test_sequence_takes_blocks_for_its_tokens_and_frees_them() -> None:
    pool = BlockPool(4, block_size=8)
    table = BlockTable(pool)
    for tokens, blocks in ((5, 1), (3, 1), (1, 2), (16, 4)):
        table.grow(tokens)
        assert len(table.blocks) == blocks
    assert pool.free == 0
    table.cut(9)
    assert (table.length, pool.free) == (9, 2)
    table.close()
    assert (table.length, pool.free) == (0, 4)


def test_growth_beyond_the_pool_is_refused() -> None:
    table = BlockTable(BlockPool(1, block_size=8))
    with pytest.raises(CacheFull, match="all 1 blocks"):
        table.grow(9)


def test_forks_share_the_blocks_of_their_common_beginning() -> None:
    pool = BlockPool(8, block_size=4)
    table = BlockTable(pool)
    table.grow(8)
    forks = [table.fork() for _ in range(5)]
    assert pool.free == 6
    for fork in forks:
        fork.close()
    table.close()
    assert pool.free == 8


def test_block_that_was_freed_before_the_copies_is_the_target_of_one_copy() -> None:
    pool = BlockPool(8, block_size=4)
    first, second = BlockTable(pool), BlockTable(pool)
    first.grow(2)
    second.grow(2)
    for table in (first, second):
        fork = table.fork()
        fork.grow(1)
        copy = fork.blocks[-1]
        fork.close()
    assert pool.take_copies() == [(second.blocks[-1], copy)]


@given(st.lists(st.tuples(st.sampled_from(["grow", "fork", "cut", "close"]), st.integers(0, 9)), max_size=40))
def test_sequences_read_back_what_was_written_into_them(actions: list[tuple[str, int]]) -> None:
    """The reference is a separate list of tokens for each sequence, without sharing."""
    pool = BlockPool(200, block_size=4)
    slots: dict[tuple[int, int], int] = {}
    sequences = [(BlockTable(pool), list[int]())]
    written = 0
    for action, number in actions:
        table, tokens = sequences[number % len(sequences)]
        if action == "grow":
            start = table.length
            table.grow(number)
            for source, target in pool.take_copies():
                slots |= {(target, i): slots[source, i] for i in range(4) if (source, i) in slots}
            for position in range(start, table.length):
                written += 1
                tokens.append(written)
                slots[table.blocks[position // 4], position % 4] = written
        elif action == "fork":
            sequences.append((table.fork(), list(tokens)))
        elif action == "cut":
            table.cut(number)
            del tokens[number:]
        elif len(sequences) > 1:
            table.close()
            sequences.remove((table, tokens))
        for held, expected in sequences:
            assert [slots[held.blocks[i // 4], i % 4] for i in range(held.length)] == expected
    for table, _ in sequences:
        table.close()
    assert pool.free == 200
