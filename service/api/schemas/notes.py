"""POST /notes, and GET, PUT, PATCH, DELETE /notes/{id}."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)
from pydantic_core import PydanticCustomError

from model.note import Attribute, Note, normalise_hashtags
from service.adding import Added
from service.api.schemas.common import FIRST_TIME, MAX_ATTRIBUTES, Hashtags, Name, NoteId, TaggedText, Time, Wire
from service.api.schemas.generate import (
    BelowMin,
    BelowMinOut,
    CategoryOut,
    HashtagOut,
    LanguageSupported,
    Truncated,
    UsageOut,
)
from service.api.schemas.problem import Problem
from service.records import GeneratedField, Removed, StoredNote

EMPTY = {
    "title": 'send "" to empty it',
    "content": 'send "" to empty it',
    "hashtags": "send [] to remove all of them",
    "attributes": "send {} to remove all of them",
    "created_at": "a note always has this one; leave it out to keep it",
}
"""How to empty the fields of a note that null does not clear."""
MAX_ATTRIBUTE = 1024
"""Bound on the characters of an attribute."""
MIN_NUMBER, MAX_NUMBER = -(2.0**63), 2.0**64
"""Bounds on a float of an attribute, both exclusive: an integer beyond them is parsed as a float, without its last
digits."""
EXACT_NUMBERS = "integers are kept exactly, and numbers from 2^64 on, or below -2^63, are refused: send a text"


def _check_type(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Refuse a value with one error, at the attribute: pydantic has one for each type, at places that no body has."""
    try:
        return validate(value)
    except ValidationError as error:
        message = "must be a string of at most {most} characters, a boolean, or a finite number"
        raise PydanticCustomError("attribute", message, {"most": MAX_ATTRIBUTE}) from error


AttributeValue = Annotated[
    Annotated[str, StringConstraints(max_length=MAX_ATTRIBUTE)]
    | bool
    | int
    | Annotated[float, Field(allow_inf_nan=False)],
    WrapValidator(_check_type),
]


def _check_count(attributes: Any) -> Any:
    """Refuse too many attributes before any is validated: pydantic counts last."""
    if isinstance(attributes, dict) and len(attributes) > MAX_ATTRIBUTES:
        raise PydanticCustomError(
            "too_long",
            "Dictionary should have at most {most} items, not {count}",
            {"most": MAX_ATTRIBUTES, "count": len(attributes)},
        )
    return attributes


def _check_size(value: Any) -> Any:
    """Refuse a number that may have been an integer with more digits than are left of it."""
    if isinstance(value, float) and math.isfinite(value) and not MIN_NUMBER < value < MAX_NUMBER:
        raise PydanticCustomError("number_size", "must lie between -2^63 and 2^64 to be kept exactly; send a text")
    return value


StoredAttributes = Annotated[
    dict[Name, AttributeValue], Field(max_length=MAX_ATTRIBUTES), BeforeValidator(_check_count)
]
"""Attributes that may have been stored before the size of numbers was bounded."""
Attributes = Annotated[
    dict[Name, Annotated[AttributeValue, BeforeValidator(_check_size)]],
    Field(max_length=MAX_ATTRIBUTES),
    BeforeValidator(_check_count),
]


class NoteIn(TaggedText):
    """A note as a caller gives it; a missing id is made (ULID), a missing created_at is the time of arrival."""

    id: NoteId | None = Field(None, examples=["kyoto-1"])
    category: Name | None = Field(None, examples=["Travel"])
    author: Name | None = Field(None, examples=["tomhikes"])
    created_at: Time | None = Field(None, examples=["2026-05-01T09:30:00Z"])
    expires_at: Time | None = Field(None, description="never returned from this time on")
    attributes: Attributes = Field({}, description=f"kept and returned; {EXACT_NUMBERS}")

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


class EarlierNoteIn(NoteIn):
    """A note as a caller gave it at some earlier time, from the store or an export."""

    attributes: StoredAttributes = Field({}, description="kept and returned")


class NotePatch(Wire):
    """Fields to change; those left out stay. null clears category, author and expires_at; "", [] and {} empty the
    others. A category or hashtags that the model generated go likewise."""

    # Of what is left out no default is read. A factory's is not in the OpenAPI, where it would say what PATCH does not.
    title: str = Field(default_factory=str)
    content: str = Field(default_factory=str)
    hashtags: Hashtags = Field(default_factory=list)
    category: Name | None = None
    author: Name | None = None
    created_at: Time = Field(default_factory=lambda: FIRST_TIME)
    expires_at: Time | None = None
    attributes: Attributes = Field(
        default_factory=dict, description=f"replaces all of them: send also those that are to stay; {EXACT_NUMBERS}"
    )

    @field_validator(*EMPTY, mode="before")
    @classmethod
    def _refuse_null(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None:
            message = "null clears category, author and expires_at alone; {how}"
            raise PydanticCustomError("null", message, {"how": EMPTY[info.field_name or ""]})
        return value

    @property
    def drops(self) -> frozenset[GeneratedField]:
        """Generated fields that the change takes back: those that it empties."""
        emptied: dict[GeneratedField, bool] = {
            "category": self.category is None,
            "hashtags": not normalise_hashtags(self.hashtags),
        }
        return frozenset(name for name, is_empty in emptied.items() if is_empty and name in self.model_fields_set)

    def merged(self, note: Note) -> EarlierNoteIn:
        """Return the whole note after the change. Raises ValidationError when that is not a valid note."""
        changes = {name: getattr(self, name) for name in self.model_fields_set}
        return EarlierNoteIn.model_validate({**note_fields(note), **changes})


class GeneratedOut(BaseModel):
    """Hashtags and category that the model wrote, as the author left them out. `hashtags_reason`: why there is none.
    `category`: none with a probability below NOTELLM_MIN_CATEGORY_PROBABILITY. `below_min`: what this write found and
    left out; it is not stored."""

    hashtags: list[HashtagOut] | None = None
    hashtags_reason: str | None = None
    category: CategoryOut | None = None
    below_min: BelowMin = None


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
        return cls(revision=stored.revision, log_position=stored.position, generated=generated_of(stored), **fields)


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
    outcome: Literal["created", "updated", "unchanged"] = Field(description="as `status` of an item of a list")
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
            outcome=added.status,
            log_position=stored.position,
            model=model,
            hashtags=list(stored.hashtags),
            category=stored.category,
            generated=generated_of(stored, added),
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
                "generated": generated_of(stored, added),
                "usage": UsageOut.of(added.usage),
                "truncated": added.truncated,
                "language_supported": added.language_supported,
                "replayed": added.replayed or None,
            }
        )


class BatchOut(BaseModel):
    results: list[BatchItem]
    model: str


def generated_of(stored: StoredNote, added: Added | None = None) -> GeneratedOut | None:
    """Generated hashtags and category of a note, and what the write `added` says of them; None where the model wrote
    neither, and left out neither."""
    generated = stored.generated
    below_min = BelowMinOut.of(added.below_min.hashtags, added.below_min.category) if added else None
    if generated.hashtags is None and generated.category is None and below_min is None:
        return None
    return GeneratedOut(
        hashtags=None if generated.hashtags is None else [HashtagOut.of(h) for h in generated.hashtags],
        hashtags_reason=added and added.hashtags_reason,
        category=None if generated.category is None else CategoryOut.of(generated.category),
        below_min=below_min,
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
