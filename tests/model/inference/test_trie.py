"""Trie: token sequences merged by their prefixes."""

from __future__ import annotations

import itertools

import pytest

from model.inference.trie import Trie, TrieTooLarge


def test_trie_holds_each_shared_prefix_once() -> None:
    trie = Trie.build([[1, 2, 9], [1, 3, 9], [1, 9], [4, 2, 9]])
    assert trie.tokens == (1, 2, 9, 3, 9, 9, 4, 2, 9)
    assert trie.parents == (-1, 0, 1, 0, 3, 0, -1, 6, 7)
    assert trie.paths == ((0, 1, 2), (0, 3, 4), (0, 5), (6, 7, 8))
    assert trie.inner == (0, 1, 3, 6, 7)


def test_trie_beyond_its_bound_is_refused_at_the_sequence_that_exceeds_it() -> None:
    read = iter([[1, 2], [1, 3], [4], [5]])
    with pytest.raises(TrieTooLarge):
        Trie.build(read, max_nodes=3)
    assert list(read) == [[5]]
    assert Trie.build([[1, 2], [1, 3], [4]], max_nodes=4).tokens == (1, 2, 3, 4)


@pytest.mark.parametrize("max_inner", range(1, 8))
def test_split_trie_has_all_sequences_in_order_and_few_inner_nodes_in_each_part(max_inner: int) -> None:
    sequences = ((1, 2, 9), (1, 3, 9), (1, 9), (4, 2, 6, 9), (4, 9), (5, 9))
    parts = Trie.build(sequences).split(max_inner)
    assert tuple(sequence for part in parts for sequence in part.sequences) == sequences
    assert all(len(part.inner) <= max_inner or len(part.sequences) == 1 for part in parts)
    for part, after in itertools.pairwise(parts):
        assert len(Trie.build([*part.sequences, after.sequences[0]]).inner) > max_inner


def test_trie_within_the_bound_is_split_into_itself() -> None:
    trie = Trie.build([[1, 2, 9], [1, 3, 9], [4, 9]])
    assert trie.split(len(trie.inner)) == (trie,)
    assert len(trie.split(len(trie.inner) - 1)) == 2
