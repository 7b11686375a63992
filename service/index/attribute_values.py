"""AttributeValues: the distinct values of one attribute, sorted, so that a range condition selects a slice of them."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from operator import itemgetter

from service.filters import AttributeRange, OrderKey, order_key
from service.index.bitmaps import Mask

ORDER_KEY = itemgetter(0)


class AttributeValues:
    """The OrderKey and tag code of each value, sorted: about 100 bytes a value. Written by one thread, read by any."""

    def __init__(self) -> None:
        self._entries: list[tuple[OrderKey, int]] = []

    def add(self, text: str, code: int) -> None:
        """Add a new value."""
        insort(self._entries, (order_key(text), code))

    def forget_unused(self, used: Mask) -> None:
        """Forget the values whose codes are not `used`."""
        self._entries = [entry for entry in self._entries if used[entry[1]]]

    def codes_in(self, condition: AttributeRange) -> tuple[int, ...]:
        """Return the codes of the values within the bounds."""
        entries = self._entries.copy()  # the writer may move entries between two look-ups
        bounds, texts = condition.bounds, condition.for_texts
        starts = [bisect_left(entries, (texts, -math.inf, ""), key=ORDER_KEY)]
        ends = [bisect_right(entries, (texts, math.inf, ""), key=ORDER_KEY)]
        if bounds.gt is not None:
            starts.append(bisect_right(entries, bounds.gt, key=ORDER_KEY))
        if bounds.gte is not None:
            starts.append(bisect_left(entries, bounds.gte, key=ORDER_KEY))
        if bounds.lt is not None:
            ends.append(bisect_left(entries, bounds.lt, key=ORDER_KEY))
        if bounds.lte is not None:
            ends.append(bisect_right(entries, bounds.lte, key=ORDER_KEY))
        return tuple(code for _, code in entries[max(starts) : min(ends)])
