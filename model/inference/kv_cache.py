"""Block allocation of the paged KV cache (Kwon et al. 2023). Holds no tensors: a runtime stores keys and values.

Sequences with a common prefix share blocks. A shared block is copied before one of its sequences writes into it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DEFAULT_BLOCKS = 256
"""Cache size of a runtime: 8,192 tokens in blocks of 32. Twice as many blocks were no faster (decision 9)."""


class CacheFull(RuntimeError):
    """Raised when no block is free."""


class BlockPool:
    """All blocks of the cache: `count` blocks of `block_size` tokens each. The cache never grows beyond them."""

    def __init__(self, count: int, block_size: int) -> None:
        self.count = count
        self.block_size = block_size
        self._free = list(range(count))[::-1]
        self._users = [0] * count
        self._copies: dict[int, int] = {}
        """Source by target, since a target that was freed may be a target again before the next forward."""

    @property
    def free(self) -> int:
        """Number of blocks that no sequence uses."""
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Cache blocks needed for `tokens`."""
        return -(-tokens // self.block_size)

    def allocate(self) -> int:
        """Return a free block, which then has one user. Raises CacheFull."""
        if not self._free:
            raise CacheFull(f"all {self.count} blocks of the cache are in use")
        block = self._free.pop()
        self._users[block] = 1
        return block

    def share(self, block: int) -> None:
        """Add a user to `block`."""
        self._users[block] += 1

    def release(self, block: int) -> None:
        """Remove a user from `block`. A block without users is free."""
        self._users[block] -= 1
        if not self._users[block]:
            self._free.append(block)

    def copy_on_write(self, block: int) -> int:
        """Return a block with the contents of `block` and no other user: `block` itself where it has one user, else a
        new block, into which the runtime copies it before the next forward. Raises CacheFull."""
        if self._users[block] == 1:
            return block
        copy = self.allocate()
        self._copies[copy] = block
        self.release(block)
        return copy

    def take_copies(self) -> list[tuple[int, int]]:
        """Return and forget the (source, target) pairs of blocks to copy before the next forward."""
        copies, self._copies = self._copies, {}
        return [(source, target) for target, source in copies.items()]


@dataclass(slots=True)
class BlockTable:
    """One cached sequence: its blocks in order, the last one perhaps partly filled, and its `length` in tokens."""

    pool: BlockPool
    blocks: list[int] = field(default_factory=list)
    length: int = 0

    def grow(self, tokens: int) -> None:
        """Append room for `tokens` and add them to `length`. Raises CacheFull; earlier tokens stay valid."""
        block_size = self.pool.block_size
        if self.length % block_size:
            self.blocks[-1] = self.pool.copy_on_write(self.blocks[-1])
        while len(self.blocks) * block_size < self.length + tokens:
            self.blocks.append(self.pool.allocate())
        self.length += tokens

    def fork(self) -> BlockTable:
        """Return another sequence with the same tokens, which shares all blocks with this one."""
        for block in self.blocks:
            self.pool.share(block)
        return BlockTable(self.pool, list(self.blocks), self.length)

    def cut(self, length: int) -> None:
        """Drop all tokens after the first `length`."""
        kept_blocks = self.pool.blocks_for(length)
        for block in self.blocks[kept_blocks:]:
            self.pool.release(block)
        del self.blocks[kept_blocks:]
        self.length = min(self.length, length)

    def close(self) -> None:
        """Release all blocks."""
        self.cut(0)
