"""Check that the change log reaches back to a position."""

from __future__ import annotations

from service.errors import LogCut
from service.records import LogBounds, position_key


def check_reaches(bounds: LogBounds, after: str) -> None:
    """Check that a log has all changes after a position. Raises LogCut, also for a position after the end of the
    log, where it has no write: it was restored since, or lost writes."""
    if position_key(after) > position_key(bounds.last):
        raise LogCut(after, last=bounds.last)
    if not bounds.has_all_after(after):
        raise LogCut(after, first=bounds.first or bounds.last)
