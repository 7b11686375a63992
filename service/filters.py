"""Filter: which notes a search may find. One rule, applied here to a stored note and in the index to its rows."""

from __future__ import annotations

import json
from dataclasses import dataclass

from model.note import Attribute, Note, hashtag_key
from service.records import StoredNote

MAX_PLAIN_EXCLUSIONS = 16
"""Excluded ids that do not make a search noticeably slower."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that a note must all meet.

    It has one of `hashtags` and all of `all_hashtags`, compared by `hashtag_key`. It was created after `created_after`
    and before `created_before`, in seconds since the epoch, both exclusive. Each of its `attributes` has the value that
    `attribute_text` gives. Its id is not in `exclude`. `exact` has every note compared, not only those in the inverted
    lists that an index searches.
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

    @property
    def narrows(self) -> bool:
        """Whether there is a condition beside the excluded ids."""
        times = self.created_after is not None or self.created_before is not None
        texts = self.category is not None or self.author is not None
        return times or texts or bool(self.hashtags or self.all_hashtags or self.attributes)

    @property
    def plain(self) -> bool:
        """Whether there is no condition but a few excluded ids."""
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
        )

    def _accepts_hashtags(self, stored: StoredNote) -> bool:
        keys = {hashtag_key(hashtag) for hashtag in stored.hashtags}
        any_keys = {hashtag_key(hashtag) for hashtag in self.hashtags}
        all_keys = {hashtag_key(hashtag) for hashtag in self.all_hashtags}
        return (not any_keys or not any_keys.isdisjoint(keys)) and keys.issuperset(all_keys)

    def _accepts_attributes(self, note: Note) -> bool:
        return all(attribute_text(note.attributes.get(name)) == value for name, value in self.attributes)


def attribute_text(value: Attribute | None) -> str | None:
    """Return how a filter writes an attribute's value: a string as it is, another value as JSON; None for no value."""
    return value if value is None or isinstance(value, str) else json.dumps(value)
