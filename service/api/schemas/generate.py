"""POST /generate, /generate/hashtags, /generate/category; and what the model generated, in all answers."""

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
from service.api.schemas.common import Form, HashtagName, ModelName, Name, TaggedText, Wire

MAX_GENERATED = 10
"""Bound on the hashtags that one request generates."""
MAX_CATEGORIES = 500
"""Bound on a request's closed set; MAX_CATEGORY_TOKENS bounds the length of its names."""
MAX_BLOCKED = 1000
"""Bound on the hashtags that a request forbids."""


TRUNCATED = "true if the text is longer than the model reads; see GET /limits"
LANGUAGE_SUPPORTED = "false if the model does not support the script of the text, and so generates nothing for it"
Truncated = Annotated[bool, Field(description=TRUNCATED)]
LanguageSupported = Annotated[bool, Field(description=LANGUAGE_SUPPORTED)]


class HashtagOut(BaseModel):
    """A generated hashtag."""

    text: str = Field(description="the hashtag, without '#'")
    score: float = Field(
        description="in (0, 1]: probability that the model writes this hashtag first; with the policy grounded, this "
        "probability combined with the share of the neighbours that carry it and with whether the text names it"
    )
    notes: list[str] = Field(
        [],
        description="with the policy grounded: ids of the neighbours that carry this hashtag; omitted if none does",
        exclude_if=lambda notes: not notes,
    )

    @classmethod
    def of(cls, hashtag: Hashtag) -> Self:
        return cls(text=hashtag.text, score=hashtag.score, notes=list(hashtag.notes))


class CategoryOut(BaseModel):
    """A category name with its probability."""

    name: str = Field(description="name as written in the closed set")
    probability: float = Field(description="probability among the scored names; these probabilities sum to 1")

    @classmethod
    def of(cls, category: CategoryProbability) -> Self:
        return cls(name=category.name, probability=category.probability)


class BelowMinOut(BaseModel):
    """Hashtags and category left out of the answer because they are below a bound of the request or of the service."""

    hashtags: list[HashtagOut] | None = Field(
        None,
        description="hashtags with a score below `min_score`; for a note sent without it, below "
        "NOTELLM_MIN_HASHTAG_SCORE; null if none",
    )
    category: CategoryOut | None = Field(
        None,
        description="category less probable than `min_probability`; for a note, less probable than "
        "NOTELLM_MIN_CATEGORY_PROBABILITY; null if none",
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
        description="results left out because they are below a bound; omitted if there are none",
        exclude_if=lambda below: below is None,
    ),
]


class UsageOut(BaseModel):
    """Tokens that the model read and generated."""

    prompt_tokens: int = Field(
        0,
        description="tokens that the model read, each counted once, however many results are computed from it; "
        "the first text with a set of categories of which training has not shown all also counts the tokens of their "
        "names",
    )
    generated_tokens: int = Field(0, description="tokens generated for hashtags, in all beams together")

    @classmethod
    def of(cls, usage: Usage) -> Self:
        return cls(prompt_tokens=usage.prompt_tokens, generated_tokens=usage.generated_tokens)


class HashtagRules(Wire):
    """Options for the generated hashtags."""

    policy: HashtagPolicy | None = Field(
        None,
        description="source of the hashtags. open: whatever the model writes; known: of that, only hashtags that "
        "authors of stored notes use; grounded: the best of what the model writes, of what the text's neighbours "
        "carry (the stored notes nearest to it, by vectors and by words), and of hashtags of stored notes that the "
        "text names; null: the service's default",
    )
    blocked: list[HashtagName] = Field(
        [], max_length=MAX_BLOCKED, description="hashtags never to return, whatever their case and spacing"
    )
    min_score: float = Field(
        0.0, ge=0, le=1, description="minimum score; hashtags below it are left out, so that there may be fewer"
    )
    language: Annotated[str, Form(r"^[a-z]{2,3}$", "must be an ISO 639 code, such as en")] | None = Field(
        None,
        description="ISO 639 code of the expected language; 422 if the model does not write it, otherwise without "
        "effect",
        examples=["en"],
    )


class HashtagsIn(TaggedText, HashtagRules):
    """A text, with the hashtags that it already has: the model reads these too, and the answer never repeats them."""

    count: int = Field(GENERATED_HASHTAGS, ge=1, le=MAX_GENERATED, description="maximum number of hashtags")


class HashtagsOut(BaseModel):
    """Hashtags generated for a text."""

    hashtags: list[HashtagOut] = Field(description="hashtags, best first")
    reason: str | None = Field(None, description="why there are no hashtags; null if there are any")
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
    """A text, and the closed set of categories to choose from."""

    categories: list[Name] = Field(
        [],
        max_length=MAX_CATEGORIES,
        description="closed set of category names; empty: the service's own set (NOTELLM_CATEGORIES)",
        examples=[[]],
    )
    all_categories: bool = Field(
        False,
        description=f"true: score every name of a closed set of more than {MAX_WHOLE_SET}; by default only the "
        f"{CATEGORY_SHORTLIST} names preselected as likeliest are scored, and the others are not in the answer",
    )
    min_probability: float = Field(
        0.0, ge=0, le=1, description="minimum probability; `category` is null if no name reaches it"
    )

    def chosen(self, output: GenerationOutput) -> CategoryProbability | None:
        """Most probable category; None where its probability is below `min_probability`, or the model has none."""
        best = next(iter(output.categories or ()), None)
        return best if best and best.probability >= self.min_probability else None


class GenerateIn(CategoryIn, HashtagRules):
    """A text, options for its hashtags, and the closed set of categories to choose from."""


class CategoryPrediction(BaseModel):
    """The category of a text, chosen from a closed set."""

    category: str | None = Field(description="most probable name; null if `abstain` is true")
    probability: float | None = Field(
        description="probability of `category` among all scored names; null if `category` is null"
    )
    abstain: bool = Field(description="true if no name reaches `min_probability`, or the model scored none")
    alternatives: list[CategoryOut] = Field(
        description="other scored names, most probable first; all scored names if `abstain` is true"
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

    embedding: list[float] = Field(description="vector of the text, of unit length")
    hashtags: list[HashtagOut] = Field(description=f"hashtags, best first, at most {GENERATED_HASHTAGS}")
    reason: str | None = Field(None, description="why there are no hashtags; null if there are any")
    category: CategoryOut | None = Field(
        description="most probable category; null if no name reaches `min_probability`, or the model scored none"
    )
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
