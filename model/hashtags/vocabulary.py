"""HashtagTrie: the hashtags of stored notes, as a trie of their tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from threading import Lock
from typing import Any

from model.note import hashtag_key

END = None
"""Key of the entry below the last token of a hashtag; its value is the number of spellings that have these tokens."""


def most_frequent(spellings: Iterable[str], counts: Counter[str]) -> str:
    """Return the spelling with the highest count; ties go to the last by code points."""
    return max(spellings, key=lambda spelling: (counts[spelling], spelling))


class HashtagTrie:
    """A `generation.Vocabulary`. It has each spelling for as long as a note has it.

    `tokenize` returns the token ids of each hashtag, as the model would write it.
    """

    def __init__(self, tokenize: Callable[[Sequence[str]], Sequence[Sequence[int]]]) -> None:
        self._tokenize = tokenize
        self._note_counts: Counter[str] = Counter()
        self._spellings: dict[str, tuple[str, ...]] = {}
        """Spellings of each hashtag by its `hashtag_key`."""
        self._root: dict[int | None, Any] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        """Number of different spellings."""
        return len(self._note_counts)

    def __contains__(self, hashtag: str) -> bool:
        return hashtag in self._note_counts

    def add(self, hashtags: Iterable[str]) -> None:
        with self._lock:
            added = Counter(hashtags)
            new = sorted(hashtag for hashtag in added if hashtag not in self._note_counts)
            self._note_counts.update(added)
            for hashtag, ids in zip(new, self._tokenize(new) if new else (), strict=True):
                key = hashtag_key(hashtag)
                self._spellings[key] = (*self._spellings.get(key, ()), hashtag)
                node = self._root
                for token in ids:
                    node = node.setdefault(token, {})
                node[END] = node.get(END, 0) + 1

    def remove(self, hashtags: Iterable[str]) -> None:
        with self._lock:
            removed = list(hashtags)
            self._note_counts.subtract(removed)
            unused = sorted({hashtag for hashtag in removed if self._note_counts[hashtag] <= 0})
            for hashtag, ids in zip(unused, self._tokenize(unused) if unused else (), strict=True):
                del self._note_counts[hashtag]
                key = hashtag_key(hashtag)
                self._spellings[key] = tuple(other for other in self._spellings[key] if other != hashtag)
                if not self._spellings[key]:
                    del self._spellings[key]
                self._prune([*ids, END])

    def common_spelling(self, hashtag: str) -> str:
        key = hashtag_key(hashtag)
        with self._lock:
            return most_frequent(self._spellings.get(key, (hashtag,)), self._note_counts)

    def uses(self, keys: Collection[str], own: Collection[str] = ()) -> dict[str, tuple[str, int]]:
        own_keys, counts = set(map(hashtag_key, own)), self._note_counts
        uses = {}
        with self._lock:
            for key in keys:
                if spellings := self._spellings.get(key):
                    notes = sum(counts[spelling] for spelling in spellings) - (key in own_keys)
                    if notes > 0:
                        uses[key] = most_frequent(spellings, counts), notes
        return uses

    def after(self, ids: Sequence[int]) -> tuple[int, ...]:
        with self._lock:
            return tuple(token for token in self._children(ids) if token is not END)

    def holds(self, ids: Sequence[int]) -> bool:
        with self._lock:
            return END in self._children(ids)

    def _children(self, ids: Sequence[int]) -> dict[int | None, Any]:
        """Return the children of the node that `ids` lead to, by token; empty if no hashtag begins with `ids`."""
        node = self._root
        for token in ids:
            node = node.get(token, {})
        return node

    def _prune(self, path: Sequence[int | None]) -> None:
        """Remove one spelling at the end of `path`, and then all nodes of the path that lead to no hashtag."""
        nodes = [self._root]
        for token in path[:-1]:
            nodes.append(nodes[-1][token])
        if nodes[-1][END] > 1:
            nodes[-1][END] -= 1
            return
        for node, token in zip(reversed(nodes), reversed(path), strict=True):
            del node[token]
            if node:
                return
