"""tie_key and tie: the order of notes with equal scores.

It is a hash of ids, never their order: ids often tell when a note was added, so that the smaller one would be the older
one (docs/decisions/0039-ties.md). The evaluation ranks equal scores of a system by another hash, `order_of_ties` of
model/evaluation/ranking.py: the ranks in the stored records depend on it.
"""

from __future__ import annotations

from zlib import crc32

PRIME = 2**31 - 1


def tie_key(note_id: str) -> int:
    """Return a number from 1 to PRIME - 1, the same in every process."""
    return crc32(note_id.encode("utf-8", "surrogatepass")) % (PRIME - 1) + 1


def tie_key_text(note_id: str) -> str:
    """Return the key as text: functions that SQL calls take and return text."""
    return str(tie_key(note_id))


def tie(key: int, other: int) -> int:
    """Return the place, from 1 to PRIME - 1, of the pair of two notes among pairs with equal scores, smaller first.
    `key`, `other`: the notes' keys."""
    return key * other % PRIME
