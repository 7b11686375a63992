"""Trie: token sequences merged by their prefixes."""

from __future__ import annotations

from model.inference.trie import Trie


def test_trie_holds_each_shared_prefix_once() -> None:
    trie = Trie.build([[1, 2, 9], [1, 3, 9], [1, 9], [4, 2, 9]])
    assert trie.tokens == (1, 2, 9, 3, 9, 9, 4, 2, 9)
    assert trie.parents == (-1, 0, 1, 0, 3, 0, -1, 6, 7)
    assert trie.paths == ((0, 1, 2), (0, 3, 4), (0, 5), (6, 7, 8))
    assert trie.inner == (0, 1, 3, 6, 7)
