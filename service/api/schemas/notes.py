"""POST /notes, and GET, PUT, PATCH, DELETE /notes/{id}."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, field_validator
from pydantic_core import PydanticCustomError

from model.note import Attribute, Note, normalise_hashtags
from service.adding import Added
from service.api.schemas.common import MAX_ATTRIBUTES, Hashtags, Name, NoteId, TaggedText, Time, Wire
from service.api.schemas.generate import CategoryOut, HashtagOut, LanguageSupported, Truncated, UsageOut
from service.api.schemas.problem import Problem
from service.records import Removed, StoredNote

AttributeValue = (
    Annotated[str, StringConstraints(max_length=1024)] | bool | int | Annotated[float, Field(allow_inf_nan=False)]
)


def _check_count(attributes: Any) -> Any:
    """Refuse too many attributes before any is validated: pydantic counts last, after up to four errors for each."""
    if isinstance(attributes, dict) and len(attributes) > MAX_ATTRIBUTES:
        raise PydanticCustomError(
            "too_long",
            "Dictionary should have at most {most} items, not {count}",
            {"most": MAX_ATTRIBUTES, "count": len(attributes)},
        )
    return attributes


Attributes = Annotated[dict[Name, AttributeValue], Field(max_length=MAX_ATTRIBUTES), BeforeValidator(_check_count)]


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
    def _check_in_future(cls, time: datetime | None) -> datetime | None:
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
        """Return the whole note after the change. Raises ValidationError when that is not a valid note."""
        changes = {name: getattr(self, name) for name in self.model_fields_set}
        kept_when_null = {"title", "content", "hashtags", "attributes", "created_at"}
        changes = {name: value for name, value in changes.items() if value is not None or name not in kept_when_null}
        return NoteIn.model_validate({**note_fields(note), **changes})


class GeneratedOut(BaseModel):
    """Hashtags and category that the model wrote, as the author left them out. `hashtags_reason`: why there is none."""

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


class RemovedOut(BaseModel):
    """Receipt of a removal, which is durable: its place in the log, and the store's time of it."""

    id: str
    log_position: str
    removed_at: datetime

    @classmethod
    def of(cls, note_id: str, removed: Removed) -> Self:
        return cls(id=note_id, log_position=removed.position, removed_at=datetime.fromtimestamp(removed.time, UTC))


class AddedOut(BaseModel):
    """A note was added: it is durable, and found by similar. `revision` 1 means created. `truncated` and
    `language_supported`: null where the stored vector sufficed, so that the model read nothing."""

    id: str
    revision: int
    status: Literal["indexed"] = "indexed"
    log_position: str
    model: str
    hashtags: list[str]
    category: str | None
    generated: GeneratedOut | None = None
    usage: UsageOut
    truncated: Truncated | None
    language_supported: LanguageSupported | None

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
            truncated=added.truncated,
            language_supported=added.language_supported,
        )


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
    truncated: Truncated | None = None
    language_supported: LanguageSupported | None = None
    replayed: Literal[True] | None = Field(None, description="an earlier request under this key had this result")
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
                "truncated": added.truncated,
                "language_supported": added.language_supported,
                "replayed": added.replayed or None,
            }
        )


class BatchOut(BaseModel):
    results: list[BatchItem]
    model: str


def generated_of(stored: StoredNote, hashtags_reason: str | None) -> GeneratedOut | None:
    """Generated hashtags and category of a note; None where the model wrote neither."""
    generated = stored.generated
    if generated.hashtags is None and generated.category is None:
        return None
    return GeneratedOut(
        hashtags=None if generated.hashtags is None else [HashtagOut.of(h) for h in generated.hashtags],
        hashtags_reason=hashtags_reason,
        category=None if generated.category is None else CategoryOut.of(generated.category),
    )


def note_fields(note: Note) -> dict[str, Any]:
    """Fields that the author gave, with times as datetimes."""
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
