"""Trie: token sequences merged by their prefixes."""

from __future__ import annotations

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
