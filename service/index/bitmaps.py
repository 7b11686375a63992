"""Sets of a segment's rows as bitmaps: one bit for each row, eight rows to a byte, the lowest bit first.

FAISS reads the same layout in `IDSelectorBitmap`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
"""(N,): for each row of a segment, whether it belongs to a set; one byte a row."""
Bits = npt.NDArray[np.uint8]
"""(ceil(N / 8),): the same set as a bitmap."""
RowNumbers = npt.NDArray[np.int64]
"""(n,): rows of a segment by their numbers."""


def packed_bits(mask: Mask) -> Bits:
    """Return the bitmap of `mask`."""
    return np.packbits(mask, bitorder="little")


def rows_of(bits: Bits) -> RowNumbers:
    """Return the rows of the set in ascending order. Only bytes that are not zero are unpacked: sets are mostly
    sparse."""
    occupied_bytes = np.flatnonzero(bits != 0)
    places = np.flatnonzero(np.unpackbits(bits[occupied_bytes], bitorder="little"))
    rows: RowNumbers = (occupied_bytes[places >> 3] << 3) + (places & 7)
    return rows


def without_rows(bits: Bits, rows: RowNumbers) -> Bits:
    """Return a copy of the set without some rows."""
    kept = bits.copy()
    np.bitwise_and.at(kept, rows >> 3, ~np.left_shift(1, rows & 7).astype(np.uint8))
    return kept


def count_of(bits: Bits) -> int:
    """Return how many rows the set has."""
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def has(bits: Bits, row: int) -> bool:
    """Return whether `row` is in the set; a row beyond the bitmap's end is not."""
    return row >> 3 < len(bits) and bool(bits[row >> 3] >> (row & 7) & 1)


def mask_of(bits: Bits, rows: RowNumbers) -> Mask:
    """Return which of some rows are in the set, (n,); those beyond the bitmap's end are not."""
    mask: Mask = (np.take(bits, rows >> 3, mode="clip") >> (rows & 7) & 1).astype(np.bool_) if len(bits) else rows < 0
    return mask & (rows >> 3 < len(bits))
