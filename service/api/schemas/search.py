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
from service.api.schemas.common import HashtagName, Hashtags, Name, NoteId, Time, Wire
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
        raise PydanticCustomError("weight", "must be 0, or at least {least}", {"least": f"{MIN_WEIGHT:g}"})
    return weight


Weight = Annotated[float, Field(ge=0, le=MAX_WEIGHT, allow_inf_nan=False), AfterValidator(_check_weight)]


class ExampleIn(Wire):
    """An example: either the id of a stored note, or a text that is not stored."""

    note_id: NoteId | None = Field(None, description="id of a stored note; null if the example is a text")
    title: str = Field("", description="title of the text; may be blank if `content` is not")
    content: str = Field("", description="content of the text; may be blank if `title` is not")
    hashtags: Hashtags = Field([])
    weight: Weight = Field(
        1.0,
        description="weight relative to the other examples. With the strategy average, it counts only within one "
        "side (positive or negative), so that the weight of a side's only example has no effect; otherwise it counts "
        "across both sides. A note with weight 0 does not affect scores, but is still left out of the answer",
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
"""Examples of one side. Validation ends at the first invalid one: finding the errors of all, of which an answer shows
MAX_ERRORS, would hold the event loop for longer than the search."""


class DecayIn(Wire):
    """A value that falls with a note's distance from a target: 1 at the target, 0 for a note without the number."""

    curve: Curve = Field(
        description="how the value falls. exp: by the same factor per unit of distance; gauss: slowly near the "
        "target; linear: evenly down to 0"
    )
    attribute: Name | None = Field(None, description="name of a numeric attribute; `created_at` if omitted")
    target: float | None = Field(
        None,
        description="where the value is 1: a number for an attribute (default: 0), or a time for `created_at` "
        "(default: now)",
    )
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        description="distance from the target at which the value is `midpoint`; in seconds for `created_at`"
    )
    midpoint: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = Field(
        0.5, description="value at the distance `scale` from the target"
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
            message = "must be a time with a time zone" if is_time else "must be a finite number, like the attribute"
            raise PydanticCustomError("target", message) from error

    def as_decay(self) -> Decay:
        target = self.target
        if target is None and self.attribute is not None:
            target = 0.0
        return Decay(self.curve, self.scale, self.attribute, target, self.midpoint)


class MatchIn(Wire):
    """Values that a note must have; all that are given must match."""

    category: Name | None = Field(None, description="category of the note")
    hashtag: HashtagName | None = Field(None, description="hashtag of the note")
    author: Name | None = Field(None, description="author of the note")
    attribute: Attributed | None = Field(None, description=f"attribute of the note, as {ATTRIBUTE_FORM}")

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not any((self.category, self.hashtag, self.author, self.attribute)):
            raise PydanticCustomError("match", "must name a category, hashtag, author or attribute")
        return self

    def as_match(self) -> Match:
        attribute = name_and_value(self.attribute) if self.attribute else None
        return Match(self.category, self.hashtag, self.author, attribute)


class BoostIn(Wire):
    """Adds `weight` times a value from 0 to 1 to a note's relevance. The value comes from either `decay` or `match`."""

    weight: Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)] = Field(
        description="weight relative to a cosine similarity; a negative weight demotes notes"
    )
    decay: DecayIn | None = Field(
        None, description="value that falls with the distance of an attribute or of `created_at` from a target"
    )
    match: MatchIn | None = Field(None, description="value that is 1 for a note with all of these fields, else 0")

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
    """Relative weights of the sources of candidates."""

    content: Annotated[float, Field(ge=MIN_CONTENT_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)] = Field(
        1.0, description="weight of vector similarity"
    )
    words: Weight = Field(0.0, description="weight of shared words")
    behaviour: Weight = Field(
        0.0,
        description="weight of reading behaviour: what readers read after those positive examples that are stored "
        "notes",
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
        None,
        description=f"nested conditions, and up to {MAX_FILTER_EXCLUDED:,} ids to exclude; applies in addition to the "
        "other conditions",
    )
    boost: list[BoostIn] = Field(
        [], max_length=MAX_BOOSTS, description="boosts that raise or lower notes in the ranking"
    )
    sources: SourcesOrName = Field(  # type: ignore[assignment]  # a query string takes names alone
        SourcesIn(),
        description="sources of candidates: a preset (content: vectors; auto: also shared words and reading "
        "behaviour) or weights",
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
    """Body of POST /notes/{id}/similar: search options, and examples in addition to the note in the path."""

    positive: Examples = Field([], description="examples that results should resemble")
    negative: Examples = Field([], description="examples that results should differ from")

    def positives(self) -> tuple[Example, ...]:
        return tuple(one.as_example(f"/positive/{i}") for i, one in enumerate(self.positive))

    def negatives(self) -> tuple[Example, ...]:
        return tuple(one.as_example(f"/negative/{i}") for i, one in enumerate(self.negative))


class SimilarIn(SearchBody):
    """Body of POST /similar: search options, and either a text (title, content, hashtags) or examples."""

    title: str = Field(
        "",
        description="title of the text to find related notes for",
        examples=["Three days in Kyoto on a small budget"],
    )
    content: str = Field(
        "",
        description="content of the text to find related notes for",
        examples=["Buses all day for 700 yen, temples before eight."],
    )
    hashtags: Hashtags = Field([], examples=[["kyoto", "budget travel"]])

    @model_validator(mode="after")
    def _check_one_form(self) -> Self:
        if (self.positive or self.negative) and self._has_text:
            message = (
                "title, content and hashtags cannot be combined with positive and negative: make the text one of "
                "positive"
            )
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
            problem = "title and content must not both be empty, unless you send examples as positive"
            raise InvalidInput([FieldError("/content", problem)])
        return (Example(note=_as_note(self)),)


def _as_note(text: ExampleIn | SimilarIn) -> Note:
    """Return a text as a note. A blank content becomes empty: the model would read its spaces, and the search would not
    be that of a title (TitleCentre)."""
    content = "" if is_blank(text.content) else text.content
    return Note(title=text.title, content=content, hashtags=normalise_hashtags(text.hashtags))


class SearchResult(BaseModel):
    """Result of one search: either an answer or a problem. The other field is omitted."""

    status: int = Field(description="HTTP status code that the search would have had as a request of its own")
    answer: SimilarOut | None = Field(None, description="answer with the related notes")
    problem: Problem | None = Field(None, description="why the search failed")


class SearchResults(BaseModel):
    """Results of a list of searches."""

    results: list[SearchResult] = Field(description="one result for each search, in request order")
