"""Boosts: values from 0 to 1 by a note's time, an attribute or a match, added to its relevance with a weight.

Decay curves, with d the distance of the value from `target`, after Elasticsearch's and Qdrant's functions: each is 1 at
the target and `midpoint` at the distance `scale`.

- exp: midpoint ** (d / scale)
- gauss: midpoint ** (d / scale) ** 2
- linear: max(0, 1 - (1 - midpoint) d / scale)

A note without the attribute, or whose attribute is no number, gets 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model.note import hashtag_keys
from service.filters import attribute_text
from service.records import StoredNote

Curve = Literal["exp", "gauss", "linear"]


@dataclass(frozen=True, slots=True)
class Decay:
    """Closeness of a number to a target. `attribute`: the note's attribute; None for the time of its creation, in
    seconds since the epoch. `target`: None for the present time. `scale` is above 0, `midpoint` between 0 and 1."""

    curve: Curve
    scale: float
    attribute: str | None = None
    target: float | None = None
    midpoint: float = 0.5

    def value(self, stored: StoredNote, now: float) -> float:
        """Return the value for a note, from 0 to 1."""
        number = stored.note.created_at if self.attribute is None else stored.note.attributes.get(self.attribute)
        if isinstance(number, bool) or not isinstance(number, int | float):
            return 0.0
        return decayed(
            self.curve, abs(float(number) - (now if self.target is None else self.target)) / self.scale, self.midpoint
        )


@dataclass(frozen=True, slots=True)
class Match:
    """Match of a note that has all of the given fields. `attribute`: name and value, as a filter writes it."""

    category: str | None = None
    hashtag: str | None = None
    author: str | None = None
    attribute: tuple[str, str] | None = None

    def value(self, stored: StoredNote, now: float) -> float:
        """Return 1 for a note that matches, else 0."""
        matches = (
            (self.category is None or stored.category == self.category)
            and (self.author is None or stored.note.author == self.author)
            and (self.hashtag is None or hashtag_keys((self.hashtag,)) <= hashtag_keys(stored.hashtags))
            and (self.attribute is None or self._has_attribute(stored, *self.attribute))
        )
        return float(matches)

    @staticmethod
    def _has_attribute(stored: StoredNote, name: str, value: str) -> bool:
        return attribute_text(stored.note.attributes.get(name)) == value


@dataclass(frozen=True, slots=True)
class Boost:
    """A value from 0 to 1 and its weight, which may be below 0."""

    weight: float
    by: Decay | Match


def decayed(curve: Curve, distance: float, midpoint: float) -> float:
    """Return the value of a curve at a distance in units of its scale."""
    if curve == "linear":
        return max(0.0, 1 - (1 - midpoint) * distance)
    exponent = distance if curve == "exp" else min(distance, 1e100) ** 2
    return float(midpoint**exponent)


def boost_values(boosts: Sequence[Boost], stored: StoredNote, now: float) -> tuple[float, ...]:
    """Return what each boost adds to a note's relevance."""
    return tuple(boost.weight * boost.by.value(stored, now) for boost in boosts)
