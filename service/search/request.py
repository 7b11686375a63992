"""SearchRequest: a search for related notes with all its options, as the API layer passes it on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from model.note import Note
from service.filters import Filter
from service.fingerprint import fingerprint
from service.ranking.boosts import Boost
from service.ranking.strategies import Strategy

FIRST_PAGE = "*"
"""Cursor that requests the first page of a list, and makes the list."""
SourceName = Literal["content", "words", "behaviour"]
"""Names of sources of candidates. `content`: the vectors. `words`: the words that notes share with the examples.
`behaviour`: what readers read after the examples."""
OTHER_SOURCES: tuple[SourceName, ...] = ("words", "behaviour")
"""Sources beside the vectors."""
SourceWeights = tuple[tuple[SourceName, float], ...]
"""Sources with their weights. `content` is always among them."""
CONTENT: SourceWeights = (("content", 1.0),)
AUTO: Literal["auto"] = "auto"
"""Value in place of weights: all sources, with weights that the service chooses. Words then have only a share of their
weight, which rises with the best word score of the query (docs/log/words.md, docs/guides/behaviour.md)."""
Sources = SourceWeights | Literal["auto"]
OnMissing = Literal["error", "skip"]
"""Whether a missing example fails the request, or is left out. An example is missing where there is no such note, the
note cannot be read, or its vector is from another model."""


@dataclass(frozen=True, slots=True)
class Example:
    """A note that results should be like, or unlike: the id of a stored note, or a text. `pointer`: JSON pointer to it
    in the request body; "" for a note that the URL names."""

    note_id: str | None = None
    note: Note | None = None
    weight: float = 1.0
    pointer: str = ""

    @property
    def text(self) -> tuple[str, str, tuple[str, ...]] | None:
        """Text that the model reads; None for a stored note."""
        return self.note.prompt_text if self.note else None


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """A search for related notes. ranking/strategies.py, boosts.py and selection.py say what its fields do.

    `cursor`: None for a single answer, FIRST_PAGE for the first page of a list, else `next_cursor` of the page before.
    """

    positive: tuple[Example, ...] = ()
    negative: tuple[Example, ...] = ()
    strategy: Strategy = "average"
    k: int = 10
    cursor: str | None = None
    where: Filter = field(default_factory=Filter)
    min_score: float | None = None
    diversity: float = 0.0
    max_per_author: int | None = None
    max_per_category: int | None = None
    collapse_above: float | None = None
    boosts: tuple[Boost, ...] = ()
    sources: Sources = CONTENT
    explain: bool = False
    on_missing: OnMissing = "error"

    @property
    def examples(self) -> tuple[Example, ...]:
        """Positive examples, then the negative ones."""
        return self.positive + self.negative

    @property
    def texts(self) -> list[Note]:
        """Examples that the model has to read, in their order."""
        return [example.note for example in self.examples if example.note]

    @property
    def fingerprint(self) -> str:
        """Digest of everything but `k` and `cursor`, the same in every process: pages of one list share it."""
        return fingerprint(replace(self, k=0, cursor=None))
