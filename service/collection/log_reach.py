"""Check that the change log reaches back to a position."""

from __future__ import annotations

from service.errors import LogCut
from service.records import LogBounds, position_key


def check_reaches(bounds: LogBounds, after: str) -> None:
    """Check that a log has the position `after` and all later changes. `bounds`: those that the store returned for this
    position. Raises LogCut, which says whether the position was trimmed, or the log ends before it or has lost its
    entry: the store was restored since, or lost writes."""
    if bounds.reach(after):
        return
    if position_key(after) > position_key(bounds.last):
        raise LogCut(after, last=bounds.last)
    if bounds.lost(after):
        raise LogCut(after)
    raise LogCut(after, first=bounds.first or bounds.last)
