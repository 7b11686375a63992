"""HashtagTrie: a Vocabulary as a trie of tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Any

END = None
"""Below the last token of a hashtag: how many spellings these tokens have."""


class HashtagTrie:
    """See note.Vocabulary. Each spelling is held as long as a note has it. `tokenise`: hashtags -> their ids."""

    def __init__(self, tokenise: Callable[[Sequence[str]], Sequence[Sequence[int]]]) -> None:
        self._tokenise = tokenise
        self._notes: Counter[str] = Counter()
        self._root: dict[int | None, Any] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        """Different spellings."""
        return len(self._notes)

    def __contains__(self, hashtag: str) -> bool:
        return hashtag in self._notes

    def add(self, hashtags: Iterable[str]) -> None:
        """See Vocabulary."""
        with self._lock:
            added = Counter(hashtags)
            new = sorted(hashtag for hashtag in added if hashtag not in self._notes)
            self._notes.update(added)
            for ids in self._tokenise(new) if new else ():
                node = self._root
                for token in ids:
                    node = node.setdefault(token, {})
                node[END] = node.get(END, 0) + 1

    def remove(self, hashtags: Iterable[str]) -> None:
        """See Vocabulary."""
        with self._lock:
            removed = list(hashtags)
            self._notes.subtract(removed)
            gone = sorted({hashtag for hashtag in removed if self._notes[hashtag] <= 0})
            for hashtag, ids in zip(gone, self._tokenise(gone) if gone else (), strict=True):
                del self._notes[hashtag]
                self._prune([*ids, END])

    def after(self, ids: Sequence[int]) -> tuple[int, ...]:
        """See Vocabulary."""
        with self._lock:
            return tuple(token for token in self._below(ids) if token is not END)

    def holds(self, ids: Sequence[int]) -> bool:
        """See Vocabulary."""
        with self._lock:
            return END in self._below(ids)

    def _below(self, ids: Sequence[int]) -> dict[int | None, Any]:
        node = self._root
        for token in ids:
            node = node.get(token, {})
        return node

    def _prune(self, path: Sequence[int | None]) -> None:
        """Take out the end of the path, and what of it leads nowhere then."""
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
