"""Selection: which candidates become the answer, in which order: boosts, diversity, caps and near-duplicates.

Candidates come in blocks, the best first. A selection is extended by one block after another, and chooses greedily, one
note at a time. So the first notes of a long selection are those of a short one, as long as the blocks are the same.

- Diversity d is maximal marginal relevance (Carbonell and Goldstein 1998): the next note has the largest
  (1 - d) relevance - d max cosine to the notes chosen before; 0 is the order of relevance alone.
- A cap leaves out a note whose author or category already has the maximum number of notes in the selection.
- Collapse: once a note is chosen, the candidates of its block whose cosine to it is `collapse_above` or more become its
  duplicates. Those of later blocks are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from service.ranking.boosts import Boost, boost_values
from service.ranking.strategies import Numbers
from service.records import Hit, IndexRows, StoredNote, Vectors

NotesById = Mapping[str, StoredNote | None]
"""Notes by id, as far as they have been read; None for one that must not be returned."""

ROUNDING = 1e-6
"""Bound on the rounding of a cosine in float32: copies of a text have one of 1 up to this."""
CLOSED = -np.inf
"""Marginal relevance of a candidate that may not be chosen any more."""


@dataclass(frozen=True, slots=True)
class SelectionOptions:
    """Options of a selection. `diversity`: 0 to 1. `max_per_author`, `max_per_category`, `collapse_above`: None for no
    bound. `relevance_unit`: factor that makes a score comparable with a cosine. `now`: seconds since the epoch, for
    boosts."""

    diversity: float = 0.0
    max_per_author: int | None = None
    max_per_category: int | None = None
    collapse_above: float | None = None
    boosts: tuple[Boost, ...] = ()
    relevance_unit: float = 1.0
    now: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether the answer keeps the order of the candidates."""
        caps = self.max_per_author is not None or self.max_per_category is not None
        return not (caps or self.boosts or self.needs_vectors)

    @property
    def needs_vectors(self) -> bool:
        """Whether candidates need their vectors."""
        return self.diversity > 0 or self.collapse_above is not None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A note of a selection. `score` is its relevance; `boosts` what each boost adds to it, in their order."""

    id: str
    score: float
    duplicates: tuple[str, ...] = ()
    boosts: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Candidates that were passed over before the selection was complete, by the reason."""

    max_per_author: int = 0
    max_per_category: int = 0
    collapse_above: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Notes chosen so far. `vectors`: the vectors of these notes, (n, D), where the options need them."""

    options: SelectionOptions
    chosen: tuple[Chosen, ...] = ()
    vectors: Vectors | None = None
    per_author: Counter[str] = field(default_factory=Counter)
    per_category: Counter[str] = field(default_factory=Counter)
    left_out: LeftOut = LeftOut()

    def __len__(self) -> int:
        return len(self.chosen)

    def cut(self, count: int) -> Selection:
        """Return the first `count` notes, for an answer: the result must not be extended."""
        return replace(self, chosen=self.chosen[:count])

    @property
    def ids(self) -> list[str]:
        """Ids of all notes that an answer would name, duplicates included."""
        return [note_id for one in self.chosen for note_id in (one.id, *one.duplicates)]

    def extended(self, block: Sequence[Hit], rows: IndexRows | None, known: NotesById, count: int) -> Selection:
        """Return the selection with notes of one more block, up to `count` notes in all. `rows`: the rows of the block;
        None where the options are plain. A note that was not read counts for caps by its row, and has no boosts."""
        if not block:
            return self
        if self.options.plain or rows is None:
            living = (hit for hit in block if known.get(hit.id, hit) is not None)
            chosen = [Chosen(hit.id, hit.score) for hit, _ in zip(living, range(count - len(self)), strict=False)]
            return Selection(self.options, (*self.chosen, *chosen))
        return _Greedy(self, block, rows, known).choose(count)


class _Greedy:
    """The extension of a selection by one block."""

    def __init__(self, selection: Selection, block: Sequence[Hit], rows: IndexRows, known: NotesById) -> None:
        self._options = selection.options
        self._block = block
        self._rows = rows
        vectors = self._vectors = rows.vectors if self._options.needs_vectors else None
        self._known = known
        self._chosen = list(selection.chosen)
        self._places: list[int] = []
        """Places in the block of the notes chosen from it."""
        self._earlier = selection.vectors
        self._per_author, self._per_category = Counter(selection.per_author), Counter(selection.per_category)
        self._left_out = Counter(
            max_per_author=selection.left_out.max_per_author,
            max_per_category=selection.left_out.max_per_category,
            collapse_above=selection.left_out.collapse_above,
        )
        relevance: Numbers = self._options.relevance_unit * np.array([hit.score for hit in block], np.float64)
        self._boosts: list[tuple[float, ...]] = [()] * len(block)
        if self._options.boosts:
            self._boosts = [self._boosts_of(hit.id) for hit in block]
            relevance += [sum(boosts) for boosts in self._boosts]
        self._value: Numbers = (1 - self._options.diversity) * relevance
        """Part of each candidate's marginal relevance that does not depend on the notes chosen before; CLOSED for one
        that may not be chosen any more."""
        unavailable_ids = {note_id for note_id, note in known.items() if note is None}
        if unavailable_ids:
            self._value[[hit.id in unavailable_ids for hit in block]] = CLOSED
        self._nearest: Numbers | None = None
        """Largest cosine of each candidate to a chosen note; None before there is one."""
        if vectors is not None and self._earlier is not None and len(self._earlier):
            self._nearest = np.einsum("nd,md->nm", vectors, self._earlier).max(axis=1).astype(np.float64)
            self._close_duplicates(self._nearest)

    def _boosts_of(self, note_id: str) -> tuple[float, ...]:
        stored = self._known.get(note_id)
        return boost_values(self._options.boosts, stored, self._options.now) if stored else ()

    def _close_duplicates(self, cosines: Numbers) -> list[int]:
        """Close the candidates whose cosine is `collapse_above` or more, and return their places; none where there is
        no bound."""
        if self._options.collapse_above is None:
            return []
        duplicates = (self._value > CLOSED) & (cosines >= self._options.collapse_above - ROUNDING)
        places: list[int] = np.flatnonzero(duplicates).tolist()
        self._value[places] = CLOSED
        self._left_out["collapse_above"] += len(places)
        return places

    def choose(self, count: int) -> Selection:
        while len(self._chosen) < count and (place := self._next()) is not None:
            self._value[place] = CLOSED
            if not self._exceeds_cap(place):
                self._take(place)
        return Selection(
            self._options,
            tuple(self._chosen),
            self._chosen_vectors(),
            self._per_author,
            self._per_category,
            LeftOut(**self._left_out),
        )

    def _next(self) -> int | None:
        """Return the place of the candidate with the largest marginal relevance, of equal ones the first; None where
        all are closed."""
        value = self._value
        if self._options.diversity and self._nearest is not None:
            value = value - self._options.diversity * self._nearest
        place = int(value.argmax())
        return place if value.item(place) > CLOSED else None

    def _exceeds_cap(self, place: int) -> bool:
        """Return whether a cap leaves the candidate out; if not, count it."""
        options = self._options
        if options.max_per_author is None and options.max_per_category is None:
            return False
        if stored := self._known.get(self._block[place].id):
            category, author = stored.category, stored.note.author
        else:
            category, author = self._rows.category(place), self._rows.author(place)
        if _full(self._per_author, author, options.max_per_author):
            self._left_out["max_per_author"] += 1
            return True
        if _full(self._per_category, category, options.max_per_category):
            self._left_out["max_per_category"] += 1
            return True
        if author is not None:
            self._per_author[author] += 1
        if category is not None:
            self._per_category[category] += 1
        return False

    def _take(self, place: int) -> None:
        """Choose a candidate, and collapse its duplicates into it."""
        hit, duplicates = self._block[place], tuple[str, ...]()
        if self._vectors is not None:
            cosines: Numbers = np.einsum("nd,d->n", self._vectors, self._vectors[place]).astype(np.float64)
            self._nearest = cosines if self._nearest is None else np.maximum(self._nearest, cosines)
            duplicates = tuple(self._block[i].id for i in self._close_duplicates(cosines))
        self._chosen.append(Chosen(hit.id, hit.score, duplicates, self._boosts[place]))
        self._places.append(place)

    def _chosen_vectors(self) -> Vectors | None:
        if self._vectors is None:
            return self._earlier
        vectors = self._vectors[self._places]
        return vectors if self._earlier is None else np.concatenate([self._earlier, vectors])


def _full(counts: Counter[str], name: str | None, bound: int | None) -> bool:
    """Return whether a name has as many notes as allowed. Notes without a name have no bound."""
    return bound is not None and name is not None and counts[name] >= bound
