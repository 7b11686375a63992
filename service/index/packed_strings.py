"""PackedStrings and PackedLists: many strings in one piece of memory. Single strings are looked up by hash.

The hashes are Python's own, whose key differs in each process, so that no caller can choose ids that collide: looking
up one of many colliding ids would compare it with all of them. Snapshots therefore do not have the hashes: at start-up
they are computed from the strings, which exist as Python objects for that time, 0.2 s for a million.

A Python object for each id would take more memory than the vector beside it, and making a million of them would hold up
every other thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from service.index.backend import Arrays

COPY_BATCH_SIZE = 65_536
"""Strings that are copied at a time: bounds the memory for their byte positions."""
Integers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HashedStrings:
    """Strings to look up, sorted by their hashes (n,), so that a table of hashes is read from front to back."""

    texts: Sequence[str]
    hashes: Hashes

    @classmethod
    def of(cls, texts: Iterable[str]) -> HashedStrings:
        """Hash some strings."""
        unsorted = list(texts)
        hashes = np.fromiter(map(hash, unsorted), np.int64, len(unsorted))
        order = np.argsort(hashes)
        return cls([unsorted[place] for place in order.tolist()], hashes[order])


class PackedStrings:
    """An immutable sequence of strings. `text` is all of them in UTF-8, one after the other; string i ends before byte
    `ends[i + 1]`, where `ends` (rows + 1,) begins with 0; `hashes` (rows,) are the strings' hashes."""

    def __init__(self, text: npt.NDArray[np.uint8], ends: Integers, hashes: Hashes) -> None:
        self._text = text
        self._memory = text.data  # a slice of it takes half as long as a slice of the array
        self._ends = ends
        self._by_hash = np.argsort(hashes, kind="stable").astype(np.int32)
        self._sorted_hashes: Hashes = hashes[self._by_hash]

    @classmethod
    def of(cls, texts: Sequence[str]) -> PackedStrings:
        """Pack some strings."""
        arrays = packed("ids", texts)
        return cls(arrays["ids"], arrays["ids_ends"], np.fromiter(map(hash, texts), np.int64, len(texts)))

    @classmethod
    def restored(cls, arrays: Arrays) -> PackedStrings:
        """Return the strings that these `arrays` were taken from."""
        texts = unpacked("ids", arrays)
        return cls(arrays["ids"], arrays["ids_ends"], np.fromiter(map(hash, texts), np.int64, len(texts)))

    def arrays(self) -> Arrays:
        """Return the strings by the names of their arrays in a snapshot."""
        return {"ids": self._text, "ids_ends": self._ends}

    @classmethod
    def joined(cls, parts: Sequence[PackedStrings]) -> PackedStrings:
        """Return the strings of all parts, one part after the other."""
        lengths = np.concatenate([np.diff(part._ends) for part in parts])
        text = np.concatenate([part._text for part in parts])
        return cls(text, _ends(lengths), np.concatenate([part._hashes for part in parts]))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        return str(self._memory[self._ends.item(row) : self._ends.item(row + 1)], "utf-8")

    def at(self, rows: Integers) -> list[str]:
        """Return the strings of some rows, in their order."""
        begins, ends = self._ends[rows].tolist(), self._ends[rows + 1].tolist()
        return [str(self._memory[begin:end], "utf-8") for begin, end in zip(begins, ends, strict=True)]

    def row(self, text: str) -> int | None:
        """Return the row of a string, None where it is missing."""
        text_hash = hash(text)
        place = int(self._sorted_hashes.searchsorted(np.int64(text_hash)))
        while place < len(self) and self._sorted_hashes.item(place) == text_hash:
            row = self._by_hash.item(place)
            if self[row] == text:
                return row
            place += 1
        return None

    def rows(self, strings: HashedStrings) -> dict[str, int]:
        """Return the row of each string that is present, by the string."""
        if not len(self):
            return {}
        places = np.searchsorted(self._sorted_hashes, strings.hashes)
        places[places == len(self)] = 0
        likely = np.flatnonzero(self._sorted_hashes[places] == strings.hashes)
        candidates = self._by_hash[places[likely]]
        begins, ends = self._ends[candidates].tolist(), self._ends[candidates + 1].tolist()
        rows: dict[str, int] = {}
        for place, row, begin, end in zip(likely.tolist(), candidates.tolist(), begins, ends, strict=True):
            text = strings.texts[place]
            row_of_text = row if str(self._memory[begin:end], "utf-8") == text else self.row(text)
            if row_of_text is not None:
                rows[text] = row_of_text
        return rows

    def take(self, rows: Integers) -> PackedStrings:
        """Return the strings of some rows, in their order."""
        if np.array_equal(rows, np.arange(len(self))):
            return self
        return PackedStrings(*_take(self._text, self._ends, rows), self._hashes[rows])

    @property
    def _hashes(self) -> Hashes:
        """Hashes by row."""
        hashes = np.empty(len(self), np.int64)
        hashes[self._by_hash] = self._sorted_hashes
        return hashes


class PackedLists:
    """An immutable list of strings for each row. `text` is all strings in UTF-8, one after the other; string i ends
    before byte `text_ends[i + 1]`, and the list of row j before string `ends[j + 1]`. Both ends begin with 0."""

    def __init__(self, text: npt.NDArray[np.uint8], text_ends: Integers, ends: Integers) -> None:
        self._text = text
        self._text_ends = text_ends
        self._ends = ends

    @classmethod
    def of(cls, lists: Sequence[Sequence[str]]) -> PackedLists:
        """Pack some lists."""
        arrays = packed("text", [text for texts in lists for text in texts])
        return cls(arrays["text"], arrays["text_ends"], _ends(np.fromiter(map(len, lists), np.int64, len(lists))))

    @classmethod
    def restored(cls, name: str, arrays: Arrays) -> PackedLists:
        """Return the lists that these `arrays` were taken from."""
        return cls(arrays[name], arrays[f"{name}_ends"], arrays[f"{name}_list_ends"])

    def arrays(self, name: str) -> Arrays:
        """Return the lists as three arrays of a snapshot, whose names begin with `name`."""
        return {name: self._text, f"{name}_ends": self._text_ends, f"{name}_list_ends": self._ends}

    @classmethod
    def joined(cls, parts: Sequence[PackedLists]) -> PackedLists:
        """Return the lists of all parts, one part after the other."""
        text = np.concatenate([part._text for part in parts])
        text_lengths = np.concatenate([np.diff(part._text_ends) for part in parts])
        return cls(text, _ends(text_lengths), _ends(np.concatenate([np.diff(part._ends) for part in parts])))

    def __getitem__(self, row: int) -> tuple[str, ...]:
        ends = self._text_ends[self._ends.item(row) : self._ends.item(row + 1) + 1].tolist()
        return tuple(str(self._text.data[begin:end], "utf-8") for begin, end in pairwise(ends))

    def take(self, rows: Integers) -> PackedLists:
        """Return the lists of some rows, in their order."""
        strings = _runs(self._ends[rows], np.diff(self._ends)[rows])
        return PackedLists(*_take(self._text, self._text_ends, strings), _ends(np.diff(self._ends)[rows]))

    def strings(self) -> list[str]:
        """Return the strings of all lists."""
        return unpacked("text", {"text": self._text, "text_ends": self._text_ends})


def packed(name: str, texts: Iterable[str]) -> Arrays:
    """Return strings as two arrays of a snapshot: `name`, all of them in UTF-8, and `<name>_ends`, where each ends."""
    encoded = [text.encode() for text in texts]
    joined = np.frombuffer(b"".join(encoded), np.uint8)
    return {name: joined, f"{name}_ends": np.cumsum([0, *map(len, encoded)], dtype=np.int64)}


def unpacked(name: str, arrays: Arrays) -> list[str]:
    """Return the strings that `packed` was given."""
    joined, ends = arrays[name].tobytes(), arrays[f"{name}_ends"].tolist()
    if joined.isascii():  # decoded at once: one object for each string is made, not two
        text = joined.decode()
        return [text[begin:end] for begin, end in pairwise(ends)]
    return [joined[begin:end].decode() for begin, end in pairwise(ends)]


def _ends(lengths: Integers) -> Integers:
    """Return the end offsets of pieces of these lengths, after a leading 0."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _runs(begins: Integers, lengths: Integers) -> Integers:
    """Return the integers of several ranges, one range after the other, given each range's first integer and length."""
    ends = _ends(lengths)
    return np.repeat(begins - ends[:-1], lengths) + np.arange(ends[-1])


def _take(text: npt.NDArray[np.uint8], ends: Integers, rows: Integers) -> tuple[npt.NDArray[np.uint8], Integers]:
    """Return the strings at some rows of `text`, in their order, and their end offsets. `ends`: the end offsets of the
    strings of `text`."""
    lengths = np.diff(ends)[rows]
    parts = [np.zeros(0, np.uint8)]
    for begin in range(0, len(rows), COPY_BATCH_SIZE):
        batch = slice(begin, begin + COPY_BATCH_SIZE)
        parts.append(text[_runs(ends[rows[batch]], lengths[batch])])
    return np.concatenate(parts), _ends(lengths)
