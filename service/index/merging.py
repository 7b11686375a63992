"""Choice of the segments to merge next, by one rule for segments of vectors and for those of texts."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

MERGE_FACTOR = 4
"""Number of segments of about one size that are merged into one."""
MAX_DEAD_SHARE = 0.25
"""A segment with a larger share of tombstones is rewritten without them."""


class Mergeable(Protocol):
    """A segment. A row that was removed is a tombstone until the segment is merged or rewritten."""

    def __len__(self) -> int:
        """Return the number of rows, tombstones included."""

    @property
    def living(self) -> int:
        """Number of rows that are not tombstones."""

    @property
    def dead(self) -> int:
        """Number of tombstones."""


S = TypeVar("S", bound=Mergeable)


class MergePlanner(Generic[S]):
    """Chooses the segments that an index merges next. It remembers segments whose merge failed, and those to rewrite
    even if few of their rows are tombstones."""

    def __init__(self) -> None:
        self._given_up: list[S] = []
        """Segments whose merge failed: they are planned again once nothing else is left to do."""
        self._to_rewrite: list[S] = []
        self._dropped_since_plan = False
        """Whether `drop_tombstones` was called since the last plan: the result of the running merge may have
        tombstones, too."""

    @property
    def dropping(self) -> bool:
        """Whether segments that `drop_tombstones` named are still to be rewritten."""
        return bool(self._to_rewrite)

    def drop_tombstones(self, segments: Iterable[S]) -> None:
        """Have every one of an index's `segments` that has tombstones rewritten."""
        self._to_rewrite = [segment for segment in segments if segment.dead]
        self._dropped_since_plan = True

    def candidates(self, segments: Sequence[S], max_rows: float = math.inf) -> list[S]:
        """Begin a plan: return those of an index's segments that may be merged. The last one, which grows, may not; one
        of more than `max_rows` may only be rewritten."""
        self._dropped_since_plan = False
        self._to_rewrite = [segment for segment in self._to_rewrite if segment in segments]
        return [
            segment
            for segment in segments[:-1]
            if segment not in self._given_up and (len(segment) <= max_rows or segment in self._to_rewrite)
        ]

    def choose(self, candidates: Sequence[S], groups: Iterable[Sequence[S]]) -> Sequence[S]:
        """Return the candidates that are merged next, none where there is nothing to do: one with many tombstones or
        that is to be rewritten, else the first of the groups that has MERGE_FACTOR segments or more."""
        for segment in candidates:
            if segment in self._to_rewrite or fragmented(segment):
                return [segment]
        chosen = next((group for group in groups if len(group) >= MERGE_FACTOR), [])
        if not chosen:
            self._given_up.clear()
        return chosen

    def finish(self, sources: Collection[S], merged: Iterable[S]) -> None:
        """Record that `merged` has replaced `sources`."""
        to_rewrite = [segment for segment in self._to_rewrite if segment not in sources]
        if self._dropped_since_plan:
            to_rewrite += [segment for segment in merged if segment.dead]
        self._to_rewrite = to_rewrite  # in one step: a purge reads `dropping` in another thread

    def give_up(self, sources: Iterable[S]) -> None:
        """Leave segments whose merge failed out of the next plans."""
        self._given_up += sources


def fragmented(segment: Mergeable) -> bool:
    """Return whether so many rows are tombstones that the segment is rewritten without them."""
    return segment.dead > MAX_DEAD_SHARE * len(segment)


def groups_of_one_size(segments: Sequence[S], smallest: int) -> list[list[S]]:
    """Group segments by size, the smallest first: up to `smallest` living rows, then up to MERGE_FACTOR times as many
    as in the group before."""
    groups: dict[int, list[S]] = {}
    for segment in segments:
        level, max_rows = 0, smallest
        while segment.living > max_rows:
            level, max_rows = level + 1, max_rows * MERGE_FACTOR
        groups.setdefault(level, []).append(segment)
    return [groups[level] for level in sorted(groups)]
