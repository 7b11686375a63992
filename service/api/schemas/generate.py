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
from service.api.schemas.common import Form, Name, TaggedText, Wire

MAX_GENERATED = 10
"""Bound on the hashtags that one request generates."""
MAX_CATEGORIES = 500
"""Bound on a request's closed set; MAX_CATEGORY_TOKENS bounds the length of its names."""
MAX_BLOCKED = 1000
"""Bound on the hashtags that a request forbids."""


Truncated = Annotated[bool, Field(description="the text is longer than the model reads; GET /limits says how much")]
LanguageSupported = Annotated[
    bool, Field(description="false: the model does not read the script of the text, and generates nothing for it")
]


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
    probability: float = Field(description="among the names that were read, whose probabilities sum to 1")

    @classmethod
    def of(cls, category: CategoryProbability) -> Self:
        return cls(name=category.name, probability=category.probability)


class BelowMinOut(BaseModel):
    """Hashtags and a category that the model found and the answer leaves out. For a text the bounds are `min_score` and
    `min_probability` of the request; for a note that `?generate` fills in they are `min_score` or
    NOTELLM_MIN_HASHTAG_SCORE, and NOTELLM_MIN_CATEGORY_PROBABILITY."""

    hashtags: list[HashtagOut] | None = None
    category: CategoryOut | None = None

    @classmethod
    def of(cls, hashtags: Sequence[Hashtag] | None, category: CategoryProbability | None = None) -> Self | None:
        if not hashtags and category is None:
            return None
        return cls(
            hashtags=[HashtagOut(text=hashtag.text, score=hashtag.score) for hashtag in hashtags] if hashtags else None,
            category=category and CategoryOut.of(category),
        )


BelowMin = Annotated[BelowMinOut | None, Field(exclude_if=lambda below: below is None)]
"""Field of an answer; left out where nothing was found below a bound."""


class UsageOut(BaseModel):
    """The note's tokens are counted once, however much is read from them. The first note with a set of categories that
    the model does not know also counts what reading their names took."""

    prompt_tokens: int = 0
    generated_tokens: int = 0

    @classmethod
    def of(cls, usage: Usage) -> Self:
        return cls(prompt_tokens=usage.prompt_tokens, generated_tokens=usage.generated_tokens)


class HashtagRules(Wire):
    """Rules for the hashtags that may be generated."""

    policy: HashtagPolicy | None = Field(
        None,
        description="open: whatever the model writes; known: of that, only what authors of stored notes use; grounded: "
        "the best of what it writes and of what near notes carry, by vectors and by words; empty: the service's own",
    )
    blocked: list[Name] = Field([], max_length=MAX_BLOCKED, description="never told, whatever their case and spacing")
    min_score: float = Field(
        0.0, ge=0, le=1, description="hashtags with a lower score are left out: fewer rather than worse ones"
    )
    language: Annotated[str, Form(r"^[a-z]{2,3}$", "must be an ISO 639 code, such as en")] | None = Field(
        None,
        description="ISO 639 code of the language that hashtags are to be in: refused where the model does not write "
        "it, and no instruction to the model",
        examples=["en"],
    )


class HashtagsIn(TaggedText, HashtagRules):
    """A text, and the hashtags that it has already: these are read with it, and not told again."""

    count: int = Field(GENERATED_HASHTAGS, ge=1, le=MAX_GENERATED)


class HashtagsOut(BaseModel):
    hashtags: list[HashtagOut]
    reason: str | None = Field(None, description="why the list is empty")
    below_min: BelowMin = None
    model: str
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
    categories: list[Name] = Field(
        [], max_length=MAX_CATEGORIES, description="the closed set; empty: the service's own", examples=[[]]
    )
    all_categories: bool = Field(
        False,
        description=f"read each name of a closed set of more than {MAX_WHOLE_SET}; by default only the "
        f"{CATEGORY_SHORTLIST} that are likeliest beforehand are read, and the others left out of the answer",
    )
    min_probability: float = Field(0.0, ge=0, le=1, description="below it no category is told: the model abstains")

    def chosen(self, output: GenerationOutput) -> CategoryProbability | None:
        """Most probable category; None where its probability is below `min_probability`, or the model has none."""
        best = next(iter(output.categories or ()), None)
        return best if best and best.probability >= self.min_probability else None


class GenerateIn(CategoryIn, HashtagRules):
    """POST /generate."""


class CategoryPrediction(BaseModel):
    """The most probable category; `alternatives` are the other names that were read, most probable first. `abstain`:
    none is as probable as was asked; then `category` is null, and all that were read are alternatives."""

    category: str | None
    probability: float | None
    abstain: bool
    alternatives: list[CategoryOut]
    model: str
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
    """Vector, hashtags and category of one text, from one prefill."""

    embedding: list[float] = Field(description="unit length")
    hashtags: list[HashtagOut]
    reason: str | None = Field(None, description="why there are no hashtags")
    category: CategoryOut | None = Field(description="null: none is as probable as was asked")
    below_min: BelowMin = None
    model: str
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
