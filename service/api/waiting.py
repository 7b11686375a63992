"""Waiting for the index of this replica: to reach a log position that a caller names, or for a change."""

from __future__ import annotations

from service.container import Service
from service.errors import FieldError, InvalidInput
from service.read_time import READ_SECONDS, ReadTime
from service.records import position_key


def time_to_wait(left: float) -> float:
    """Return for how many seconds a request may wait whose deadline is `left` seconds away. A second, or half of `left`
    if that is less, remains for reading the store afterwards and for the answer."""
    return max(left - READ_SECONDS, left / 2)


async def wait_for_position(position: str, pointer: str, service: Service, time_left: ReadTime, seconds: float) -> None:
    """Wait until the index has reached a log position, for at most `seconds`. Raises InvalidInput at `pointer` for a
    position that the store itself has not reached, since waiting would not help; and IndexBehind, StoreUnavailable."""
    if position_key(position) <= position_key(service.index.position):
        return
    if position_key(position) > position_key((await time_left.wait(service.store.log_bounds())).last):
        raise InvalidInput([FieldError(f"{pointer}/min_log_position", "no write has this log position yet")])
    await service.index.wait_for(position, seconds)
