"""POST /similar, POST /notes/{id}/similar, POST /similar/batch, and what a scenario may set."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from model.note import Note, is_blank, normalise_hashtags
from service.api.schemas.common import Hashtags, Name, NoteId, Time, Wire
from service.api.schemas.filter import ATTRIBUTE_FORM, MAX_FILTER_EXCLUDED, Attributed, FilterIn, name_and_value
from service.api.schemas.problem import Problem
from service.api.schemas.similar import (
    MAX_EXAMPLES,
    RankingOptions,
    SimilarOut,
    SourcesPreset,
)
from service.errors import FieldError, InvalidInput
from service.filters import Filter
from service.ranking.boosts import Boost, Curve, Decay, Match
from service.search.request import Example, SearchRequest, SourceName, Sources, SourceWeights

MAX_BOOSTS = 20
"""Bound on the boosts of a search, published at GET /limits."""
MAX_SEARCHES = 100
"""Bound on the searches of one POST /similar/batch, published at GET /limits."""
MAX_WEIGHT = 1000.0
"""Bound on the weight of an example, a boost or a source, published at GET /limits."""
MIN_CONTENT_WEIGHT = 0.001
"""Least weight of the source `content`, which those of the others are divided by."""
TIME: TypeAdapter[datetime] = TypeAdapter(Time)
NUMBER: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(allow_inf_nan=False)])
MIN_WEIGHT = 1e-6
"""Least weight above 0: sums and lengths of smaller ones would be rounded to nothing."""


def _check_weight(weight: float) -> float:
    if 0 < weight < MIN_WEIGHT:
        raise PydanticCustomError("weight", "must be 0, or {least} at least", {"least": f"{MIN_WEIGHT:g}"})
    return weight


Weight = Annotated[float, Field(ge=0, le=MAX_WEIGHT, allow_inf_nan=False), AfterValidator(_check_weight)]


class ExampleIn(Wire):
    """A stored note by its id, or a text that is not stored; never both."""

    note_id: NoteId | None = Field(None, description="id of a stored note; null: the example is a text")
    title: str = Field("", description="title of a text; may be blank where `content` is not")
    content: str = Field("", description="content of a text; may be blank where `title` is not")
    hashtags: Hashtags = Field([])
    weight: Weight = Field(
        1.0,
        description="relative to the other examples. With the strategy average only examples of the same side "
        "(positive or negative) count, so the weight of a side's only example changes nothing; with others all count. "
        "An example of weight 0 does not affect scores, but is left out of the answer",
    )

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        is_text = not (is_blank(self.title) and is_blank(self.content))
        if is_text == (self.note_id is not None) or (self.hashtags and not is_text):
            raise PydanticCustomError("example", "must have either a note_id, or a title or content that is not blank")
        return self

    def as_example(self, pointer: str) -> Example:
        if self.note_id is not None:
            return Example(note_id=self.note_id, weight=self.weight, pointer=pointer)
        return Example(note=_as_note(self), weight=self.weight, pointer=pointer)


Examples = Annotated[list[ExampleIn], Field(max_length=MAX_EXAMPLES, fail_fast=True)]
"""Examples of one side. Errors of the first that is not valid are told alone: those of all, of which an answer has room
for MAX_ERRORS, would hold the event loop for longer than the search."""


class DecayIn(Wire):
    """Closeness of a number to a target: 1 at the target, less with the distance; 0 for a note without the number."""

    curve: Curve = Field(
        description="how the value falls with the distance: by the same factor each step (exp), slowly near the target "
        "(gauss), or evenly down to 0 (linear)"
    )
    attribute: Name | None = Field(None, description="a numeric attribute; without it created_at")
    target: float | None = Field(
        None, description="a number for an attribute, 0 by default; else a time, the present one by default"
    )
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        description="distance from the target at which the value is `midpoint`; seconds for created_at"
    )
    midpoint: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = Field(
        0.5, description="value at the distance `scale`"
    )

    @field_validator("target", mode="plain", json_schema_input_type=float | Time | None)
    @classmethod
    def _read_target(cls, value: Any, info: ValidationInfo) -> float | None:
        """Read the number of an attribute, or a time as all others are read, into seconds since the epoch."""
        if value is None or "attribute" not in info.data:  # an attribute that is not valid has an error of its own
            return None
        is_time = info.data["attribute"] is None
        try:
            return TIME.validate_python(value).timestamp() if is_time else NUMBER.validate_python(value)
        except ValidationError as error:
            message = "must be a time with its zone" if is_time else "must be a finite number, as the attribute is"
            raise PydanticCustomError("target", message) from error

    def as_decay(self) -> Decay:
        target = self.target
        if target is None and self.attribute is not None:
            target = 0.0
        return Decay(self.curve, self.scale, self.attribute, target, self.midpoint)


class MatchIn(Wire):
    """Fields that a note must have, all of those that are given."""

    category: Name | None = Field(None, description="category of the note")
    hashtag: Name | None = Field(None, description="a hashtag that the note carries")
    author: Name | None = Field(None, description="author of the note")
    attribute: Attributed | None = Field(None, description=f"an attribute of the note: {ATTRIBUTE_FORM}")

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not any((self.category, self.hashtag, self.author, self.attribute)):
            raise PydanticCustomError("match", "must name a category, hashtag, author or attribute")
        return self

    def as_match(self) -> Match:
        attribute = name_and_value(self.attribute) if self.attribute else None
        return Match(self.category, self.hashtag, self.author, attribute)


class BoostIn(Wire):
    """Adds `weight` times a value from 0 to 1 to a note's relevance: that of either a decay or a match."""

    weight: Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)] = Field(
        description="relative to a cosine; below 0 it demotes"
    )
    decay: DecayIn | None = Field(None, description="value that falls with the distance from a number or a time")
    match: MatchIn | None = Field(None, description="1 for a note that has all of these fields, else 0")

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.decay is None) == (self.match is None):
            raise PydanticCustomError("boost", "must have either a decay or a match")
        return self

    def as_boost(self) -> Boost:
        if self.decay:
            return Boost(self.weight, self.decay.as_decay())
        assert self.match is not None
        return Boost(self.weight, self.match.as_match())


class SourcesIn(Wire):
    """Weights of the sources of candidates, relative to each other."""

    content: Annotated[float, Field(ge=MIN_CONTENT_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)] = Field(
        1.0, description="weight of the vectors"
    )
    words: Weight = Field(0.0, description="weight of the words that notes share")
    behaviour: Weight = Field(
        0.0, description="weight of what readers read after the positive examples that are stored notes"
    )

    def as_weights(self) -> SourceWeights:
        """Return the sources that have a weight."""
        names: tuple[SourceName, ...] = get_args(SourceName)
        return tuple((name, weight) for name in names if (weight := getattr(self, name)))


def _read_sources(value: Any) -> Any:
    """Return the name, or the weights, that a value of `sources` holds."""
    if not isinstance(value, str):
        return SourcesIn.model_validate(value)
    if value not in get_args(SourcesPreset):
        message = "must be one of {names}, or an object of weights"
        raise PydanticCustomError("sources", message, {"names": ", ".join(get_args(SourcesPreset))})
    return value


SourcesOrName = Annotated[
    SourcesIn | SourcesPreset, PlainValidator(_read_sources, json_schema_input_type=SourcesIn | SourcesPreset)
]


class SearchDefaults(RankingOptions):
    """All that a scenario may bind: everything but examples and cursor. A note has to pass `filter` and all other
    conditions."""

    filter: FilterIn | None = Field(
        None, description=f"conditions in groups, and up to {MAX_FILTER_EXCLUDED:,} ids to leave out"
    )
    boost: list[BoostIn] = Field([], max_length=MAX_BOOSTS, description="what else counts in the order")
    sources: SourcesOrName = Field(  # type: ignore[assignment]  # a query string takes names alone
        SourcesIn(), description="where candidates come from: a name, or weights"
    )

    def as_filter(self) -> Filter:
        flat = super().as_filter()
        if self.filter is None:
            return flat
        tree = self.filter.as_filter()
        return replace(flat, clause=tree.clause, exclude=flat.exclude | tree.exclude)

    def as_request(self, positive: tuple[Example, ...], negative: tuple[Example, ...] = ()) -> SearchRequest:
        return replace(
            super().as_request(positive, negative),
            boosts=tuple(boost.as_boost() for boost in self.boost),
        )

    def as_sources(self) -> Sources:
        return self.sources.as_weights() if isinstance(self.sources, SourcesIn) else super().as_sources()


class SearchBody(SearchDefaults):
    """POST /notes/{id}/similar: further examples beside the note of the address, and all options."""

    positive: Examples = Field([], description="notes and texts to be like")
    negative: Examples = Field([], description="notes and texts to be unlike")

    def positives(self) -> tuple[Example, ...]:
        return tuple(one.as_example(f"/positive/{i}") for i, one in enumerate(self.positive))

    def negatives(self) -> tuple[Example, ...]:
        return tuple(one.as_example(f"/negative/{i}") for i, one in enumerate(self.negative))


class SimilarIn(SearchBody):
    """POST /similar: either a text (title, content, hashtags) or examples, and all options."""

    title: str = Field(
        "", description="title of the text to be like", examples=["Three days in Kyoto on a small budget"]
    )
    content: str = Field(
        "", description="content of the text to be like", examples=["Buses all day for 700 yen, temples before eight."]
    )
    hashtags: Hashtags = Field([], examples=[["kyoto", "budget travel"]])

    @model_validator(mode="after")
    def _check_one_form(self) -> Self:
        if (self.positive or self.negative) and self._has_text:
            message = "title, content and hashtags cannot stand beside positive and negative: make them one of positive"
            raise PydanticCustomError("both_forms", message)
        return self

    @property
    def _has_text(self) -> bool:
        return bool(self.title or self.content or self.hashtags)

    def positives(self) -> tuple[Example, ...]:
        """Raises InvalidInput where there is neither a text nor an example."""
        if not self._has_text and self.model_fields_set & {"positive", "negative"}:
            return super().positives()
        if is_blank(self.title) and is_blank(self.content):
            raise InvalidInput([FieldError("/content", "title and content must not both be empty")])
        return (Example(note=_as_note(self)),)


def _as_note(text: ExampleIn | SimilarIn) -> Note:
    """Return a text as a note. A blank content becomes empty: the model would read its spaces, and the search would not
    be that of a title (TitleCentre)."""
    content = "" if is_blank(text.content) else text.content
    return Note(title=text.title, content=content, hashtags=normalise_hashtags(text.hashtags))


class SearchResult(BaseModel):
    """One search's result, at its place in the request: an answer or a problem; the other one is left out."""

    status: int = Field(description="the status code that the search alone would have got")
    answer: SimilarOut | None = Field(None, description="the related notes")
    problem: Problem | None = Field(None, description="why there are none")


class SearchResults(BaseModel):
    """Results of a list of searches."""

    results: list[SearchResult] = Field(description="one for each search, in their order")
