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
from service.api.schemas.common import (
    FIRST_TIME,
    MAX_ATTRIBUTES,
    NOTE_ID_FORM,
    Hashtags,
    ModelName,
    Name,
    NoteId,
    TaggedText,
    Time,
    Wire,
)
from service.api.schemas.generate import (
    LANGUAGE_SUPPORTED,
    TRUNCATED,
    BelowMin,
    BelowMinOut,
    CategoryOut,
    HashtagOut,
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


HASHTAGS_MEANING = "the author's, else those that the model generated"
CATEGORY_MEANING = "the author's, else the one that the model generated; null: neither"
LAST_WRITE = "log position of the note's last write"
READ_NOTHING = "null: the stored vector sufficed, and the model read nothing"


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
    """A note as a caller gives it."""

    id: NoteId | None = Field(None, description=f"{NOTE_ID_FORM}; without it one is made (ULID)", examples=["kyoto-1"])
    category: Name | None = Field(None, description="the author's choice; null: none", examples=["Travel"])
    author: Name | None = Field(None, description="name of the author; null: none", examples=["tomhikes"])
    created_at: Time | None = Field(
        None, description="time of creation; by default the time of arrival", examples=["2026-05-01T09:30:00Z"]
    )
    expires_at: Time | None = Field(None, description="never returned from this time on; null: it does not expire")
    attributes: Attributes = Field({}, description=f"values by name, kept and returned; {EXACT_NUMBERS}")

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

    attributes: StoredAttributes = Field({}, description="values by name, kept and returned")


class NotePatch(Wire):
    """Fields to change; those left out stay as they are."""

    # Of what is left out no default is read. A factory's is not in the OpenAPI, where it would say what PATCH does not.
    title: str = Field(default_factory=str, description='"" empties it, where `content` is not blank')
    content: str = Field(default_factory=str, description='"" empties it, where `title` is not blank')
    hashtags: Hashtags = Field(
        default_factory=list, description="replaces all of them; [] removes them, also generated ones"
    )
    category: Name | None = Field(None, description="null clears it, also a generated one")
    author: Name | None = Field(None, description="null clears it")
    created_at: Time = Field(default_factory=lambda: FIRST_TIME, description="time of creation; cannot be cleared")
    expires_at: Time | None = Field(None, description="never returned from this time on; null: it does not expire")
    attributes: Attributes = Field(
        default_factory=dict,
        description=f"replaces all of them: send also those that are to stay; {{}} removes them; {EXACT_NUMBERS}",
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
    """Hashtags and category that the model generated for a note whose author left them out."""

    hashtags: list[HashtagOut] | None = Field(None, description="the best first; null: not generated")
    hashtags_reason: str | None = Field(
        None, description="why `hashtags` is empty; null where it is not, and where a stored note is read"
    )
    category: CategoryOut | None = Field(
        None, description="null: not generated, or less probable than NOTELLM_MIN_CATEGORY_PROBABILITY"
    )
    below_min: BelowMin = Field(
        None, description="what this write found below a bound, and did not store; missing where there is nothing"
    )


class NoteOut(BaseModel):
    """A stored note."""

    id: str = Field(description="id of the note")
    revision: int = Field(description="1 when the note is created, and 1 more with each write that changes it")
    log_position: str = Field(description=f"{LAST_WRITE}; in quotation marks it is the ETag")
    title: str = Field(description='"" where there is none')
    content: str = Field(description='"" where there is none')
    hashtags: list[str] = Field(description=HASHTAGS_MEANING)
    category: str | None = Field(description=CATEGORY_MEANING)
    author: str | None = Field(description="name of the author; null: none")
    created_at: datetime | None = Field(description="time of creation; null: not known")
    expires_at: datetime | None = Field(description="never returned from this time on; null: it does not expire")
    attributes: dict[str, Attribute] = Field(description="values by name, as they were sent")
    generated: GeneratedOut | None = Field(description="what the model generated; null: nothing")

    @classmethod
    def of(cls, stored: StoredNote) -> Self:
        fields = note_fields(stored.note) | {"hashtags": list(stored.hashtags), "category": stored.category}
        return cls(revision=stored.revision, log_position=stored.position, generated=generated_of(stored), **fields)


class RemovedOut(BaseModel):
    """Receipt of a removal, which is durable."""

    id: str = Field(description="id of the removed note")
    log_position: str = Field(description="log position of the removal")
    removed_at: datetime = Field(description="time of the removal, by the store's clock")

    @classmethod
    def of(cls, note_id: str, removed: Removed) -> Self:
        return cls(id=note_id, log_position=removed.position, removed_at=datetime.fromtimestamp(removed.time, UTC))


class AddedOut(BaseModel):
    """A note was added: it is durable, and found by searches."""

    id: str = Field(description="id of the note")
    revision: int = Field(description="1 when the note is created, and 1 more with each write that changes it")
    status: Literal["indexed"] = Field("indexed", description="durable, and in the index")
    outcome: Literal["created", "updated", "unchanged"] = Field(description="what the write did")
    log_position: str = Field(description=f"{LAST_WRITE}; in quotation marks it is the ETag")
    model: ModelName
    hashtags: list[str] = Field(description=HASHTAGS_MEANING)
    category: str | None = Field(description=CATEGORY_MEANING)
    generated: GeneratedOut | None = Field(None, description="what the model generated; null: nothing")
    usage: UsageOut
    truncated: bool | None = Field(description=f"{TRUNCATED}; {READ_NOTHING}")
    language_supported: bool | None = Field(description=f"{LANGUAGE_SUPPORTED}; {READ_NOTHING}")

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
    """One note's result, at its place in the request. A field that would be null is left out."""

    id: str | None = Field(None, description="id of the note; null: a rejected note has none")
    status: Literal["created", "updated", "unchanged", "rejected"] = Field(
        description="what the write did; rejected: nothing, see `problem`"
    )
    revision: int | None = Field(
        None, description="1 when the note is created, and 1 more with each write that changes it; null: rejected"
    )
    log_position: str | None = Field(None, description=f"{LAST_WRITE}; null: rejected")
    hashtags: list[str] | None = Field(None, description=f"{HASHTAGS_MEANING}; null: rejected")
    category: str | None = Field(None, description=CATEGORY_MEANING)
    generated: GeneratedOut | None = Field(None, description="what the model generated; null: nothing")
    usage: UsageOut | None = Field(None, description="tokens of this note; null: rejected")
    truncated: bool | None = Field(None, description=f"{TRUNCATED}; {READ_NOTHING}")
    language_supported: bool | None = Field(None, description=f"{LANGUAGE_SUPPORTED}; {READ_NOTHING}")
    replayed: Literal[True] | None = Field(
        None, description="an earlier request under this Idempotency-Key had this result"
    )
    problem: Problem | None = Field(None, description="why the note is rejected; null: it is not")

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
    """Results of a list of notes."""

    results: list[BatchItem] = Field(description="one for each note, in their order")
    model: ModelName


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
