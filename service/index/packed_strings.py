"""Ids: many texts in one piece of memory, found by their hashes. A Python object for each would weigh more than its
vector's bytes, and making a million of them would hold up every other thread."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from service.interfaces import Arrays

CHUNK = 65_536
"""Texts that are copied at a time."""
Integers = npt.NDArray[np.int64]


class PackedStrings:
    """`text`: all of them in UTF-8, one behind the other; `ends` (rows + 1,), from 0 on; `hashes` (rows,)."""

    def __init__(self, text: npt.NDArray[np.uint8], ends: Integers, hashes: Integers) -> None:
        self._text = text
        self._memory = text.data  # of which a piece takes half as long as of an array
        self._ends = ends
        self._by_hash = np.argsort(hashes, kind="stable").astype(np.int32)
        self._sorted_hashes = hashes[self._by_hash]

    @classmethod
    def of(cls, texts: Sequence[str]) -> PackedStrings:
        return cls.restored({**packed("ids", texts), "hashes": np.array([_hash(text) for text in texts], np.int64)})

    @classmethod
    def restored(cls, arrays: Arrays) -> PackedStrings:
        """From what `arrays` gave."""
        return cls(arrays["ids"], arrays["ids_ends"], arrays["hashes"])

    def arrays(self) -> Arrays:
        """What it is made of."""
        return {"ids": self._text, "ids_ends": self._ends, "hashes": self._hashes}

    @classmethod
    def joined(cls, parts: Sequence[PackedStrings]) -> PackedStrings:
        lengths = np.concatenate([np.diff(part._ends) for part in parts])
        text = np.concatenate([part._text for part in parts])
        return cls(text, _ends(lengths), np.concatenate([part._hashes for part in parts]))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        return str(self._memory[self._ends.item(row) : self._ends.item(row + 1)], "utf-8")

    def row(self, text: str) -> int | None:
        wanted = _hash(text)
        for place in range(int(np.searchsorted(self._sorted_hashes, wanted)), len(self)):
            if self._sorted_hashes[place] != wanted:
                break
            if self[row := int(self._by_hash[place])] == text:
                return row
        return None

    def take(self, rows: Integers) -> PackedStrings:
        """Those of these rows, in their order."""
        if np.array_equal(rows, np.arange(len(self))):
            return self
        lengths = np.diff(self._ends)[rows]
        parts = [np.zeros(0, np.uint8)]
        for begin in range(0, len(rows), CHUNK):
            some = rows[begin : begin + CHUNK]
            ends = _ends(lengths[begin : begin + CHUNK])
            shift = np.repeat(self._ends[some] - ends[:-1], np.diff(ends))
            parts.append(self._text[shift + np.arange(ends[-1])])
        return PackedStrings(np.concatenate(parts), _ends(lengths), self._hashes[rows])

    @property
    def _hashes(self) -> Integers:
        """(rows,)"""
        hashes = np.empty_like(self._sorted_hashes)
        hashes[self._by_hash] = self._sorted_hashes
        return hashes


def packed(name: str, texts: Iterable[str]) -> Arrays:
    """All in UTF-8, one behind the other, and where each ends, from 0 on: arrays of a snapshot, called after `name`."""
    encoded = [text.encode() for text in texts]
    joined = np.frombuffer(b"".join(encoded), np.uint8)
    return {name: joined, f"{name}_ends": np.cumsum([0, *map(len, encoded)], dtype=np.int64)}


def unpacked(name: str, arrays: Arrays) -> list[str]:
    """The texts that `packed` was given."""
    joined, places = arrays[name].tobytes(), arrays[f"{name}_ends"].tolist()
    if joined.isascii():  # one object for each is made, not two
        text = joined.decode()
        return [text[begin:end] for begin, end in pairwise(places)]
    return [joined[begin:end].decode() for begin, end in pairwise(places)]


def _hash(text: str) -> int:
    """The same in every process: snapshots hold them."""
    return zlib.crc32(text.encode())


def _ends(lengths: Integers) -> Integers:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
