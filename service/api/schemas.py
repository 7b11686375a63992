"""The wire: what callers send and get. Field names are fixed; more fields may come."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from model.generation import MAX_CATEGORY_TOKENS, CategoryProbability, GenerationOutput, Hashtag, HashtagPolicy, Usage
from model.note import Attribute, Note, normalise_hashtags
from service.api.bodies import MAX_CONTAINERS
from service.errors import MAX_ERRORS
from service.filters import Filter
from service.recommender import Added, Similar
from service.records import StoredNote
from service.verify import KINDS, Kind, Report

MAX_HASHTAGS = 30
MAX_GENERATED = 10
MAX_CATEGORIES = 500
MAX_BLOCKED = 1000
MAX_EXCLUDED = 1000
MAX_ATTRIBUTES = 32
MAX_REPORTED_IDS = 20
"""Ids that a report of `verify` names of each kind."""
FIRST_TIME = datetime(1970, 1, 1, tzinfo=UTC)
LAST_TIME = datetime(2200, 1, 1, tzinfo=UTC)


def _in_range(time: datetime) -> datetime:
    if not FIRST_TIME <= time < LAST_TIME:
        raise PydanticCustomError("time_range", "must lie between the years 1970 and 2199")
    return time


NoteId = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_~][A-Za-z0-9_.:~-]{0,127}$"),
    Field(description="1 to 128 of A-Z a-z 0-9 _ . : ~ -, not starting with . : -", examples=["sample-en-001"]),
]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=128)]
Time = Annotated[AwareDatetime, AfterValidator(_in_range)]
AttributeValue = (
    Annotated[str, StringConstraints(max_length=1024)] | bool | int | Annotated[float, Field(allow_inf_nan=False)]
)
Attributed = Annotated[
    str,
    StringConstraints(pattern=r"^[^:]{1,128}:", max_length=1200),
    Field(description="name:value; a value that is no text as JSON has it", examples=["language:en"]),
]
K = Annotated[int, Field(ge=1, description="how many notes; the upper bound is max_k of GET /limits")]
Score = Annotated[float, Field(ge=-1, le=1, description="least cosine", allow_inf_nan=False)]
Hashtags = Annotated[
    list[str],
    Field(max_length=MAX_HASHTAGS, description="normalised: no '#', single spaces, of equal ones the first"),
]


def _few(attributes: Any) -> Any:
    """Refuses too many before each of them is looked at: pydantic counts at the end, with four errors for each."""
    if isinstance(attributes, dict) and len(attributes) > MAX_ATTRIBUTES:
        raise PydanticCustomError(
            "too_long",
            "Dictionary should have at most {most} items, not {count}",
            {"most": MAX_ATTRIBUTES, "count": len(attributes)},
        )
    return attributes


Attributes = Annotated[dict[Name, AttributeValue], Field(max_length=MAX_ATTRIBUTES), BeforeValidator(_few)]


class Wire(BaseModel):
    """Unknown fields are an error, not a silence. No error repeats what was given, which is not for a log."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _few_unknown(cls, value: Any) -> Any:
        """Makes one error of many unknown fields: a body has room for a hundred thousand."""
        if isinstance(value, dict) and len(value) > MAX_ERRORS:
            known = cls.model_fields.keys()
            unknown = [name for name in value if name not in known]
            if len(unknown) > MAX_ERRORS:
                names = ", ".join(repr(name[:40]) for name in unknown[:3])
                message = "has {count} fields that are not known, the first of them {names}"
                raise PydanticCustomError("unknown_fields", message, {"count": len(unknown), "names": names})
        return value


class Text(Wire):
    """A title and a content, of which one at least says something."""

    title: str = Field("", examples=["Three days in Kyoto on a small budget"])
    content: str = Field(
        "",
        validate_default=True,
        examples=["Buses all day for 700 yen, temples before eight."],
    )

    @field_validator("content")
    @classmethod
    def _says_something(cls, content: str, info: ValidationInfo) -> str:
        if not (content.strip() or info.data.get("title", "?").strip()):
            raise PydanticCustomError("empty", "title and content must not both be empty")
        return content

    def as_note(self) -> Note:
        return Note(title=self.title, content=self.content)


class TaggedText(Text):
    hashtags: Hashtags = Field([], examples=[["kyoto", "budget travel"]])

    def as_note(self) -> Note:
        return Note(title=self.title, content=self.content, hashtags=normalise_hashtags(self.hashtags))


class NoteIn(TaggedText):
    """A note as a caller gives it; a missing id is made (ULID), a missing created_at is the time of arrival."""

    id: NoteId | None = Field(None, examples=["kyoto-1"])
    category: Name | None = Field(None, examples=["Travel"])
    author: Name | None = Field(None, examples=["tomhikes"])
    created_at: Time | None = Field(None, examples=["2026-05-01T09:30:00Z"])
    expires_at: Time | None = Field(None, description="never returned from this time on")
    attributes: Attributes = Field({}, description="kept and returned")

    @field_validator("expires_at")
    @classmethod
    def _not_expired(cls, time: datetime | None) -> datetime | None:
        if time is not None and time <= datetime.now(UTC):
            raise PydanticCustomError("expired", "must lie in the future")
        return time

    def as_note(self, note_id: str | None = None) -> Note:
        return Note(
            id=note_id or self.id or "",
            title=self.title,
            content=self.content,
            hashtags=normalise_hashtags(self.hashtags),
            category=self.category,
            author=self.author,
            created_at=self.created_at.timestamp() if self.created_at else None,
            expires_at=self.expires_at.timestamp() if self.expires_at else None,
            attributes=dict(self.attributes),
        )


class NotePatch(Wire):
    """Fields to change; those left out stay. null clears category, author, expires_at."""

    title: str | None = None
    content: str | None = None
    hashtags: Hashtags | None = None
    category: Name | None = None
    author: Name | None = None
    created_at: Time | None = None
    expires_at: Time | None = None
    attributes: Attributes | None = None

    def merged(self, note: Note) -> NoteIn:
        """The whole note after the change; raises ValidationError when it is not acceptable as one."""
        changes = {name: getattr(self, name) for name in self.model_fields_set}
        kept_when_null = {"title", "content", "hashtags", "attributes", "created_at"}
        changes = {n: v for n, v in changes.items() if v is not None or n not in kept_when_null}
        return NoteIn.model_validate({**note_fields(note), **changes})


class HashtagOut(BaseModel):
    text: str
    score: float = Field(
        description="in (0, 1]: probability that the model writes it first; of grounded ones, that and how many of the "
        "nearest notes carry it, together"
    )
    notes: list[str] = Field(
        [], description="of grounded ones: the nearest notes that carry it", exclude_if=lambda notes: not notes
    )

    @classmethod
    def of(cls, hashtag: Hashtag) -> Self:
        return cls(text=hashtag.text, score=hashtag.score, notes=list(hashtag.notes))


class CategoryOut(BaseModel):
    name: str
    probability: float = Field(description="exact, among the closed set")

    @classmethod
    def of(cls, category: CategoryProbability) -> Self:
        return cls(name=category.name, probability=category.probability)


class UsageOut(BaseModel):
    """The note's tokens are counted once, however much is read from them."""

    prompt_tokens: int = 0
    generated_tokens: int = 0

    @classmethod
    def of(cls, usage: Usage) -> Self:
        return cls(prompt_tokens=usage.prompt_tokens, generated_tokens=usage.generated_tokens)


class GeneratedOut(BaseModel):
    """What the model wrote because the author left it out. `hashtags_reason`: why there is none."""

    hashtags: list[HashtagOut] | None = None
    hashtags_reason: str | None = None
    category: CategoryOut | None = None


class NoteOut(BaseModel):
    """A stored note; hashtags and category are the author's, or else the generated ones."""

    id: str
    revision: int
    log_position: str
    title: str
    content: str
    hashtags: list[str]
    category: str | None
    author: str | None
    created_at: datetime | None
    expires_at: datetime | None
    attributes: dict[str, Attribute]
    generated: GeneratedOut | None

    @classmethod
    def of(cls, stored: StoredNote) -> Self:
        fields = note_fields(stored.note) | {"hashtags": list(stored.hashtags), "category": stored.category}
        return cls(
            revision=stored.revision, log_position=stored.position, generated=generated_of(stored, None), **fields
        )


class AddedOut(BaseModel):
    """A note was added: it is durable, and found by similar. `revision` 1 means created."""

    id: str
    revision: int
    status: Literal["indexed"] = "indexed"
    log_position: str
    model: str
    hashtags: list[str]
    category: str | None
    generated: GeneratedOut | None = None
    usage: UsageOut

    @classmethod
    def of(cls, added: Added, model: str) -> Self:
        stored = added.stored
        return cls(
            id=stored.note.id,
            revision=stored.revision,
            log_position=stored.position,
            model=model,
            hashtags=list(stored.hashtags),
            category=stored.category,
            generated=generated_of(stored, added.hashtags_reason),
            usage=UsageOut.of(added.usage),
        )


class FieldProblem(BaseModel):
    pointer: str = Field(description="JSON pointer: /title in the body, /query/k in the query")
    detail: str


class Problem(BaseModel):
    """RFC 9457. `detail` says what the caller can do."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = Field(None, description="the request's id")
    errors: list[FieldProblem] | None = None


class BatchItem(BaseModel):
    """One note's result, at its place in the request."""

    id: str | None = None
    status: Literal["created", "updated", "unchanged", "rejected"]
    revision: int | None = None
    log_position: str | None = None
    hashtags: list[str] | None = None
    category: str | None = None
    generated: GeneratedOut | None = None
    usage: UsageOut | None = None
    problem: Problem | None = None

    @classmethod
    def of(cls, added: Added) -> Self:
        stored = added.stored
        return cls.model_validate(
            {
                "id": stored.note.id,
                "status": added.status,
                "revision": stored.revision,
                "log_position": stored.position,
                "hashtags": list(stored.hashtags),
                "category": stored.category,
                "generated": generated_of(stored, added.hashtags_reason),
                "usage": UsageOut.of(added.usage),
            }
        )


class BatchOut(BaseModel):
    results: list[BatchItem]
    model: str


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


class SearchOptions(Wire):
    """Which notes may be returned: for the query string and for bodies alike."""

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
            attributes=tuple((name, value) for name, _, value in (each.partition(":") for each in self.attribute)),
            exclude=frozenset(self.exclude),
            exact=self.exact,
        )


class SimilarQuery(SearchOptions):
    """GET /notes/{id}/similar."""

    min_log_position: Annotated[str, StringConstraints(pattern=r"^\d{1,15}-\d{1,15}$")] | None = Field(
        None, description="answer only from an index that has reached this log position"
    )


class SimilarIn(TaggedText, SearchOptions):
    """POST /similar."""


class HashtagRules(Wire):
    """Which hashtags may be told."""

    policy: HashtagPolicy | None = Field(
        None,
        description="open: whatever the model writes; known: of that, only what authors of stored notes use; grounded: "
        "the best of what it writes and of what near notes carry, by vectors and by words; empty: the service's own",
    )
    blocked: list[Name] = Field([], max_length=MAX_BLOCKED, description="never told, whatever their case and spacing")


class HashtagsIn(Text, HashtagRules):
    count: int = Field(5, ge=1, le=MAX_GENERATED)


class HashtagsOut(BaseModel):
    hashtags: list[HashtagOut]
    reason: str | None = Field(None, description="why the list is empty")
    model: str
    usage: UsageOut

    @classmethod
    def of(cls, reading: GenerationOutput, model: str) -> Self:
        return cls(
            hashtags=[HashtagOut.of(h) for h in reading.hashtags or ()],
            reason=reading.hashtags_reason,
            model=model,
            usage=UsageOut.of(reading.usage),
        )


class CategoryIn(TaggedText):
    categories: list[Name] = Field(
        [], max_length=MAX_CATEGORIES, description="the closed set; empty: the service's own", examples=[[]]
    )
    min_probability: float = Field(0.0, ge=0, le=1, description="below it no category is told: the model abstains")

    def chosen(self, reading: GenerationOutput) -> CategoryProbability | None:
        """The most probable category; None where it is not probable enough."""
        (best, *_) = reading.categories or ()
        return best if best.probability >= self.min_probability else None


class GenerateIn(CategoryIn, HashtagRules):
    """POST /generate."""


class CategoryPrediction(BaseModel):
    """The most probable category; `alternatives` are the others, most probable first. `abstain`: none is as probable as
    was asked; then `category` is null, and all are alternatives."""

    category: str | None
    probability: float | None
    abstain: bool
    alternatives: list[CategoryOut]
    model: str
    usage: UsageOut

    @classmethod
    def of(cls, reading: GenerationOutput, chosen: CategoryProbability | None, model: str) -> Self:
        return cls(
            category=chosen and chosen.name,
            probability=chosen and chosen.probability,
            abstain=chosen is None,
            alternatives=[CategoryOut.of(c) for c in reading.categories or () if c != chosen],
            model=model,
            usage=UsageOut.of(reading.usage),
        )


class GenerateOut(BaseModel):
    """Vector, hashtags and category of one text, from one prefill."""

    embedding: list[float] = Field(description="unit length")
    hashtags: list[HashtagOut]
    reason: str | None = Field(None, description="why there are no hashtags")
    category: CategoryOut | None = Field(description="null: none is as probable as was asked")
    model: str
    usage: UsageOut


class LimitsOut(BaseModel):
    """Every bound; over one of them a request gets 413 or 422, which names it."""

    max_body_bytes: int
    max_note_bytes: int
    max_batch_notes: int
    max_k: int
    max_hashtags: int = MAX_HASHTAGS
    max_generated_hashtags: int = MAX_GENERATED
    max_categories: int = MAX_CATEGORIES
    max_category_tokens: int = MAX_CATEGORY_TOKENS
    max_blocked_hashtags: int = MAX_BLOCKED
    max_excluded: int = MAX_EXCLUDED
    max_attributes: int = MAX_ATTRIBUTES
    max_containers: int = Field(MAX_CONTAINERS, description="lists and objects of one note or body, itself included")
    queue_notes: int
    request_seconds: float


class Check(BaseModel):
    ok: bool
    detail: str


class ReadyOut(BaseModel):
    """`durable`: whether an acknowledged note survives the death of Redis."""

    ready: bool
    checks: dict[Literal["store", "index", "engine"], Check]
    durable: bool | None
    model: str
    space: str
    log_position: str
    notes: int
    notes_of_another_model: int


class Differing(BaseModel):
    """`ids`: the first MOST_NAMED."""

    count: int
    ids: list[str]

    @classmethod
    def of(cls, ids: Sequence[str]) -> Self:
        return cls(count=len(ids), ids=list(ids[:MAX_REPORTED_IDS]))


class VerifyOut(BaseModel):
    """`well`: nothing differs, or all that did was `repaired`."""

    well: bool
    repaired: bool
    notes: int
    rows: int
    notes_of_another_model: int
    differing: dict[Kind, Differing] = Field(description="; ".join(f"{kind}: {what}" for kind, what in KINDS.items()))

    @classmethod
    def of(cls, report: Report) -> Self:
        return cls(
            well=report.well,
            repaired=report.repaired,
            notes=report.notes,
            rows=report.rows,
            notes_of_another_model=report.other_space,
            differing={kind: Differing.of(ids) for kind, ids in report.differing.items()},
        )


def generated_of(stored: StoredNote, hashtags_reason: str | None) -> GeneratedOut | None:
    """None where the model wrote nothing."""
    g = stored.generated
    if g.hashtags is None and g.category is None:
        return None
    return GeneratedOut(
        hashtags=None if g.hashtags is None else [HashtagOut.of(h) for h in g.hashtags],
        hashtags_reason=hashtags_reason,
        category=None if g.category is None else CategoryOut.of(g.category),
    )


def note_fields(note: Note) -> dict[str, Any]:
    """The author's own fields, with times as datetimes."""
    return {
        "id": note.id,
        "title": note.title,
        "content": note.content,
        "hashtags": list(note.hashtags),
        "category": note.category,
        "author": note.author,
        "created_at": _datetime(note.created_at),
        "expires_at": _datetime(note.expires_at),
        "attributes": dict(note.attributes),
    }


def _datetime(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
