"""Which block of the KV cache holds what (paged attention, Kwon et al. 2023). No tensors here: a runtime has those.

Sequences that begin alike share blocks. A shared block is copied before one of its sequences writes into it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BLOCKS = 256
"""Of a runtime by default: 8,192 tokens in blocks of 32. Twice as many were no faster (decision 9)."""


class CacheFull(RuntimeError):
    """No block is free."""


class BlockPool:
    """`count` blocks of `tokens` tokens each: all that the cache will ever hold."""

    def __init__(self, count: int, tokens: int) -> None:
        self.count = count
        self.tokens = tokens
        self._free = list(range(count))[::-1]
        self._users = [0] * count
        self._copies: list[tuple[int, int]] = []

    @property
    def free(self) -> int:
        return len(self._free)

    def allocate(self) -> int:
        """A block of one user. Raises CacheFull."""
        if not self._free:
            raise CacheFull(f"all {self.count} blocks of the cache are in use")
        block = self._free.pop()
        self._users[block] = 1
        return block

    def share(self, block: int) -> None:
        self._users[block] += 1

    def release(self, block: int) -> None:
        self._users[block] -= 1
        if not self._users[block]:
            self._free.append(block)

    def copy_on_write(self, block: int) -> int:
        """`block`, or where others use it too a new one, into which it will be copied."""
        if self._users[block] == 1:
            return block
        new = self.allocate()
        self._copies.append((block, new))
        self.release(block)
        return new

    def take_copies(self) -> list[tuple[int, int]]:
        """(from, to) of what is to be copied before the next forward."""
        copies, self._copies = self._copies, []
        return copies


@dataclass(slots=True)
class BlockTable:
    """One sequence: its blocks in order, of which the last may be partly filled, and how many tokens it holds."""

    pool: BlockPool
    blocks: list[int] = field(default_factory=list)
    length: int = 0

    def grow(self, tokens: int) -> None:
        """Make room for `tokens` more, and count them as held. Raises CacheFull; then nothing is lost."""
        size = self.pool.tokens
        if self.length % size:
            self.blocks[-1] = self.pool.copy_on_write(self.blocks[-1])
        while len(self.blocks) * size < self.length + tokens:
            self.blocks.append(self.pool.allocate())
        self.length += tokens

    def fork(self) -> BlockTable:
        """Another sequence that has begun the same."""
        for block in self.blocks:
            self.pool.share(block)
        return BlockTable(self.pool, list(self.blocks), self.length)

    def cut(self, length: int) -> None:
        """Forget what comes after the first `length` tokens."""
        kept = -(-length // self.pool.tokens)
        for block in self.blocks[kept:]:
            self.pool.release(block)
        del self.blocks[kept:]
        self.length = min(self.length, length)

    def close(self) -> None:
        self.cut(0)
