"""Filter: which notes a search may find. The same conditions are tested here on a stored note, and in the index on its
rows.

A Filter has flat conditions, which must all hold. `clause` is a further condition, a tree: conditions on one field
(Has, HasAttribute, AttributeRange, TimeRange) in groups (AllOf, AnyOf, Not). The method `accepts` of each tests a
stored note.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypeVar

from model.note import Attribute, Note, hashtag_keys
from service.records import StoredNote, position_seconds

MAX_PLAIN_EXCLUSIONS = 16
"""Number of excluded ids up to which a search is not noticeably slower."""
TEST_BATCH_SIZE = 32
"""Notes that are tested before other tasks may run."""
JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
OrderKey = tuple[bool, int | float, str]
"""Sort key of an attribute's values: all numbers by value, integers exactly, then all texts by code points."""
Bound = TypeVar("Bound", float, OrderKey)


def attribute_text(value: Attribute | None) -> str | None:
    """Return an attribute's value as the text that filters compare: a string as it is, another value as JSON; None for
    no value. A number below 2**53 has one form, however it is written, also in a string: 2, 2.0 and "2e0" are "2". A
    larger integer keeps its digits; a larger one with a point or an exponent becomes the text of its float: 1e+16."""
    text = value if value is None or isinstance(value, str) else json.dumps(value)
    return _number_text(text) if text and JSON_NUMBER.fullmatch(text) else text


def _number_text(text: str) -> str:
    """Return the canonical form of a JSON number."""
    number = float(text)
    if not math.isfinite(number) or (text.lstrip("-").isdecimal() and number):
        return text  # an integer keeps its digits; a number too large for a float stays as it is
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)


def order_key(text: str) -> OrderKey:
    """Return the OrderKey of a text of `attribute_text`. A JSON number counts as that number, so that "2" and 2 are
    equal in ranges as they are in comparisons; a number too large for a float counts as a text."""
    number = float(text) if JSON_NUMBER.fullmatch(text) else math.inf
    if not math.isfinite(number):
        return True, 0.0, text
    return False, int(text) if text.lstrip("-").isdecimal() else number, ""


@dataclass(frozen=True, slots=True)
class Bounds(Generic[Bound]):
    """Lower and upper bounds, exclusive (`gt`, `lt`) and inclusive (`gte`, `lte`); None for no bound."""

    gt: Bound | None = None
    gte: Bound | None = None
    lt: Bound | None = None
    lte: Bound | None = None

    def __bool__(self) -> bool:
        """Whether there is any bound."""
        return any(bound is not None for bound in (self.gt, self.gte, self.lt, self.lte))

    def contain(self, value: Bound) -> bool:
        """Return whether a value is within all bounds."""
        return (
            (self.gt is None or value > self.gt)
            and (self.gte is None or value >= self.gte)
            and (self.lt is None or value < self.lt)
            and (self.lte is None or value <= self.lte)
        )


@dataclass(frozen=True, slots=True)
class Has:
    """Condition that a note's category, its author or any of its hashtags is one of `values`. Hashtags are given as
    their `hashtag_key`."""

    field: Literal["category", "author", "hashtag"]
    values: frozenset[str]

    def accepts(self, stored: StoredNote) -> bool:
        """Return whether a note has one of the values."""
        if self.field == "hashtag":
            return not self.values.isdisjoint(hashtag_keys(stored.hashtags))
        return (stored.category if self.field == "category" else stored.note.author) in self.values


@dataclass(frozen=True, slots=True)
class HasAttribute:
    """Condition that a note's attribute has one of `values`, each as `attribute_text` writes it."""

    name: str
    values: frozenset[str]

    def accepts(self, stored: StoredNote) -> bool:
        """Return whether a note's attribute has one of the values."""
        return attribute_text(stored.note.attributes.get(self.name)) in self.values


@dataclass(frozen=True, slots=True)
class AttributeRange:
    """Condition that a note's attribute lies within bounds, which are all numbers or all texts. A number never lies
    within bounds that are texts, and the reverse."""

    name: str
    bounds: Bounds[OrderKey]

    @property
    def for_texts(self) -> bool:
        """Whether the bounds are texts."""
        bounds = self.bounds
        return any(bound[0] for bound in (bounds.gt, bounds.gte, bounds.lt, bounds.lte) if bound is not None)

    def accepts(self, stored: StoredNote) -> bool:
        """Return whether a note's attribute lies within the bounds."""
        text = attribute_text(stored.note.attributes.get(self.name))
        if text is None:
            return False
        key = order_key(text)
        return key[0] == self.for_texts and self.bounds.contain(key)


@dataclass(frozen=True, slots=True)
class TimeRange:
    """Condition that a note was created, or was last written, within bounds, in seconds since the epoch. A note without
    a time counts as created at 0. The time of the last write is that of its log position, by the store's clock."""

    field: Literal["created", "updated"]
    bounds: Bounds[float]

    def accepts(self, stored: StoredNote) -> bool:
        """Return whether the time of a note is within the bounds."""
        if self.field == "created":
            return self.bounds.contain(stored.note.created_at or 0.0)
        return self.bounds.contain(position_seconds(stored.position))


@dataclass(frozen=True, slots=True)
class AllOf:
    """Condition that all parts hold."""

    parts: tuple[Clause, ...]

    def accepts(self, stored: StoredNote) -> bool:
        """Return whether all parts accept a note."""
        return all(part.accepts(stored) for part in self.parts)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Condition that at least one part holds."""

    parts: tuple[Clause, ...]

    def accepts(self, stored: StoredNote) -> bool:
        """Return whether any part accepts a note."""
        return any(part.accepts(stored) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Not:
    """Condition that a part does not hold. A note without the field that the part tests is therefore accepted."""

    part: Clause

    def accepts(self, stored: StoredNote) -> bool:
        """Return whether the part refuses a note."""
        return not self.part.accepts(stored)


TagClause: TypeAlias = Has | HasAttribute | AttributeRange
"""Conditions that the index tests by tags."""
Clause: TypeAlias = TagClause | TimeRange | AllOf | AnyOf | Not


def tag_clauses(clause: Clause) -> Iterator[TagClause]:
    """Yield the conditions of a tree that the index tests by tags."""
    if isinstance(clause, AllOf | AnyOf):
        for part in clause.parts:
            yield from tag_clauses(part)
    elif isinstance(clause, Not):
        yield from tag_clauses(clause.part)
    elif not isinstance(clause, TimeRange):
        yield clause


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that a note must all meet.

    The note has one of `hashtags` and all of `all_hashtags`, compared by `hashtag_key`. It was created after
    `created_after` and before `created_before`, in seconds since the epoch, both exclusive. `attributes`: names and
    values, these as `attribute_text` gives them. Its id is not in `exclude`. `clause` accepts it. `exact`: compare
    every note, not only those in the inverted lists that the index probes.
    """

    category: str | None = None
    hashtags: tuple[str, ...] = ()
    author: str | None = None
    created_after: float | None = None
    created_before: float | None = None
    all_hashtags: tuple[str, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()
    exclude: frozenset[str] = frozenset()
    exact: bool = False
    clause: Clause | None = None

    @property
    def narrows(self) -> bool:
        """Whether there is a condition besides the excluded ids."""
        times = self.created_after is not None or self.created_before is not None
        texts = self.category is not None or self.author is not None
        return times or texts or bool(self.hashtags or self.all_hashtags or self.attributes) or self.clause is not None

    @property
    def plain(self) -> bool:
        """Whether there is no condition besides a few excluded ids."""
        return not self.narrows and not self.exact and len(self.exclude) <= MAX_PLAIN_EXCLUSIONS

    def accepts(self, stored: StoredNote) -> bool:
        """Return whether a note meets all conditions."""
        note = stored.note
        return (
            note.id not in self.exclude
            and (self.category is None or stored.category == self.category)
            and (self.author is None or note.author == self.author)
            and (self.created_after is None or (note.created_at or 0.0) > self.created_after)
            and (self.created_before is None or (note.created_at or 0.0) < self.created_before)
            and (not (self.hashtags or self.all_hashtags) or self._accepts_hashtags(stored))
            and (not self.attributes or self._accepts_attributes(note))
            and (self.clause is None or self.clause.accepts(stored))
        )

    def _accepts_hashtags(self, stored: StoredNote) -> bool:
        keys, any_keys = hashtag_keys(stored.hashtags), hashtag_keys(self.hashtags)
        return (not any_keys or not any_keys.isdisjoint(keys)) and keys >= hashtag_keys(self.all_hashtags)

    def _accepts_attributes(self, note: Note) -> bool:
        return all(attribute_text(note.attributes.get(name)) == value for name, value in self.attributes)


async def accepted_by(where: Filter, notes: Iterable[StoredNote]) -> list[bool]:
    """Return for each note whether a filter accepts it. Other tasks may run after every TEST_BATCH_SIZE notes: the
    largest filters take up to 1 ms per note."""
    accepted = list[bool]()
    for note in notes:
        accepted.append(where.accepts(note))
        if len(accepted) % TEST_BATCH_SIZE == 0:
            await asyncio.sleep(0)
    return accepted
