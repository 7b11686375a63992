"""Options of a search that a query string can hold, and its answer. search.py has the bodies."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, Field, PrivateAttr, StringConstraints

from model.note import Attribute
from service.api.schemas.common import (
    Label,
    LogPosition,
    ModelName,
    NoteId,
    ReaderId,
)
from service.api.schemas.filter import FlatFilterIn
from service.api.schemas.notes import CATEGORY_MEANING, HASHTAGS_MEANING, LAST_WRITE, GeneratedOut
from service.filters import Filter
from service.ranking.strategies import Strategy
from service.records import Explanation, RelatedNote, Similar
from service.search.request import AUTO, CONTENT, Example, OnMissing, SearchRequest, Sources
from service.search.verified import KEPT_CHARACTERS

MAX_EXAMPLES = 100
"""Bound on the positive and on the negative examples of a search, published at GET /limits."""
MAX_EXCLUDED = 1000
"""Bound on the ids that a search leaves out, published at GET /limits."""
MAX_CAP = 1000
"""Bound on max_per_author and max_per_category, published at GET /limits: a longer list than this is never kept."""

K = Annotated[int, Field(ge=1, description="number of notes to return, at most max_k of GET /limits")]
Cap = Annotated[int, Field(ge=1, le=MAX_CAP)]
SourcesPreset = Literal["content", "auto"]
IncludedField = Literal["content", "created_at", "expires_at", "attributes", "generated", "revision", "log_position"]
"""Fields of a note that an item has where `include` names them."""
INCLUDED = "only if `include` names it"
DEGRADED = "null in a degraded answer"
Score = Annotated[float, Field(allow_inf_nan=False)]


class SearchOptions(FlatFilterIn):
    """Options that a search takes in a query string and in a body: number of notes, and conditions on them."""

    k: K = 10
    exclude: list[NoteId] = Field([], max_length=MAX_EXCLUDED, description="ids of notes never to return")
    min_score: Score | None = Field(
        None,
        description="minimum score; from -1 to 1, except with the strategy sum_scores or with sources other than "
        "content",
    )
    exact: bool = Field(False, description="true: compare with every note (exact search), however many there are")

    def as_filter(self) -> Filter:
        return replace(super().as_filter(), exclude=frozenset(self.exclude), exact=self.exact)


PLAIN_OPTIONS = SearchOptions.model_fields.keys() | {"min_log_position"}
"""Options of a request that the short path takes: how many notes, which of them, and the log position to wait for."""


class RankingOptions(SearchOptions):
    """The options of a search, and those of its order."""

    min_log_position: LogPosition | None = Field(
        None,
        description="log position that the index must have reached; the search waits for it, or fails with 503",
    )
    diversity: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        0.0, description="weight of novelty in the ranking (maximal marginal relevance); 0: rank by score alone"
    )
    max_per_author: Cap | None = Field(None, description="maximum number of notes by one author")
    max_per_category: Cap | None = Field(None, description="maximum number of notes of one category")
    collapse_above: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = Field(
        None,
        description="minimum cosine similarity of near-duplicates: of these only the best is returned, with the ids "
        "of others in its `duplicates`: of hundreds of copies, not all",
    )
    sources: SourcesPreset = Field(
        "content", description="sources of candidates. content: vectors; auto: also shared words and reading behaviour"
    )
    strategy: Strategy = Field(
        "average",
        description="average: cosine to 2 mean(positive) - mean(negative), weights count within one side only; "
        "best_score: most similar positive against most similar negative example; sum_scores: sum of cosines to "
        "positive minus those to negative examples, weights count across both sides",
    )
    on_missing: OnMissing = Field(
        "error",
        description="an example that does not exist (404), cannot be read or was embedded by another model (409): "
        "error refuses the request; skip leaves it out and lists it in `missing`",
    )
    explain: bool = Field(
        False,
        description="true: explain the score of each item; requires the scope notes.read, as `include` does",
    )
    include: list[IncludedField] = Field(
        [],
        max_length=len(get_args(IncludedField)),
        description="additional note fields of each item, up to `max_read_bytes` of GET /limits in total; requires "
        "the scope notes.read",
    )
    scenario: Label | None = Field(
        None, description="name of a scenario, which sets defaults for other fields; see GET /limits"
    )
    user: ReaderId | None = Field(
        None, description="user that the answer is for; selects the variant of the scenario, and is not stored"
    )
    cursor: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None,
        description='"*" for the first page of a list that is kept for paging; then `next_cursor` of the previous page',
    )

    _variant: str | None = PrivateAttr(None)

    @property
    def variant(self) -> str | None:
        """Name of the variant of the scenario that was chosen; None for none."""
        return self._variant

    def set_variant(self, name: str | None) -> None:
        self._variant = name

    @property
    def plain(self) -> bool:
        """Whether the request has no options but those of the short path (service/search/nearest.py)."""
        return self.model_fields_set <= PLAIN_OPTIONS

    @property
    def scores_like_cosines(self) -> bool:
        """Whether all scores lie between -1 and 1."""
        sources = self.as_sources()
        content_alone = sources != AUTO and all(name == "content" or not weight for name, weight in sources)
        return content_alone and self.strategy != "sum_scores"

    def as_plain(self) -> tuple[int, Filter, float | None]:
        """Return `k`, the filter and the least score."""
        return self.k, self.as_filter(), self.min_score

    def as_request(self, positive: tuple[Example, ...], negative: tuple[Example, ...] = ()) -> SearchRequest:
        """Return the request for these examples."""
        return SearchRequest(
            positive=positive,
            negative=negative,
            strategy=self.strategy,
            k=self.k,
            cursor=self.cursor,
            where=self.as_filter(),
            min_score=self.min_score,
            diversity=self.diversity,
            max_per_author=self.max_per_author,
            max_per_category=self.max_per_category,
            collapse_above=self.collapse_above,
            explain=self.explain,
            sources=self.as_sources(),
            on_missing=self.on_missing,
        )

    def as_sources(self) -> Sources:
        """Return the sources that the name stands for."""
        return AUTO if self.sources == "auto" else CONTENT


class SimilarQuery(RankingOptions):
    """GET /notes/{id}/similar: all that a query string can hold."""

    positive: list[NoteId] = Field(
        [], max_length=MAX_EXAMPLES, description="ids of further stored notes that results should resemble"
    )
    negative: list[NoteId] = Field(
        [], max_length=MAX_EXAMPLES, description="ids of stored notes that results should differ from"
    )

    def examples(self, note_id: str) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """Return the positive examples, of which the note in the URL is the first, and the negative ones."""
        positive = (Example(one, pointer=f"/positive/{i}") for i, one in enumerate(self.positive))
        negative = (Example(one, pointer=f"/negative/{i}") for i, one in enumerate(self.negative))
        return (Example(note_id), *positive), tuple(negative)


class ExplanationOut(BaseModel):
    """Parts of the score by which a note is ranked."""

    positive: list[float | None] = Field(
        description="cosine similarities to the query vectors of the positive examples, in request order; null for a "
        "missing example"
    )
    negative: list[float | None] = Field(
        description="cosine similarities to the query vectors of the negative examples, in request order; null for a "
        "missing example"
    )
    boosts: list[float] = Field(description="amount that each boost added, in request order")
    relevance: float = Field(description="relevance that results from all parts, before diversity")
    shared_hashtags: list[str] = Field(description="hashtags of the note that a positive example also has")
    words: float | None = Field(
        None, description="amount that words shared with the positive examples added; null if words are not a source"
    )
    shared_words: list[str] | None = Field(None, description="rarest of these words; null if words are not a source")
    behaviour: float | None = Field(
        None,
        description="amount that readers who read the note after a positive example added; null if behaviour is not "
        "a source",
    )
    co_readers: float | None = Field(
        None, description="number of these readers, older reads counting less; null if behaviour is not a source"
    )

    @classmethod
    def of(cls, explanation: Explanation) -> Self:
        return cls(
            positive=list(explanation.positive),
            negative=list(explanation.negative),
            boosts=list(explanation.boosts),
            relevance=explanation.relevance,
            shared_hashtags=list(explanation.shared_hashtags),
            words=explanation.words,
            shared_words=None if explanation.words is None else list(explanation.shared_words),
            behaviour=explanation.behaviour,
            co_readers=explanation.co_readers,
        )


class SimilarItem(BaseModel):
    """A related note. Fields from `content` to `explanation` are omitted if they do not apply."""

    id: str = Field(description="id of the note")
    score: float = Field(description="cosine similarity, or the score of the strategy; higher is more similar")
    position: int = Field(description="rank in the whole list, starting at 1")
    title: str | None = Field(description=f"first {KEPT_CHARACTERS:,} characters of the title; {DEGRADED}")
    hashtags: list[str] | None = Field(description=f"{HASHTAGS_MEANING}; {DEGRADED}")
    category: str | None = Field(description=f"{CATEGORY_MEANING}, or if the answer is degraded")
    author: str | None = Field(description="author, as given; null if none, or if the answer is degraded")
    content: str | None = Field(None, description=f"whole content; {INCLUDED}")
    created_at: datetime | None = Field(None, description=f"time of creation; {INCLUDED}")
    expires_at: datetime | None = Field(None, description=f"time from which the note is no longer returned; {INCLUDED}")
    attributes: dict[str, Attribute] | None = Field(None, description=f"attributes by name; {INCLUDED}")
    generated: GeneratedOut | None = Field(None, description=f"what the model generated; {INCLUDED}")
    revision: int | None = Field(None, description=f"revision of the note; {INCLUDED}")
    log_position: str | None = Field(None, description=f"{LAST_WRITE}; {INCLUDED}")
    duplicates: list[str] | None = Field(
        None, description="ids of near-duplicates that this note stands for; only with `collapse_above`"
    )
    explanation: ExplanationOut | None = Field(
        None, description="explanation of the score; only with `explain`, and if the index still has the note"
    )

    @classmethod
    def of(cls, related: RelatedNote, degraded: bool) -> Self:
        stored = related.stored
        item = cls(
            id=stored.note.id,
            score=related.score,
            position=related.position,
            title=None if degraded else stored.note.title[:KEPT_CHARACTERS],
            hashtags=None if degraded else list(stored.hashtags),
            category=stored.category,
            author=stored.note.author,
        )
        if related.duplicates:
            item.duplicates = list(related.duplicates)
        if related.explanation:
            item.explanation = ExplanationOut.of(related.explanation)
        return item


class SimilarOut(BaseModel):
    """Related notes. Fields from `variant` on are omitted if they do not apply."""

    note_id: str | None = Field(description="id of the note in the path; null if the path has none")
    recommendation_id: str = Field(description="id of this answer, the same on all pages of a list; send it in events")
    items: list[SimilarItem] = Field(description="related notes, best first")
    complete: bool = Field(
        description="true: there are `k` items, or no further note matches; false: some may be missing, as while notes "
        "of another model are being read again"
    )
    degraded: bool = Field(
        description="true: the store is unavailable; only ids and scores are known, and were not checked"
    )
    model: ModelName
    log_position: str = Field(description="log position that the index had reached")
    variant: str | None = Field(
        None, description="variant of the scenario that applies to the user; send it in events about this answer"
    )
    next_cursor: str | None = Field(
        None,
        description="`cursor` of the next page; null at the end of the list. It is also null in a degraded answer, "
        "which does not end the list: send the same `cursor` again",
    )
    missing: list[str] | None = Field(
        None,
        description="ids of examples that were left out: they do not exist, cannot be read or were embedded by "
        "another model",
    )
    unread: list[str] | None = Field(
        None,
        description="ids of items whose `include` fields are null, because they exceed `max_read_bytes` in total or "
        "changed meanwhile; read them with POST /notes/get",
    )
    removed: dict[str, int] | None = Field(
        None,
        description="only with `explain`: number of notes left out by `filter` (all conditions), and of candidates "
        "left out by `max_per_author`, `max_per_category` and `collapse_above`, under these names",
    )

    @classmethod
    def of(cls, similar: Similar, note_id: str | None, model: str, variant: str | None = None) -> Self:
        optional: dict[str, Any] = {} if variant is None else {"variant": variant}
        if similar.paged:
            optional["next_cursor"] = similar.next_cursor
        if similar.missing:
            optional["missing"] = list(similar.missing)
        if similar.removed:
            optional["removed"] = dict(similar.removed)
        return cls(
            note_id=note_id,
            recommendation_id=similar.id,
            items=[SimilarItem.of(related, similar.degraded) for related in similar.items],
            complete=similar.complete,
            degraded=similar.degraded,
            model=model,
            log_position=similar.log_position,
            **optional,
        )
