"""Which notes may be found: one rule, on a stored note and on the rows of an index."""

from __future__ import annotations

import json
from dataclasses import dataclass

from model.note import Attribute, Note, hashtag_key
from service.records import StoredNote

FEW_EXCLUDED = 16
"""Ids that are left out at no cost worth naming."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which notes may be found. `hashtags`: any of them; `all_hashtags`: each of them; `created_after` and
    `created_before`: seconds since the epoch, exclusive.
    `attributes`: each name has that value, as `attribute_text` says it.
    `exact`: all of them are compared, not only those that an index leads to."""

    category: str | None = None
    hashtags: tuple[str, ...] = ()
    author: str | None = None
    created_after: float | None = None
    created_before: float | None = None
    all_hashtags: tuple[str, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()
    exclude: frozenset[str] = frozenset()
    exact: bool = False

    @property
    def narrows(self) -> bool:
        """Whether it asks more of a note than that its id is not left out."""
        times = self.created_after is not None or self.created_before is not None
        texts = self.category is not None or self.author is not None
        return times or texts or bool(self.hashtags or self.all_hashtags or self.attributes)

    @property
    def plain(self) -> bool:
        """Whether it leaves out no more than a few ids."""
        return not self.narrows and not self.exact and len(self.exclude) <= FEW_EXCLUDED

    def accepts(self, stored: StoredNote) -> bool:
        """The same rule on a note as the index applies to its rows."""
        note = stored.note
        return (
            note.id not in self.exclude
            and (self.category is None or stored.category == self.category)
            and (self.author is None or note.author == self.author)
            and (self.created_after is None or (note.created_at or 0.0) > self.created_after)
            and (self.created_before is None or (note.created_at or 0.0) < self.created_before)
            and (not (self.hashtags or self.all_hashtags) or self._accepts_hashtags(stored))
            and (not self.attributes or self._accepts_attributes(note))
        )

    def _accepts_hashtags(self, stored: StoredNote) -> bool:
        wanted, every, carried = (
            set(map(hashtag_key, of)) for of in (self.hashtags, self.all_hashtags, stored.hashtags)
        )
        return (not wanted or not wanted.isdisjoint(carried)) and carried.issuperset(every)

    def _accepts_attributes(self, note: Note) -> bool:
        return all(attribute_text(note.attributes.get(name)) == value for name, value in self.attributes)


def attribute_text(value: Attribute | None) -> str | None:
    """How a filter names an attribute's value: a text as it is, else as JSON says it. None where there is none."""
    return value if value is None or isinstance(value, str) else json.dumps(value)
