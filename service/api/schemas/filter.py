"""Conditions on notes. FlatFilterIn: conditions that a query string can hold, too. FilterIn: conditions on fields
in groups, as a body has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from model.note import hashtag_key
from service.api.schemas.common import (
    MAX_ATTRIBUTES,
    MAX_HASHTAGS,
    Form,
    HashtagName,
    Name,
    NoteId,
    Time,
    Wire,
    check_names_differ,
)
from service.filters import (
    AllOf,
    AnyOf,
    AttributeRange,
    Bounds,
    Clause,
    Filter,
    Has,
    HasAttribute,
    Not,
    OrderKey,
    TimeRange,
    attribute_text,
    order_key,
)

MAX_FILTER_DEPTH = 8
"""Bound on the groups that lie within each other, the outermost included; published at GET /limits."""
MAX_FILTER_CONDITIONS = 50
"""Bound on the conditions of all groups of a filter together; published at GET /limits."""
MAX_FILTER_VALUES = 100
"""Bound on the values of one condition; published at GET /limits."""
MAX_FILTER_EXCLUDED = 10_000
"""Bound on the ids that a filter in a body leaves out; published at GET /limits."""
GROUPS = ("all", "any", "not")
Location = tuple[str | int, ...]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | int | float) else value


def _value_text(value: Any) -> str:
    if isinstance(value, str | int | float):
        return str(attribute_text(value))
    raise PydanticCustomError("attribute_value", "must be a string, a number, true or false")


def _bound_key(value: Any) -> OrderKey:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return order_key(str(attribute_text(value)))
    raise PydanticCustomError("attribute_bound", "must be a number or a string")


def _as_condition(value: Any) -> Any:
    """Return the long form of a condition on an attribute that is given by a value or by a list of values."""
    return {"in": value} if isinstance(value, str | int | float | list) else value


Names = Annotated[
    list[Name],
    Field(min_length=1, max_length=MAX_FILTER_VALUES),
    BeforeValidator(_as_list, json_schema_input_type=Name | list[Name]),
]
HashtagNames = Annotated[
    list[HashtagName],
    Field(min_length=1, max_length=MAX_FILTER_VALUES),
    BeforeValidator(_as_list, json_schema_input_type=HashtagName | list[HashtagName]),
]
Value = Annotated[
    str,
    StringConstraints(max_length=1024),
    BeforeValidator(_value_text, json_schema_input_type=str | bool | int | float),
]
Values = Annotated[
    list[Value],
    Field(min_length=1, max_length=MAX_FILTER_VALUES),
    BeforeValidator(_as_list, json_schema_input_type=str | bool | int | float | list[str | bool | int | float]),
]
AttributeBound = Annotated[Any, PlainValidator(_bound_key, json_schema_input_type=float | str)]


ATTRIBUTE_FORM = "`name:value`, with numbers and booleans as in JSON (`pinned:true`)"
Attributed = Annotated[
    str,
    Form(r"^[^:]{1,128}:", "must be name:value, at most 1200 characters long", max_length=1200),
    Field(description=ATTRIBUTE_FORM, examples=["language:en"]),
]


def check_order(lower: Any, upper: Any, lower_name: str, upper_name: str) -> None:
    """Raise PydanticCustomError if one bound is above the other; None is no bound. The caller has mixed them up."""
    if lower is not None and upper is not None and lower > upper:
        message = "{lower} is above {upper}, so that no note would match: check whether they are exchanged"
        raise PydanticCustomError("bounds_exchanged", message, {"lower": lower_name, "upper": upper_name})


class FlatFilterIn(Wire):
    """Conditions on notes; all must hold."""

    category: Name | None = Field(None, description="only notes of this category")
    hashtag: list[HashtagName] = Field([], max_length=MAX_HASHTAGS, description="only notes with any of these hashtags")
    all_hashtag: list[HashtagName] = Field(
        [], max_length=MAX_HASHTAGS, description="only notes with all of these hashtags"
    )
    author: Name | None = Field(None, description="only notes by this author")
    created_after: Time | None = Field(None, description="only notes with `created_at` after this time")
    created_before: Time | None = Field(None, description="only notes with `created_at` before this time")
    attribute: list[Attributed] = Field(
        [],
        max_length=MAX_ATTRIBUTES,
        description=f"only notes with all of these attributes, each as {ATTRIBUTE_FORM}; each name must be in "
        "`filter_attributes` of GET /limits",
    )

    @field_validator("created_before")
    @classmethod
    def _check_created(cls, before: Time | None, info: ValidationInfo) -> Time | None:
        check_order(info.data.get("created_after"), before, "created_after", "created_before")
        return before

    def as_filter(self) -> Filter:
        return Filter(
            category=self.category,
            hashtags=tuple(self.hashtag),
            author=self.author,
            created_after=self.created_after.timestamp() if self.created_after else None,
            created_before=self.created_before.timestamp() if self.created_before else None,
            all_hashtags=tuple(self.all_hashtag),
            attributes=tuple(name_and_value(attribute) for attribute in self.attribute),
        )


def name_and_value(attribute: str) -> tuple[str, str]:
    """Parse `name:value`; the value may hold further colons, and gets the form that filters compare."""
    name, _, value = attribute.partition(":")
    return name, str(attribute_text(value))


def _without_null(schema: dict[str, Any]) -> None:
    """Remove null, which is refused, from the types of a schema's properties."""
    for described in schema["properties"].values():
        if described.get("default", "") is None:
            del described["default"]
        types = [one for one in described.pop("anyOf", ()) if one != {"type": "null"}]
        described |= types[0] if len(types) == 1 else {"anyOf": types} if types else {}


class Conditions(Wire):
    """Base of conditions. A null is an error: without the condition a filter would match more notes, and a removal by
    this filter would remove them."""

    model_config = ConfigDict(json_schema_extra=_without_null)

    @model_validator(mode="before")
    @classmethod
    def _refuse_null(cls, value: Any) -> Any:
        if isinstance(value, dict) and None in value.values():
            error = PydanticCustomError("null", "must not be null; to set no such condition, leave it out")
            errors = [InitErrorDetails(type=error, loc=(name,), input=None) for name in value if value[name] is None]
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return value


def _check_bounds(bounds: Bounds[Any]) -> None:
    for lower in "gt", "gte":
        for upper in "lt", "lte":
            check_order(getattr(bounds, lower), getattr(bounds, upper), lower, upper)


class TimesIn(Conditions):
    """A time range with at least one bound."""

    gt: Time | None = Field(None, description="after this time")
    gte: Time | None = Field(None, description="at or after this time")
    lt: Time | None = Field(None, description="before this time")
    lte: Time | None = Field(None, description="at or before this time")

    @model_validator(mode="after")
    def _check_not_empty(self) -> Self:
        if not self.bounds:
            raise PydanticCustomError("no_bound", "must have at least one of gt, gte, lt, lte")
        _check_bounds(self.bounds)
        return self

    @property
    def bounds(self) -> Bounds[float]:
        gt, gte, lt, lte = (
            None if time is None else time.timestamp() for time in (self.gt, self.gte, self.lt, self.lte)
        )
        return Bounds(gt, gte, lt, lte)


class AttributeIn(Conditions):
    """A condition on an attribute. Numeric bounds match numbers only; string bounds match other strings only, ordered
    by code point. A string that holds a JSON number counts as this number."""

    in_: Values | None = Field(None, alias="in", description="the attribute must equal one of these values")
    gt: AttributeBound | None = Field(None, description="greater than this number or string")
    gte: AttributeBound | None = Field(None, description="greater than or equal to this number or string")
    lt: AttributeBound | None = Field(None, description="less than this number or string")
    lte: AttributeBound | None = Field(None, description="less than or equal to this number or string")

    @model_validator(mode="after")
    def _check_kinds(self) -> Self:
        kinds = {key[0] for key in (self.gt, self.gte, self.lt, self.lte) if key is not None}
        if not kinds and self.in_ is None:
            raise PydanticCustomError("no_condition", "must have at least one of in, gt, gte, lt, lte")
        if len(kinds) > 1:
            raise PydanticCustomError("bounds_differ", "must have bounds that are all numbers or all strings")
        _check_bounds(self.bounds)
        return self

    @property
    def bounds(self) -> Bounds[OrderKey]:
        return Bounds(self.gt, self.gte, self.lt, self.lte)

    def clauses(self, name: str) -> Iterator[Clause]:
        """Yield the conditions on the attribute `name`."""
        if self.in_ is not None:
            yield HasAttribute(name, frozenset(self.in_))
        if self.bounds:
            yield AttributeRange(name, self.bounds)


AttributeCondition = Annotated[
    AttributeIn,
    BeforeValidator(
        _as_condition, json_schema_input_type=AttributeIn | str | bool | int | float | list[str | bool | int | float]
    ),
]


class ConditionsIn(Conditions):
    """Conditions on notes; all must hold. If a field has several values, one of them must match; for `all_hashtag`, all
    of them."""

    may_be_empty: ClassVar[bool] = False

    category: Names | None = Field(None, description="only notes of one of these categories")
    author: Names | None = Field(None, description="only notes by one of these authors")
    hashtag: HashtagNames | None = Field(None, description="only notes with any of these hashtags")
    all_hashtag: HashtagNames | None = Field(None, description="only notes with all of these hashtags")
    attribute: Annotated[dict[Name, AttributeCondition], BeforeValidator(check_names_differ)] | None = Field(
        None,
        min_length=1,
        max_length=MAX_ATTRIBUTES,
        description="conditions by attribute name, which must be in `filter_attributes` of GET /limits. Each is a "
        "value, a list of values of which one must match, or an object with in, gt, gte, lt, lte",
        examples=[{"language": ["en", "zh"], "seats": {"gte": 2, "lt": 6}}],
    )
    created_at: TimesIn | None = Field(None, description="range of the note's `created_at`")
    updated_at: TimesIn | None = Field(
        None, description="range of the time of the note's last write, by the store's clock"
    )
    all: list[ConditionsIn] | None = Field(
        None, min_length=1, max_length=MAX_FILTER_CONDITIONS, description="groups of conditions that must all hold"
    )
    any: list[ConditionsIn] | None = Field(
        None,
        min_length=1,
        max_length=MAX_FILTER_CONDITIONS,
        description="groups of conditions, at least one of which must hold",
    )
    not_: ConditionsIn | None = Field(None, alias="not", description="group of conditions that must not hold")

    @model_validator(mode="after")
    def _check_not_empty(self) -> Self:
        if not self.may_be_empty and all(value is None for _, value in self):  # each group in it has a condition
            raise PydanticCustomError("no_condition", "must have at least one condition")
        return self

    def clause(self) -> Clause | None:
        """Return the conditions as one; None where there is none."""
        clauses = tuple(self._clauses())
        return AllOf(clauses) if len(clauses) > 1 else next(iter(clauses), None)

    def _clauses(self) -> Iterator[Clause]:
        if self.category is not None:
            yield Has("category", frozenset(self.category))
        if self.author is not None:
            yield Has("author", frozenset(self.author))
        if self.hashtag is not None:
            yield Has("hashtag", frozenset(map(hashtag_key, self.hashtag)))
        for key in sorted(set(map(hashtag_key, self.all_hashtag or ()))):
            yield Has("hashtag", frozenset({key}))
        for name, condition in (self.attribute or {}).items():
            yield from condition.clauses(name)
        if self.created_at is not None:
            yield TimeRange("created", self.created_at.bounds)
        if self.updated_at is not None:
            yield TimeRange("updated", self.updated_at.bounds)
        yield from filter(None, (group.clause() for group in self.all or ()))
        if self.any is not None:
            yield AnyOf(tuple(filter(None, (group.clause() for group in self.any))))
        if self.not_ is not None and (clause := self.not_.clause()) is not None:
            yield Not(clause)

    def attribute_places(self, location: Location) -> Iterator[tuple[str, Location]]:
        """Yield each attribute that a condition tests, with its place. `location`: the place of this group."""
        for name in self.attribute or ():
            yield name, (*location, "attribute", name)
        for kind, groups in (("all", self.all), ("any", self.any)):
            for number, group in enumerate(groups or ()):
                yield from group.attribute_places((*location, kind, number))
        if self.not_ is not None:
            yield from self.not_.attribute_places((*location, "not"))


class FilterIn(ConditionsIn):
    """A filter for notes: matches notes that meet all conditions and are not in `exclude`. An empty filter matches
    every note."""

    may_be_empty: ClassVar[bool] = True

    exclude: list[NoteId] = Field([], max_length=MAX_FILTER_EXCLUDED, description="ids of notes that never match")

    @model_validator(mode="before")
    @classmethod
    def _check_size(cls, value: Any) -> Any:
        """Refuse too many conditions, or groups that lie too deep, before any is validated."""
        level, depth, conditions = [value], 0, 0
        while level:
            depth += 1
            conditions += sum(_count_conditions(group) for group in level)
            if depth > MAX_FILTER_DEPTH:
                message = "must nest groups at most max_filter_depth = {most} deep"
                raise PydanticCustomError("too_deep", message, {"most": MAX_FILTER_DEPTH})
            if conditions > MAX_FILTER_CONDITIONS:
                message = "must have at most max_filter_conditions = {most} conditions in total"
                raise PydanticCustomError("too_many_conditions", message, {"most": MAX_FILTER_CONDITIONS})
            level = [inner for group in level for inner in _inner_groups(group)]
        return value

    def as_filter(self) -> Filter:
        return Filter(clause=self.clause(), exclude=frozenset(self.exclude))


def _inner_groups(group: Any) -> list[Any]:
    """Return the groups directly within one that is not validated yet."""
    if not isinstance(group, dict):
        return []
    lists = [group[name] for name in ("all", "any") if isinstance(group.get(name), list)]
    return [inner for inners in lists for inner in inners] + ([group["not"]] if "not" in group else [])


def _count_conditions(group: Any) -> int:
    """Count the fields and attributes that a group tests itself."""
    if not isinstance(group, dict):
        return 0
    attributes = group.get("attribute")
    fields = group.keys() - {*GROUPS, "attribute", "exclude"}
    return len(fields) + (len(attributes) if isinstance(attributes, dict) else 0)
