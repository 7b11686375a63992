"""Schemas that several resources share: types of fields, the base of all that callers send, and texts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from model.note import Note, normalise_hashtags
from service.errors import MAX_ERRORS

MAX_HASHTAGS = 30
"""Bound on the hashtags of a note and of a filter, published at GET /limits."""
MAX_ATTRIBUTES = 32
"""Bound on the attributes of a note and of a filter, published at GET /limits."""
FIRST_TIME = datetime(1970, 1, 1, tzinfo=UTC)
END_TIME = datetime(2200, 1, 1, tzinfo=UTC)
"""Times before the first, or from the end on, are taken for mistakes."""


def _check_range(time: datetime) -> datetime:
    if not FIRST_TIME <= time < END_TIME:
        raise PydanticCustomError("time_range", "must lie between the years 1970 and 2199")
    return time


NoteId = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_~][A-Za-z0-9_.:~-]{0,127}$"),
    Field(description="1 to 128 of A-Z a-z 0-9 _ . : ~ -, not starting with . : -", examples=["sample-en-001"]),
]
ReaderId = Annotated[
    str,
    StringConstraints(pattern=r"^[^\s/.][^\s/]{0,127}$"),
    Field(description="1 to 128 characters without white space and /, not starting with .", examples=["u-4711"]),
]
LogPosition = Annotated[
    str,
    StringConstraints(pattern=r"^\d{1,15}-\d{1,15}$"),
    Field(examples=["1795704909866-0"], description="log position"),
]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=128)]
Time = Annotated[AwareDatetime, AfterValidator(_check_range)]
Hashtags = Annotated[
    list[str],
    Field(max_length=MAX_HASHTAGS, description="normalised: no '#', single spaces, of equal ones the first"),
]


class Wire(BaseModel):
    """Base of all that callers send: an unknown field is an error. No error repeats a value, which may be private."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _summarise_unknown_fields(cls, value: Any) -> Any:
        """Refuse many unknown fields with a single error: a body has room for a hundred thousand of them."""
        if isinstance(value, dict) and len(value) > MAX_ERRORS:
            known = cls.model_fields.keys()
            unknown = [name for name in value if name not in known]
            if len(unknown) > MAX_ERRORS:
                names = ", ".join(repr(name[:40]) for name in unknown[:3])
                message = "has {count} fields that are not known, the first of them {names}"
                raise PydanticCustomError("unknown_fields", message, {"count": len(unknown), "names": names})
        return value


class Text(Wire):
    """A title and a content, at least one of them not blank."""

    title: str = Field("", examples=["Three days in Kyoto on a small budget"])
    content: str = Field(
        "",
        validate_default=True,
        examples=["Buses all day for 700 yen, temples before eight."],
    )

    @field_validator("content")
    @classmethod
    def _check_not_empty(cls, content: str, info: ValidationInfo) -> str:
        if not (content.strip() or info.data.get("title", "?").strip()):
            raise PydanticCustomError("empty", "title and content must not both be empty")
        return content

    def as_note(self) -> Note:
        return Note(title=self.title, content=self.content)


class TaggedText(Text):
    hashtags: Hashtags = Field([], examples=[["kyoto", "budget travel"]])

    def as_note(self) -> Note:
        return Note(title=self.title, content=self.content, hashtags=normalise_hashtags(self.hashtags))
