"""GET /notes/{id}/similar and POST /similar."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Self

from pydantic import BaseModel, Field, StringConstraints

from service.api.schemas.common import MAX_ATTRIBUTES, MAX_HASHTAGS, Name, NoteId, TaggedText, Time, Wire
from service.api.schemas.filter import FilterIn
from service.filters import Filter
from service.records import Similar

MAX_EXCLUDED = 1000
"""Bound on the ids that a search leaves out, published at GET /limits."""


Attributed = Annotated[
    str,
    StringConstraints(pattern=r"^[^:]{1,128}:", max_length=1200),
    Field(description="name:value; a value that is no text as JSON has it", examples=["language:en"]),
]
K = Annotated[int, Field(ge=1, description="how many notes; the upper bound is max_k of GET /limits")]
Score = Annotated[float, Field(ge=-1, le=1, description="least cosine", allow_inf_nan=False)]


class SearchOptions(Wire):
    """Options of a search, of which most narrow what may be returned; for query strings and bodies alike."""

    k: K = 10
    category: Name | None = None
    hashtag: list[Name] = Field([], max_length=MAX_HASHTAGS, description="notes that carry any of them")
    all_hashtag: list[Name] = Field([], max_length=MAX_HASHTAGS, description="notes that carry each of them")
    author: Name | None = None
    created_after: Time | None = Field(None, description="exclusive")
    created_before: Time | None = Field(None, description="exclusive")
    attribute: list[Attributed] = Field([], max_length=MAX_ATTRIBUTES, description="each: a name and its value")
    exclude: list[NoteId] = Field([], max_length=MAX_EXCLUDED, description="ids never to return")
    min_score: Score | None = None
    exact: bool = Field(False, description="compare with every note, however many there are")

    def as_filter(self) -> Filter:
        return Filter(
            category=self.category,
            hashtags=tuple(self.hashtag),
            author=self.author,
            created_after=self.created_after.timestamp() if self.created_after else None,
            created_before=self.created_before.timestamp() if self.created_before else None,
            all_hashtags=tuple(self.all_hashtag),
            attributes=tuple(_name_and_value(attribute) for attribute in self.attribute),
            exclude=frozenset(self.exclude),
            exact=self.exact,
        )


class SimilarQuery(SearchOptions):
    """GET /notes/{id}/similar."""

    min_log_position: Annotated[str, StringConstraints(pattern=r"^\d{1,15}-\d{1,15}$")] | None = Field(
        None, description="answer only from an index that has reached this log position"
    )


class SimilarIn(TaggedText, SearchOptions):
    """POST /similar. A note has to pass `filter` and all other options."""

    filter: FilterIn | None = Field(None, description="conditions in groups, and up to 10,000 ids to leave out")

    def as_filter(self) -> Filter:
        flat = super().as_filter()
        if self.filter is None:
            return flat
        filter = self.filter.as_filter()
        return replace(flat, clause=filter.clause, exclude=flat.exclude | filter.exclude)


class SimilarItem(BaseModel):
    id: str
    score: float = Field(description="cosine; higher is closer")
    title: str | None = Field(description="null in a degraded answer, as all below")
    hashtags: list[str] | None
    category: str | None
    author: str | None


class SimilarOut(BaseModel):
    """`complete`: the items are min(k, matches). `note_id`: null for a text. `degraded`: the store is away, so that
    only ids and scores are known, and were not checked."""

    note_id: str | None
    items: list[SimilarItem]
    complete: bool
    degraded: bool
    model: str
    log_position: str

    @classmethod
    def of(cls, similar: Similar, note_id: str | None, model: str) -> Self:
        items = [
            SimilarItem(
                id=stored.note.id,
                score=score,
                title=None if similar.degraded else stored.note.title,
                hashtags=None if similar.degraded else list(stored.hashtags),
                category=stored.category,
                author=stored.note.author,
            )
            for stored, score in similar.items
        ]
        return cls(
            note_id=note_id,
            items=items,
            complete=similar.complete,
            degraded=similar.degraded,
            model=model,
            log_position=similar.log_position,
        )


def _name_and_value(attribute: str) -> tuple[str, str]:
    """Parse `name:value`; the value may hold further colons."""
    name, _, value = attribute.partition(":")
    return name, value
