"""POST /generate, /generate/hashtags, /generate/category; what the model wrote, wherever it is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import BaseModel, Field

from model.generation import (
    CATEGORY_SHORTLIST,
    MAX_WHOLE_SET,
    CategoryProbability,
    GenerationOutput,
    Hashtag,
    HashtagPolicy,
    Usage,
)
from service.adding import GENERATED_HASHTAGS
from service.api.schemas.common import Form, ModelName, Name, TaggedText, Wire

MAX_GENERATED = 10
"""Bound on the hashtags that one request generates."""
MAX_CATEGORIES = 500
"""Bound on a request's closed set; MAX_CATEGORY_TOKENS bounds the length of its names."""
MAX_BLOCKED = 1000
"""Bound on the hashtags that a request forbids."""


TRUNCATED = "the text is longer than the model reads; GET /limits says how much"
LANGUAGE_SUPPORTED = "false: the model does not read the script of the text, and generates nothing for it"
Truncated = Annotated[bool, Field(description=TRUNCATED)]
LanguageSupported = Annotated[bool, Field(description=LANGUAGE_SUPPORTED)]


class HashtagOut(BaseModel):
    """A hashtag that the model generated."""

    text: str = Field(description="the hashtag, without '#'")
    score: float = Field(
        description="in (0, 1]: probability that the model writes it first; of grounded ones, that, how many of the "
        "nearest notes carry it and whether the text names it, together"
    )
    notes: list[str] = Field(
        [],
        description="of grounded ones: ids of the nearest notes that carry it, if any does",
        exclude_if=lambda notes: not notes,
    )

    @classmethod
    def of(cls, hashtag: Hashtag) -> Self:
        return cls(text=hashtag.text, score=hashtag.score, notes=list(hashtag.notes))


class CategoryOut(BaseModel):
    """A name of a closed set, with its probability."""

    name: str = Field(description="as the closed set has it")
    probability: float = Field(description="among the names that were read, whose probabilities sum to 1")

    @classmethod
    def of(cls, category: CategoryProbability) -> Self:
        return cls(name=category.name, probability=category.probability)


class BelowMinOut(BaseModel):
    """Hashtags and category that the answer leaves out: they are below a bound of the request or of the service."""

    hashtags: list[HashtagOut] | None = Field(
        None,
        description="with a score below `min_score`; of a note that is sent without it, below "
        "NOTELLM_MIN_HASHTAG_SCORE; null: none",
    )
    category: CategoryOut | None = Field(
        None,
        description="less probable than `min_probability`; of a note, than NOTELLM_MIN_CATEGORY_PROBABILITY; null: "
        "none",
    )

    @classmethod
    def of(cls, hashtags: Sequence[Hashtag] | None, category: CategoryProbability | None = None) -> Self | None:
        if not hashtags and category is None:
            return None
        return cls(
            hashtags=[HashtagOut(text=hashtag.text, score=hashtag.score) for hashtag in hashtags] if hashtags else None,
            category=category and CategoryOut.of(category),
        )


BelowMin = Annotated[
    BelowMinOut | None,
    Field(
        description="what is below a bound, and so left out; missing where nothing is",
        exclude_if=lambda below: below is None,
    ),
]


class UsageOut(BaseModel):
    """Tokens that the model read and wrote."""

    prompt_tokens: int = Field(
        0,
        description="read, each once, however much is made of it; the first text with a set of categories that the "
        "model does not know also counts those of their names",
    )
    generated_tokens: int = Field(0, description="tokens generated for hashtags, in all beams together")

    @classmethod
    def of(cls, usage: Usage) -> Self:
        return cls(prompt_tokens=usage.prompt_tokens, generated_tokens=usage.generated_tokens)


class HashtagRules(Wire):
    """Rules for the hashtags that may be generated."""

    policy: HashtagPolicy | None = Field(
        None,
        description="open: whatever the model writes; known: of that, only what authors of stored notes use; grounded: "
        "the best of what it writes, of what near notes carry, by vectors and by words, and of what stored notes carry "
        "and the text names; null: the service's own",
    )
    blocked: list[Name] = Field(
        [], max_length=MAX_BLOCKED, description="never returned, whatever their case and spacing"
    )
    min_score: float = Field(
        0.0, ge=0, le=1, description="hashtags with a lower score are left out: fewer rather than worse ones"
    )
    language: Annotated[str, Form(r"^[a-z]{2,3}$", "must be an ISO 639 code, such as en")] | None = Field(
        None,
        description="ISO 639 code of the language that you expect: 422 where the model does not write it, otherwise no "
        "effect",
        examples=["en"],
    )


class HashtagsIn(TaggedText, HashtagRules):
    """A text, and the hashtags that it has already: the model reads these too, and they are never repeated in the
    answer."""

    count: int = Field(GENERATED_HASHTAGS, ge=1, le=MAX_GENERATED, description="most hashtags of the answer")


class HashtagsOut(BaseModel):
    """Hashtags that the model generated for a text."""

    hashtags: list[HashtagOut] = Field(description="the best first")
    reason: str | None = Field(None, description="why there are no hashtags; null where there are")
    below_min: BelowMin = None
    model: ModelName
    usage: UsageOut
    truncated: Truncated
    language_supported: LanguageSupported

    @classmethod
    def of(cls, output: GenerationOutput, model: str) -> Self:
        return cls(
            hashtags=[HashtagOut.of(h) for h in output.hashtags or ()],
            reason=output.hashtags_reason,
            below_min=BelowMinOut.of(output.hashtags_below_min),
            model=model,
            usage=UsageOut.of(output.usage),
            truncated=output.truncated,
            language_supported=output.language_supported,
        )


class CategoryIn(TaggedText):
    """A text, and the closed set that its category is chosen from."""

    categories: list[Name] = Field(
        [],
        max_length=MAX_CATEGORIES,
        description="the closed set; empty: the service's own (NOTELLM_CATEGORIES)",
        examples=[[]],
    )
    all_categories: bool = Field(
        False,
        description=f"read each name of a closed set of more than {MAX_WHOLE_SET}; by default only the "
        f"{CATEGORY_SHORTLIST} that are likeliest beforehand are read, and the others left out of the answer",
    )
    min_probability: float = Field(0.0, ge=0, le=1, description="`category` is null below it")

    def chosen(self, output: GenerationOutput) -> CategoryProbability | None:
        """Most probable category; None where its probability is below `min_probability`, or the model has none."""
        best = next(iter(output.categories or ()), None)
        return best if best and best.probability >= self.min_probability else None


class GenerateIn(CategoryIn, HashtagRules):
    """A text, rules for its hashtags, and the closed set of its category."""


class CategoryPrediction(BaseModel):
    """The category of a text, out of a closed set."""

    category: str | None = Field(description="the most probable name; null: `abstain` is true")
    probability: float | None = Field(description="that of `category`, among all names that were read; null without it")
    abstain: bool = Field(description="no name has `min_probability`, or the model read none")
    alternatives: list[CategoryOut] = Field(
        description="the other names that were read, the most probable first; all of them where the model abstains"
    )
    model: ModelName
    usage: UsageOut
    truncated: Truncated
    language_supported: LanguageSupported

    @classmethod
    def of(cls, output: GenerationOutput, chosen: CategoryProbability | None, model: str) -> Self:
        return cls(
            category=chosen and chosen.name,
            probability=chosen and chosen.probability,
            abstain=chosen is None,
            alternatives=[CategoryOut.of(c) for c in output.categories or () if c != chosen],
            model=model,
            usage=UsageOut.of(output.usage),
            truncated=output.truncated,
            language_supported=output.language_supported,
        )


class GenerateOut(BaseModel):
    """Vector, hashtags and category of one text."""

    embedding: list[float] = Field(description="vector of unit length")
    hashtags: list[HashtagOut] = Field(description=f"the best first, up to {GENERATED_HASHTAGS}")
    reason: str | None = Field(None, description="why there are no hashtags; null where there are")
    category: CategoryOut | None = Field(description="null: no name has `min_probability`, or the model read none")
    below_min: BelowMin = None
    model: ModelName
    usage: UsageOut
    truncated: Truncated
    language_supported: LanguageSupported

    @classmethod
    def of(cls, output: GenerationOutput, chosen: CategoryProbability | None, model: str) -> Self:
        best = next(iter(output.categories or ()), None)
        return cls(
            embedding=output.vector.tolist(),
            hashtags=[HashtagOut.of(h) for h in output.hashtags or ()],
            reason=output.hashtags_reason,
            category=chosen and CategoryOut.of(chosen),
            below_min=BelowMinOut.of(output.hashtags_below_min, best if chosen is None else None),
            model=model,
            usage=UsageOut.of(output.usage),
            truncated=output.truncated,
            language_supported=output.language_supported,
        )
