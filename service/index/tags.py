"""Fields of a segment's rows that filters test: times and log positions as columns, and everything else as tags.

Hashtags, category, author and declared attributes are tags. A tag has a code, the same in all segments of an index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, reduce
from itertools import starmap
from typing import Any

import numpy as np
import numpy.typing as npt

from model.note import hashtag_key
from service.filters import Clause, Filter, Has, HasAttribute, TagClause, TimeRange, attribute_text, tag_clauses
from service.index.attribute_values import AttributeValues
from service.index.backend import Arrays
from service.index.bitmaps import Bits, Mask, RowNumbers, packed_bits
from service.index.packed_strings import HashedStrings
from service.records import PositionKey, StoredNote, position_key

FIELD_PREFIXES = {"hashtag": "#", "category": "c", "author": "a"}
"""Prefixes of tags, by field. The tags of attributes begin with @."""
NAME_PREFIXES = FIELD_PREFIXES["category"], FIELD_PREFIXES["author"]
"""Prefixes of the tags of categories and authors. Their names can be looked up by their codes, since caps count notes
by name."""
NO_TAG, UNKNOWN_TAG = -1, -2
"""Codes of the category or author that a note does not have, and of a tag that no row has ever had."""
CACHED_TAG_SHARE, MAX_CACHED_TAGS = 0.005, 128
"""Share of a segment's rows above which the bitmap of a tag is cached, and maximum number of cached bitmaps per
segment."""
MAX_INT = 2**63 - 1
"""Largest number in a column of integers: larger ones, of a damaged position, are clipped."""
FEW_TAGS = 8
"""Maximum number of tags whose bitmaps, which may be cached, are combined. The rows of more are put into one new
bitmap."""
TagCodes = npt.NDArray[np.int32]
TagPairs = tuple[TagCodes, RowNumbers]
"""Tag codes (P,) and rows (P,): row `rows[i]` has tag `codes[i]`."""


class TagDictionary:
    """The code of each tag: about 100 bytes for each author, category and hashtag. Written by one thread, read by any.

    Tags that no row has any more are forgotten from time to time. Their codes are never reused, so that a running
    search cannot take one tag for another. `attributes` names those whose values are tags; `codes`: the tags of a
    snapshot.
    """

    def __init__(self, attributes: Sequence[str] = (), codes: Mapping[str, int] | None = None) -> None:
        self._values = {name: AttributeValues() for name in attributes}
        self._codes = dict(codes or {})
        self.name_of = self._names()
        """Names of categories and authors by their codes. A new dictionary replaces it when tags are forgotten."""
        self.forgettings = 0
        """Number of times that tags were forgotten; incremented before they are."""
        self._next = max(self._codes.values(), default=-1) + 1
        for name, values in self._values.items():
            prefix = _attribute_tag(name, "")
            for text, code in self._codes.items():
                if text.startswith(prefix):
                    values.add(text.removeprefix(prefix), code)

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def codes(self) -> dict[str, int]:
        """A copy of the code of each tag."""
        return dict(self._codes)

    def forget_unused(self, used_codes: Iterable[TagCodes]) -> None:
        """Forget the tags whose codes are in none of the arrays: those that no living row has."""
        used = np.zeros(self._next, np.bool_)
        for codes in used_codes:
            used[codes] = True
        if np.count_nonzero(used) < len(self._codes):
            self.forgettings += 1
            self._codes = {text: code for text, code in self._codes.items() if used[code]}
            self.name_of = self._names()
            for values in self._values.values():
                values.forget_unused(used)

    def add_tags_of(self, stored: StoredNote) -> frozenset[int]:
        """Return the codes of a note's tags; a new tag gets the next code."""
        note = stored.note
        texts = [_hashtag_tag(hashtag) for hashtag in stored.hashtags]
        if stored.category is not None:
            texts.append(_category_tag(stored.category))
        if note.author is not None:
            texts.append(_author_tag(note.author))
        tags = set(map(self._add, texts))
        for name in self._values:
            value = attribute_text(note.attributes.get(name))
            if value is not None:
                tags.add(self._add_attribute(name, value))
        return frozenset(tags)

    def category_and_author(self, stored: StoredNote) -> tuple[int, int]:
        """Return the codes of a note's category and author, which have been added; NO_TAG for one that it lacks."""
        category, author = stored.category, stored.note.author
        return (
            NO_TAG if category is None else self._codes[_category_tag(category)],
            NO_TAG if author is None else self._codes[_author_tag(author)],
        )

    def _names(self) -> dict[int, str]:
        return {code: text[1:] for text, code in self._codes.items() if text.startswith(NAME_PREFIXES)}

    def compile(self, where: Filter) -> CompiledFilter:
        """Return the filter with codes in place of texts."""
        required = [_hashtag_tag(hashtag) for hashtag in where.all_hashtags]
        required += starmap(_attribute_tag, where.attributes)
        if where.category is not None:
            required.append(_category_tag(where.category))
        if where.author is not None:
            required.append(_author_tag(where.author))
        return CompiledFilter(
            created_after=where.created_after,
            created_before=where.created_before,
            any_tags=self._find_all(map(_hashtag_tag, where.hashtags)),
            all_tags=self._find_all(required),
            exclude=where.exclude,
            exact=where.exact,
            narrows=where.narrows,
            clause=where.clause,
            clause_tags={part: self._find_clause(part) for part in tag_clauses(where.clause)} if where.clause else {},
        )

    def _add(self, text: str) -> int:
        code = self._codes.get(text)
        if code is None:
            code = self._codes[text] = self._next
            if text.startswith(NAME_PREFIXES):
                self.name_of[code] = text[1:]
            self._next += 1
        return code

    def _add_attribute(self, name: str, value: str) -> int:
        new = self._next
        code = self._add(_attribute_tag(name, value))
        if code == new:
            self._values[name].add(value, code)
        return code

    def _find_clause(self, clause: TagClause) -> tuple[int, ...]:
        """Return the codes of the tags of which a row needs one to pass a condition."""
        if isinstance(clause, Has):
            return self._find_all(FIELD_PREFIXES[clause.field] + value for value in clause.values)
        if isinstance(clause, HasAttribute):
            return self._find_all(_attribute_tag(clause.name, value) for value in clause.values)
        return self._values[clause.name].codes_in(clause) if clause.name in self._values else ()

    def _find_all(self, texts: Iterable[str]) -> tuple[int, ...]:
        return tuple({self._codes.get(text, UNKNOWN_TAG) for text in texts})


def _hashtag_tag(hashtag: str) -> str:
    return FIELD_PREFIXES["hashtag"] + hashtag_key(hashtag)


def _attribute_tag(name: str, value: str) -> str:
    return f"@{name}:{value}"


def _category_tag(category: str) -> str:
    return FIELD_PREFIXES["category"] + category


def _author_tag(author: str) -> str:
    return FIELD_PREFIXES["author"] + author


@dataclass(frozen=True)
class CompiledFilter:
    """A Filter in tag codes. A row needs one of `any_tags`, unless there are none, and all of `all_tags`; category,
    author and attributes are among the latter. It also has to pass `clause`; `clause_tags` has, for each condition
    of it on tags, the codes of which a row needs one."""

    created_after: float | None
    created_before: float | None
    any_tags: tuple[int, ...]
    all_tags: tuple[int, ...]
    exclude: frozenset[str]
    exact: bool
    narrows: bool
    clause: Clause | None
    clause_tags: Mapping[TagClause, tuple[int, ...]]

    @cached_property
    def hashed_exclude(self) -> HashedStrings:
        """The ids of `exclude`, hashed once for all segments."""
        return HashedStrings.of(self.exclude)


@dataclass(frozen=True, slots=True)
class Columns:
    """Fields of each row, shape (rows,). Times are in seconds since the epoch: `created` is 0 where a note has none,
    `expires` is infinite where it does not expire. `written_ms` and `written_sequence` are the log position of its last
    write. `category` and `author` are the codes of these tags, NO_TAG for none."""

    created: npt.NDArray[np.float64]
    expires: npt.NDArray[np.float64]
    written_ms: npt.NDArray[np.int64]
    written_sequence: npt.NDArray[np.int64]
    category: TagCodes
    author: TagCodes

    @classmethod
    def empty(cls, rows: int) -> Columns:
        """Return columns of zeros."""
        times, positions, tags = np.zeros((2, rows)), np.zeros((2, rows), np.int64), np.zeros((2, rows), np.int32)
        return cls(*times, *positions, *tags)

    @classmethod
    def joined(cls, parts: Iterable[Columns]) -> Columns:
        """Return the rows of all parts, one part after the other."""
        return cls(*(np.concatenate(columns) for columns in zip(*(part.all for part in parts), strict=True)))

    @classmethod
    def of(cls, arrays: Arrays) -> Columns:
        """Return the columns that these `arrays` were taken from."""
        return cls(*(arrays[column.name] for column in fields(cls)))

    def arrays(self) -> Arrays:
        """Return the columns by their names."""
        return {column.name: values for column, values in zip(fields(self), self.all, strict=True)}

    @property
    def all(self) -> tuple[npt.NDArray[Any], ...]:
        return self.created, self.expires, self.written_ms, self.written_sequence, self.category, self.author

    def copy(self) -> Columns:
        """Return the same rows in arrays of their own."""
        return Columns(*(column.copy() for column in self.all))

    def __getitem__(self, rows: slice | RowNumbers) -> Columns:
        return Columns(*(column[rows] for column in self.all))

    def write(self, row: int, stored: StoredNote, category: int, author: int) -> None:
        """Set the fields of a row to those of a note. `category`, `author`: the codes of its tags."""
        self.category[row], self.author[row] = category, author
        self.created[row] = stored.note.created_at or 0.0
        self.expires[row] = np.inf if stored.note.expires_at is None else stored.note.expires_at
        milliseconds, sequence = position_key(stored.position)
        self.written_ms[row], self.written_sequence[row] = min(milliseconds, MAX_INT), min(sequence, MAX_INT)

    def matching(self, compiled: CompiledFilter) -> Iterator[Mask]:
        """Yield, for each bound that the filter sets on the time of creation, the rows within it."""
        if compiled.created_after is not None:
            yield self.created > compiled.created_after
        if compiled.created_before is not None:
            yield self.created < compiled.created_before

    def within(self, condition: TimeRange) -> Mask:
        """Return the rows whose time is within the bounds of a condition."""
        bounds = condition.bounds
        times = self.created if condition.field == "created" else self.written_ms / 1000
        mask = np.ones(len(times), np.bool_)
        if bounds.gt is not None:
            mask &= times > bounds.gt
        if bounds.gte is not None:
            mask &= times >= bounds.gte
        if bounds.lt is not None:
            mask &= times < bounds.lt
        if bounds.lte is not None:
            mask &= times <= bounds.lte
        return mask

    def written_between(self, after: PositionKey, until: PositionKey) -> Mask:
        """Return which rows were last written after the position `after` and at `until` at the latest."""
        ms, sequence = self.written_ms, self.written_sequence
        later = (ms > after[0]) | ((ms == after[0]) & (sequence > after[1]))
        mask: Mask = later & ((ms < until[0]) | ((ms == until[0]) & (sequence <= until[1])))
        return mask


class TagPostings:
    """For each tag of a sealed segment the rows that have it: `rows[ends[i] : ends[i + 1]]` for the tag `codes[i]`.

    Codes (T,) are in ascending order. `row_count` is the number of rows of the segment.
    """

    def __init__(self, codes: TagCodes, ends: RowNumbers, rows: npt.NDArray[np.int32], row_count: int) -> None:
        self._codes = codes
        self._ends = ends
        self._rows = rows
        self._row_count = row_count
        self._cached: dict[int, Bits] = {}
        """Bitmaps of frequent tags: making one takes longer than a search."""

    @classmethod
    def of(cls, pairs: Sequence[TagPairs], row_count: int) -> TagPostings:
        """Return the postings of all pairs of tag and row."""
        codes = np.concatenate([np.zeros(0, np.int32), *(codes for codes, _ in pairs)])
        rows = np.concatenate([np.zeros(0, np.int64), *(rows for _, rows in pairs)])
        order = np.argsort(codes, kind="stable")
        distinct, counts = np.unique(codes, return_counts=True)
        ends = np.cumsum([0, *counts.tolist()])
        return cls(distinct, ends, rows[order].astype(np.int32), row_count)

    @classmethod
    def restored(cls, arrays: Arrays, row_count: int) -> TagPostings:
        """Return the postings that these `arrays` were taken from."""
        return cls(arrays["tags"], arrays["tag_ends"], arrays["tag_rows"], row_count)

    def arrays(self) -> Arrays:
        """Return the postings by their names in a snapshot."""
        return {"tags": self._codes, "tag_ends": self._ends, "tag_rows": self._rows}

    def living(self, alive: Mask) -> TagCodes:
        """Return the tags that any living row has."""
        if not len(self._codes):
            return self._codes
        # Not by a sum, for which NumPy would convert each row's boolean and hold the GIL meanwhile.
        return self._codes[np.logical_or.reduceat(alive[self._rows], self._ends[:-1])]

    def bits(self, tag: int) -> Bits:
        """Return the rows that have a tag. The bitmap may be shared: do not write to it."""
        cached = self._cached.get(tag)
        if cached is not None:
            return cached
        rows = self._rows_with(tag)
        if len(rows) <= CACHED_TAG_SHARE * self._row_count:
            bits = np.zeros(-(-self._row_count // 8), np.uint8)
            np.bitwise_or.at(bits, rows >> 3, np.left_shift(1, rows & 7).astype(np.uint8))
            return bits
        mask = np.zeros(self._row_count, np.bool_)
        mask[rows] = True
        bits = packed_bits(mask)
        if len(self._cached) >= MAX_CACHED_TAGS:
            self._cached.clear()
        self._cached[tag] = bits
        return bits  # not read from the cache: another search may have cleared it

    def bits_of_any(self, tags: Sequence[int]) -> Bits:
        """Return the rows that have any of some tags. The bitmap may be shared: do not write to it."""
        if 0 < len(tags) <= FEW_TAGS:
            return reduce(np.bitwise_or, map(self.bits, tags))
        mask = np.zeros(self._row_count, np.bool_)
        codes = np.array(tags, np.int32)
        places = np.searchsorted(self._codes, codes)
        places = places[np.take(self._codes, places, mode="clip") == codes] if len(self._codes) else places[:0]
        counts = self._ends[places + 1] - self._ends[places]
        shift = np.repeat(self._ends[places] - np.cumsum(counts) + counts, counts)
        mask[self._rows[shift + np.arange(len(shift))]] = True
        return packed_bits(mask)

    def _rows_with(self, tag: int) -> npt.NDArray[np.int32]:
        place = int(np.searchsorted(self._codes, tag))
        if place == len(self._codes) or self._codes[place] != tag:
            return self._rows[:0]
        return self._rows[self._ends[place] : self._ends[place + 1]]

    def pairs(self) -> TagPairs:
        """Return all pairs of tag and row, in the order of the codes."""
        return np.repeat(self._codes, np.diff(self._ends)), self._rows.astype(np.int64)
