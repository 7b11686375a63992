"""Choice of the segments to merge next, by one rule for segments of vectors and for those of texts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

MERGE_FACTOR = 4
"""Segments of about one size that are merged into one."""
MAX_DEAD_SHARE = 0.25
"""A segment with a larger share of tombstones is rewritten without them."""


class Mergeable(Protocol):
    """A segment. A row that was removed is a tombstone until the segment is merged or rewritten."""

    def __len__(self) -> int:
        """Return the number of rows, tombstones included."""

    @property
    def living(self) -> int:
        """Rows that are no tombstones."""

    @property
    def dead(self) -> int:
        """Tombstones."""


S = TypeVar("S", bound=Mergeable)


def next_merge(candidates: Sequence[S], groups: Sequence[Sequence[S]], to_rewrite: Collection[S]) -> Sequence[S]:
    """Return the segments that are merged next, none where there is nothing to do: one with many tombstones, or that is
    `to_rewrite` however few it has, else the first of the groups that has MERGE_FACTOR segments or more."""
    for segment in candidates:
        if segment in to_rewrite or fragmented(segment):
            return [segment]
    return next((group for group in groups if len(group) >= MERGE_FACTOR), [])


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
