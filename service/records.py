"""The records that pass between the use-cases, the store and the index. A log position is the id of an entry of the change
log; positions order all writes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.generation import CategoryProbability, Hashtag
from model.note import Note

Vector = npt.NDArray[np.float32]


ORIGIN = "0-0"
"""The log position before every write."""


def position_key(position: str) -> tuple[int, int]:
    """Log positions in their order."""
    milliseconds, _, sequence = position.partition("-")
    return int(milliseconds), int(sequence or 0)


@dataclass(frozen=True, slots=True)
class Generated:
    """What the model wrote for a note whose author left it out; None: it was not asked to."""

    hashtags: tuple[Hashtag, ...] | None = None
    category: CategoryProbability | None = None


@dataclass(frozen=True, slots=True)
class StoredNote:
    """A note with what was made of it. `vector` is None when it was not asked for."""

    note: Note
    space: str
    vector: Vector | None = None
    generated: Generated = Generated()
    revision: int = 0
    position: str = ORIGIN

    @property
    def hashtags(self) -> tuple[str, ...]:
        """The author's, or else the generated ones."""
        return self.note.hashtags or tuple(h.text for h in self.generated.hashtags or ())

    @property
    def category(self) -> str | None:
        """The author's, or else the generated one."""
        return self.note.category or (self.generated.category.name if self.generated.category else None)

    def expired(self, now: float) -> bool:
        return self.note.expires_at is not None and self.note.expires_at <= now


@dataclass(frozen=True, slots=True)
class Write:
    """Put `stored` under its id; `expected` is the position that the note must be at (None: any, or none yet)."""

    stored: StoredNote
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """`revision` 1 means created. `position` is the write's own in the log."""

    revision: int
    position: str


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One change: the note `id` was written or removed at `position`. `by`: for the store, which write it was. `id` is
    empty where the entry does not say it."""

    position: str
    id: str
    removed: bool
    by: str = ""


@dataclass(frozen=True, slots=True)
class LogBounds:
    """First entry kept (None: none is), last entry ever written (ORIGIN: none was), and whether any was cut off.
    `entry`: the one that was asked for, None where it is not kept."""

    first: str | None
    last: str
    cut: bool
    entry: str | None = None

    def reach(self, position: str) -> bool:
        """Whether the log, asked for the entry of `position`, still holds all that came after it, and has got that far
        itself."""
        at, last = position_key(position), position_key(self.last)
        # A position that the log does not hold was cut off, lost in a failover, or belongs to another log.
        held = not self.cut if at == (0, 0) else self.entry == position
        return last == at or (last > at and held)


@dataclass(frozen=True, slots=True)
class Durability:
    """Whether an acknowledged write survives the death of the store, and why we think so."""

    durable: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Hit:
    id: str
    score: float
