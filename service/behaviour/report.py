"""RecommendationCounts: how often recommended notes were shown and clicked, counted event by event.

The `recommendation_id` of an event names its recommendation. A note of a recommendation counts once as shown, however
many events say so, and once as clicked if it has any event of positive weight other than `shown`. So a rate is a share.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar, get_args

import orjson

Dimension = Literal["scenario", "variant", "position", "source"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
"""Fields of events by which a report groups its counts."""
MAX_OPEN = 50_000
"""Bound on the pairs of a recommendation and a note that are remembered, the most recent ones, to recognise a further
event: one bound each for pairs that were shown, that were clicked, and that were both."""
PAIR_BYTES, GROUP_BYTES = 250, 700
"""Approximate memory of a pair of a recommendation and a note, and of a group."""
MAX_GROUPS = 20_000
"""Bound on the groups that are counted; beyond it an event counts in the group whose names are all OTHER."""
MAX_POSITION_GROUPS = MAX_GROUPS // 2
"""Number of groups beyond which an event's position counts as OTHER: positions make the most groups, and the other
names matter more."""
OTHER = "(other)"
"""Name of every dimension of the events beyond MAX_GROUPS."""
MAX_RATES = 1000
"""Bound on the rates of one report; those shown most are kept."""
DAY_SECONDS = 86_400
CONFIDENCE = 1.959964
"""Standard deviations of a 95% interval."""
T = TypeVar("T")


class Group(NamedTuple):
    """A day, in days since the epoch, and the values of the dimensions; None for one that the event does not have."""

    day: int
    scenario: str | None
    variant: str | None
    position: str | None
    source: str | None


@dataclass(frozen=True, slots=True)
class Rate:
    """Share of shown notes that were clicked. `names`: values of the requested dimensions. `low`, `high`: 95% interval
    of the rate (Wilson 1927)."""

    names: Mapping[Dimension, str | None]
    shown: int
    clicked: int
    rate: float
    low: float
    high: float


class RecommendationCounts:
    """Counts of shown and clicked notes, by day and by the dimensions."""

    def __init__(self) -> None:
        self._unmatched: Counter[int] = Counter()
        """Clicks without an event that says the recommendation showed the note, by day."""
        self._shown: Counter[Group] = Counter()
        self._clicked: Counter[Group] = Counter()
        self._unclicked: dict[int, Group] = {}
        """Group of each note that was shown and not clicked, by the hash of recommendation and note."""
        self._clicked_first: dict[int, int] = {}
        """Day of the click of each note that was clicked and not shown, by the same hash. They have a bound of their
        own, so that clicks of recommendations that were never shown do not evict notes that were."""
        self._matched: dict[int, None] = {}
        """Hashes of the recommendations and notes that were shown and clicked; a dict, since it keeps their order."""

    def add(self, note_id: str, at: float, details: bytes, *, shown: bool, clicked: bool) -> None:
        """Count an event of a recommended note. One without details belongs to no recommendation."""
        if not details or not (shown or clicked):
            return
        fields = orjson.loads(details)
        if (recommendation := fields.get("recommendation_id")) is None:
            return
        pair = hash((recommendation, note_id))
        if pair in self._matched:
            return
        if shown and pair not in self._unclicked:
            group = self._group(at, fields)
            self._shown[group] += 1
            day = self._clicked_first.pop(pair, None)
            if day is None:
                _remember(self._unclicked, pair, group)
            else:
                if self._unmatched[day]:  # it may have expired
                    self._unmatched[day] -= 1
                self._close(pair, group)
        elif clicked and pair in self._unclicked:
            self._close(pair, self._unclicked.pop(pair))
        elif clicked and pair not in self._clicked_first:
            self._unmatched[_day(at)] += 1
            _remember(self._clicked_first, pair, _day(at))

    def unmatched(self, since: float = 0.0) -> int:
        """Return the number of clicks without an event that says the recommendation showed the note, from the day of
        `since` on."""
        return sum(count for day, count in self._unmatched.items() if day >= _day(since))

    def groups(self) -> list[tuple[Group, int, int]]:
        """Return the current groups, and how many notes of each were shown and clicked."""
        return [(group, count, self._clicked[group]) for group, count in self._shown.items()]

    def expire(self, before: float) -> None:
        """Drop the counts of days before the day of `before`."""
        for counts in (self._shown, self._clicked):
            for group in [group for group in counts if group.day < _day(before)]:
                del counts[group]
        for day in [day for day in self._unmatched if day < _day(before)]:
            del self._unmatched[day]

    @property
    def bytes(self) -> int:
        """Approximate memory of the counts."""
        pairs = len(self._unclicked) + len(self._clicked_first) + len(self._matched)
        return PAIR_BYTES * pairs + GROUP_BYTES * len(self._shown)

    def _close(self, pair: int, group: Group) -> None:
        self._clicked[group] += 1
        _remember(self._matched, pair, None)

    def _group(self, at: float, fields: Mapping[str, object]) -> Group:
        names = [None if (value := fields.get(name)) is None else str(value) for name in DIMENSIONS]
        group = Group(_day(at), *names)
        if len(self._shown) >= MAX_POSITION_GROUPS and group.position is not None and group not in self._shown:
            group = group._replace(position=OTHER)
        full = len(self._shown) >= MAX_GROUPS and group not in self._shown
        return Group(group.day, OTHER, OTHER, OTHER, OTHER) if full else group


def rates(
    groups: Iterable[tuple[Group, int, int]], by: Collection[Dimension], since: float = 0.0
) -> tuple[list[Rate], int]:
    """Return the rates grouped by the dimensions `by`, from the day of `since` on: at most MAX_RATES, most shown first;
    and how many were left out. `groups`: those of RecommendationCounts.groups."""
    shown: Counter[tuple[str | None, ...]] = Counter()
    clicked: Counter[tuple[str | None, ...]] = Counter()
    first = _day(since)
    for group, group_shown, group_clicked in groups:
        if group.day >= first:
            names = tuple(getattr(group, name) for name in by)
            shown[names] += group_shown
            clicked[names] += group_clicked
    most = heapq.nsmallest(MAX_RATES, shown.items(), key=lambda entry: (-entry[1], str(entry[0])))
    return [
        Rate(dict(zip(by, names, strict=True)), count, clicked[names], *wilson(clicked[names], count))
        for names, count in most
    ], len(shown) - len(most)


def _remember(pairs: dict[int, T], pair: int, value: T) -> None:
    """Remember a pair; drop the oldest one if there are more than MAX_OPEN."""
    pairs[pair] = value
    if len(pairs) > MAX_OPEN:
        del pairs[next(iter(pairs))]


def _day(at: float) -> int:
    return int(at // DAY_SECONDS)


def wilson(clicked: int, shown: int) -> tuple[float, float, float]:
    """Return a rate and its 95% interval (Wilson 1927). `shown` is above 0."""
    rate, z2 = clicked / shown, CONFIDENCE**2
    middle = (rate + z2 / (2 * shown)) / (1 + z2 / shown)
    half = CONFIDENCE * math.sqrt(rate * (1 - rate) / shown + z2 / (4 * shown**2)) / (1 + z2 / shown)
    return rate, max(0.0, middle - half), min(1.0, middle + half)
