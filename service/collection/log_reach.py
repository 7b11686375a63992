"""Check that the change log reaches back to a position."""

from __future__ import annotations

from service.errors import FieldError, InvalidInput, LogCut
from service.records import LogBounds, position_key


def check_reaches(bounds: LogBounds, after: str) -> None:
    """Check that a log has all changes behind a position. Raises LogCut, and InvalidInput for a position that no write
    has had yet."""
    if position_key(after) > position_key(bounds.last):
        raise InvalidInput([FieldError("/query/after", "no write has had this log position yet")])
    if not bounds.has_all_after(after):
        raise LogCut(after, bounds.first or bounds.last)
