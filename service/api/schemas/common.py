"""Schemas that several resources share: types of fields, the base of all that callers send, and texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, ClassVar, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from model.note import MAX_HASHTAG_CHARS, Note, is_blank, normalise_hashtag, normalise_hashtags
from service.api.schemas.problem import UNKNOWN_FIELD
from service.errors import MAX_ERRORS

MAX_HASHTAGS = 30
"""Bound on the hashtags of a note and of a filter, published at GET /limits."""
MAX_ATTRIBUTES = 32
"""Bound on the attributes of a note and of a filter, published at GET /limits."""
FIRST_TIME = datetime(1970, 1, 1, tzinfo=UTC)
END_TIME = datetime(2200, 1, 1, tzinfo=UTC)
"""Times before the first, or from the end on, are taken for mistakes."""
BARE_DATE = re.compile(r"(19[7-9]|2[01]\d)\d((0[1-9]|1[0-2])([012]\d|3[01])?)?(\.0*)?", re.ASCII)
"""A year (2026), a month (202605) or a day (20260501), which would be read as seconds since 1970."""


def _check_range(time: datetime) -> datetime:
    if not FIRST_TIME <= time < END_TIME:
        raise PydanticCustomError("time_range", "must lie between the years 1970 and 2199")
    return time


def _refuse_bare_date(value: Any) -> Any:
    if isinstance(value, int | float | str) and BARE_DATE.fullmatch(str(value).strip()):
        raise PydanticCustomError("date", "must be ISO 8601 with a time zone: a number is read as seconds since 1970")
    return value


def _check_visible(name: str) -> str:
    if is_blank(name):
        raise PydanticCustomError("invisible", "must have a visible character")
    return name


def _check_hashtag(name: str) -> str:
    if not normalise_hashtag(name):
        raise PydanticCustomError("no_hashtag", "must have a character besides '#'")
    return name


@dataclass(frozen=True, slots=True)
class Form:
    """Annotation of a text that has to match a pattern. Its error is `words`; pydantic's would be the pattern."""

    pattern: str
    words: str
    max_length: int | None = None

    def __get_pydantic_core_schema__(self, source: type[str], handler: GetCoreSchemaHandler) -> CoreSchema:
        text = core_schema.str_schema(pattern=self.pattern, max_length=self.max_length)
        return core_schema.custom_error_schema(text, "text_form", custom_error_message=self.words)


NOTE_ID_FORM = "id of a note: 1 to 128 characters of A-Z a-z 0-9 _ . : ~ -, not starting with . or :"
NoteId = Annotated[
    str,
    Form(
        r"^[A-Za-z0-9_~-][A-Za-z0-9_.:~-]{0,127}$",
        "must be a string of 1 to 128 characters of A-Z a-z 0-9 _ . : ~ -, not starting with . or :",
    ),
    Field(description=NOTE_ID_FORM, examples=["sample-en-001"]),
]
ReaderId = Annotated[
    str,
    Form(
        r"^[^\s/.][^\s/]{0,127}$",
        "must be a string of 1 to 128 characters, none of them white space or /, not starting with .",
    ),
    Field(description="1 to 128 characters, none of them white space or /; must not start with .", examples=["u-4711"]),
]
LogPosition = Annotated[
    str,
    Form("^[0-9]{1,15}-[0-9]{1,15}$", "must be a log position from an answer, such as 1795704909866-0"),
    Field(examples=["1795704909866-0"], description="log position"),
]
Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=128),
    AfterValidator(_check_visible),
]


def check_names_differ(value: Any) -> Any:
    """Refuse an object with two names that differ only in spaces around them, which are removed: one member would be
    dropped."""
    if isinstance(value, dict):
        names = Counter(name.strip() for name in value if isinstance(name, str))
        if repeated := [name for name, count in names.items() if count > 1]:
            raise PydanticCustomError(
                "repeated_name",
                "has the name {name} twice, apart from spaces around it",
                {"name": repr(repeated[0][:40])},
            )
    return value


HashtagName = Annotated[Name, AfterValidator(_check_hashtag)]
"""A hashtag in a condition. One of which nothing is left in its stored form would match no note."""
Label = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64)]
"""Name of a scenario, of its variants and of a source: in the settings, in searches, and in the events that follow."""
ModelName = Annotated[str, Field(description="name of the serving model")]
StoredTime = Annotated[AwareDatetime, AfterValidator(_check_range)]
"""Time of a stored note, which may be from before bare dates were refused."""
Time = Annotated[StoredTime, BeforeValidator(_refuse_bare_date)]
Hashtags = Annotated[
    list[str],
    Field(
        max_length=MAX_HASHTAGS,
        description="normalised: each '#' is a space, single spaces, cut after "
        f"{MAX_HASHTAG_CHARS} characters; duplicates after the first and empty ones are dropped",
    ),
]


class Wire(BaseModel):
    """Base of all that callers send: an unknown field is an error. No error repeats a value, which may be private."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    answered: ClassVar[Mapping[str, str]] = {}
    """Fields that only answers have, and what a caller who sends one is told."""

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, value: Any) -> Any:
        """Refuse a value that is not an object, and unknown fields, naming the known ones. Many of them give a single
        error, since a body has room for a hundred thousand. Other errors are left out then: a field may be missing
        because its name is misspelt."""
        if isinstance(value, BaseModel):
            return value
        known = _field_names(cls)
        if not isinstance(value, dict):
            raise PydanticCustomError(
                "object", "must be an object with some of the fields {known}", {"known": ", ".join(known)}
            )
        unknown = [name for name in value if name not in known]
        if len(unknown) > MAX_ERRORS:
            names = ", ".join(repr(name[:40]) for name in unknown[:3])
            message = "has {count} unknown fields, the first of them {names}"
            raise PydanticCustomError("unknown_fields", message, {"count": len(unknown), "names": names})
        if unknown:
            errors = [_unknown_field(name, known, cls.answered) for name in unknown]
            raise ValidationError.from_exception_data(cls.__name__, errors)
        booleans = [name for name in value if isinstance(value[name], bool) and name in _number_fields(cls)]
        if booleans:
            raise ValidationError.from_exception_data(cls.__name__, [_boolean_field(name) for name in booleans])
        return value


@cache
def _field_names(model: type[BaseModel]) -> dict[str, None]:
    """Names of the fields of a model as bodies have them, in their order."""
    return dict.fromkeys(field.alias or name for name, field in model.model_fields.items())


@cache
def _number_fields(model: type[BaseModel]) -> frozenset[str]:
    """Names of the fields that take a number and no boolean, which pydantic would take for 0 or 1."""
    types = {field.alias or name: _types(field.annotation) for name, field in model.model_fields.items()}
    return frozenset(name for name, own in types.items() if own & {int, float} and bool not in own)


def _types(annotation: Any) -> set[Any]:
    """Return an annotation, and the types that it is made of."""
    return {annotation}.union(*(_types(part) for part in get_args(annotation) if isinstance(part, Hashable)))


def _boolean_field(name: str) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError("boolean", "must not be true or false"), loc=(name,), input=None)


def _unknown_field(name: str, known: Collection[str], answered: Mapping[str, str]) -> InitErrorDetails:
    """Return the error for an unknown field. problems.py adds a hint only to the errors that it reports: a body has
    room for thousands of them, and a hint takes longer than the rest. A field that only answers have gets its own."""
    if hint := answered.get(name):
        error = PydanticCustomError("answered", "is a field of answers only; {hint}", {"hint": hint})
    else:
        error = PydanticCustomError(UNKNOWN_FIELD, "is not a known field", {"known": known})
    return InitErrorDetails(type=error, loc=(name,), input=None)


class Text(Wire):
    """A title and a content, at least one of them not blank."""

    title: str = Field(
        "", description="title; may be blank if `content` is not", examples=["Three days in Kyoto on a small budget"]
    )
    content: str = Field(
        "",
        validate_default=True,
        description="content; may be blank if `title` is not. The model reads at most `read_content_tokens` of GET "
        "/limits",
        examples=["Buses all day for 700 yen, temples before eight."],
    )

    @field_validator("content")
    @classmethod
    def _check_not_empty(cls, content: str, info: ValidationInfo) -> str:
        if is_blank(content) and is_blank(info.data.get("title", "?")):
            raise PydanticCustomError("empty", "title and content must not both be empty")
        return content

    def as_note(self) -> Note:
        return Note(title=self.title, content=self.content)


class TaggedText(Text):
    hashtags: Hashtags = Field([], examples=[["kyoto", "budget travel"]])

    def as_note(self) -> Note:
        return Note(title=self.title, content=self.content, hashtags=normalise_hashtags(self.hashtags))
