"""What filters ask about the rows of a segment: times as columns, all else as tags. Tags are numbers here, the same in
all segments, and sets of rows are bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import starmap
from typing import Any

import numpy as np
import numpy.typing as npt

from model.note import hashtag_key
from service.filters import Filter, attribute_text
from service.interfaces import Arrays
from service.records import StoredNote

NOWHERE = -2
"""The code of a text that no row has."""
Mask = npt.NDArray[np.bool_]
Bits = npt.NDArray[np.uint8]
"""Of the rows of a segment, eight to a number, the first one the least: whether each is in a set. FAISS reads it so."""
RowNumbers = npt.NDArray[np.int64]


class TagDictionary:
    """A number for each tag, for as long as the index lives, also when no row has it any more: some 100 bytes for each
    author, category and hashtag that ever was. Written by one thread, read by any. `attributes`: names of those that
    filters may ask about, whose values are tags too."""

    def __init__(self, attributes: Sequence[str] = (), texts: Iterable[str] = ()) -> None:
        self._attributes = attributes
        self._of: dict[str, int] = {}
        for text in texts:
            self.give(text)

    @property
    def texts(self) -> list[str]:
        """In the order of their codes, from 0 on."""
        return list(self._of)

    def give(self, text: str) -> int:
        return self._of.setdefault(text, len(self._of))

    def find(self, text: str) -> int:
        return self._of.get(text, NOWHERE)

    def tags_of(self, stored: StoredNote) -> frozenset[int]:
        told = ((name, attribute_text(stored.note.attributes.get(name))) for name in self._attributes)
        values = [_attribute_tag(name, value) for name, value in told if value is not None]
        own = _category_tag(stored.category), _author_tag(stored.note.author)
        return frozenset(map(self.give, [*map(_hashtag_tag, stored.hashtags), *values, *filter(None, own)]))

    def asked(self, where: Filter) -> CompiledFilter:
        attributes = starmap(_attribute_tag, where.attributes)
        own = filter(None, [_category_tag(where.category), _author_tag(where.author)])
        return CompiledFilter(
            where.created_after,
            where.created_before,
            self._find_all(map(_hashtag_tag, where.hashtags)),
            self._find_all([*own, *map(_hashtag_tag, where.all_hashtags), *attributes]),
            where.exclude,
            where.exact,
            where.narrows,
        )

    def _find_all(self, tags: Iterable[str]) -> tuple[int, ...]:
        return tuple({self.find(tag) for tag in tags})


def _hashtag_tag(hashtag: str) -> str:
    return f"#{hashtag_key(hashtag)}"


def _attribute_tag(name: str, value: str) -> str:
    return f"@{name}:{value}"


def _category_tag(category: str | None) -> str | None:
    return None if category is None else f"c{category}"


def _author_tag(author: str | None) -> str | None:
    return None if author is None else f"a{author}"


@dataclass(frozen=True, slots=True)
class CompiledFilter:
    """A Filter in codes. `tags`: any of them, () for whatever; `all_tags`: each of them, also category and author."""

    created_after: float | None
    created_before: float | None
    tags: tuple[int, ...]
    all_tags: tuple[int, ...]
    exclude: frozenset[str]
    exact: bool
    narrows: bool


@dataclass(frozen=True, slots=True)
class Columns:
    """(rows,) each. `expires` is infinite where a note does not expire."""

    created: npt.NDArray[np.float64]
    expires: npt.NDArray[np.float64]

    @classmethod
    def empty(cls, rows: int) -> Columns:
        return cls(*np.zeros((2, rows), np.float64))

    @classmethod
    def joined(cls, parts: Iterable[Columns]) -> Columns:
        return cls(*(np.concatenate(columns) for columns in zip(*(part.all for part in parts), strict=True)))

    @classmethod
    def of(cls, arrays: Arrays) -> Columns:
        """Those that `arrays` gave."""
        return cls(*(arrays[column.name] for column in fields(cls)))

    def arrays(self) -> Arrays:
        """By their names."""
        return {column.name: values for column, values in zip(fields(self), self.all, strict=True)}

    @property
    def all(self) -> tuple[npt.NDArray[Any], ...]:
        return self.created, self.expires

    def __getitem__(self, rows: slice | RowNumbers) -> Columns:
        return Columns(*(column[rows] for column in self.all))

    def describe(self, row: int, stored: StoredNote) -> None:
        self.created[row] = stored.note.created_at or 0.0
        self.expires[row] = np.inf if stored.note.expires_at is None else stored.note.expires_at

    def accepted(self, asked: CompiledFilter) -> Iterator[Mask]:
        """By each of the times that are asked for: the rows that have it."""
        if asked.created_after is not None:
            yield self.created > asked.created_after
        if asked.created_before is not None:
            yield self.created < asked.created_before


def packed_bits(mask: Mask) -> Bits:
    return np.packbits(mask, bitorder="little")


def rows_of(bits: Bits) -> RowNumbers:
    """In rising order. Few rows of many are the rule, so that only their bytes are unpacked."""
    some = np.flatnonzero(bits != 0)
    within = np.unpackbits(bits[some], bitorder="little").view(np.bool_)
    rows: RowNumbers = (8 * some[:, None] + np.arange(8)).reshape(-1)[within]
    return rows


def count_of(bits: Bits) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def has(bits: Bits, row: int) -> bool:
    """Also of a row behind the last one: it is in no set."""
    return row >> 3 < len(bits) and bool(bits[row >> 3] >> (row & 7) & 1)
