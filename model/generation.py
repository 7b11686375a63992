"""Types of generation: the model takes a note and a GenerationRequest, and returns a GenerationOutput.

Independent of the tokenizer, HTTP and storage.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from model.note import Note

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_CATEGORY_TOKENS = 4096
"""Maximum tokens that the names of a closed set add to a note's prefill, counting shared prefixes once. They are
computed in one forward, so this bounds its size; 500 names have about 1,400 tokens (docs/log/engine.md)."""
MAX_WHOLE_SET = 64
"""Number of names up to which a closed set is scored in full by default."""
CATEGORY_SHORTLIST = 32
"""Number of names scored of a larger closed set; they have about as many tokens as a note."""


class CategoriesTooLong(ValueError):
    """Raised for a closed set whose names have more than MAX_CATEGORY_TOKENS tokens."""


HashtagPolicy = Literal["open", "known", "grounded"]
"""Source of generated hashtags. "open": any text the model writes. "known": what the model writes, restricted to the
hashtags of stored notes. "grounded": the best of the model's hashtags and those of neighbouring notes."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A stored note that resembles the one being read, with its author's hashtags. A higher `score` is more similar."""

    id: str
    score: float
    hashtags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NamedHashtag:
    """A hashtag of stored notes whose words occur consecutively in the note being read. `carriers`: number of other
    stored notes that carry the hashtag. `having`: number of other stored notes that have the rarest of its words."""

    text: str
    carriers: int
    having: int


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Neighbours of one note by two searches, the most similar first, and the hashtags of stored notes that its text
    names.

    `by_vector`: scores are cosines of the vectors. `by_words`: scores are those of a lexical index, in (0, 1].
    `stored_notes`: number of notes of the community, with hashtags or without.
    """

    by_vector: Sequence[Neighbour] = ()
    by_words: Sequence[Neighbour] = ()
    named: Sequence[NamedHashtag] = ()
    stored_notes: int = 0


class FindNeighbours(Protocol):
    """Looks up neighbours of a note among stored notes with author hashtags, and the hashtags of stored
    notes that it names."""

    def __call__(self, note: Note, vector: npt.NDArray[np.float32], count: int, /) -> Neighbours:
        """Return up to `count` neighbours by vector and as many by words, never the note itself.

        `vector`: the embedding of `note`, (dimension,), unit length.
        """


class Vocabulary(Protocol):
    """The hashtags of the stored notes and their tokens. Thread-safe."""

    def __len__(self) -> int:
        """Number of distinct spellings of hashtags."""

    def add(self, hashtags: Iterable[str]) -> None:
        """Add the hashtags of a note, or of many: a mapping gives the number of notes with each hashtag."""

    def remove(self, hashtags: Iterable[str]) -> None:
        """Remove the hashtags of a note that was added."""

    def common_spelling(self, hashtag: str) -> str:
        """Return the most frequent spelling of `hashtag` in the stored notes; ties go to the last by code points.
        Spellings of one hashtag have the same `hashtag_key`. Returns `hashtag` itself if no stored note has it."""

    def uses(self, keys: Collection[str], own: Collection[str] = ()) -> dict[str, tuple[str, int]]:
        """Return, for each of `keys` (`hashtag_key`) that stored notes have, its most frequent spelling and the number
        of notes with any of its spellings; other keys are left out. `own`: hashtags of a stored note that is not
        counted."""

    def after(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens that may follow `ids` in a hashtag of the vocabulary."""

    def holds(self, ids: Sequence[int]) -> bool:
        """Return whether `ids` spell a whole hashtag of the vocabulary."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Selects what to generate for a note. Its vector is always computed.

    `hashtags`: how many to generate; 0 for none. The fields below `all_categories` apply to them.
    `categories`: the closed set to score; empty for none. If it has more than MAX_WHOLE_SET names, only a shortlist of
    the CATEGORY_SHORTLIST likeliest names is scored and returned, unless `all_categories`.
    `blocked`: keys (`hashtag_key`) of hashtags that are never returned.
    `vocabulary`: restricts the result to its hashtags (policy "known").
    `min_hashtag_score`: hashtags with a lower score are not returned, so there may be fewer than requested.
    `find_neighbours`: looks up the notes whose hashtags compete with the generated ones (policy "grounded").
    `on_hashtag`: called with each hashtag of the answer, the best first, as soon as its rank and spelling are final.
    Its score may still grow by further spellings.

    The engine calls `find_neighbours` and `on_hashtag` in its own thread.
    """

    hashtags: int = 0
    categories: tuple[str, ...] = ()
    all_categories: bool = False
    blocked: frozenset[str] = frozenset()
    min_hashtag_score: float = 0.0
    vocabulary: Vocabulary | None = None
    find_neighbours: FindNeighbours | None = None
    on_hashtag: Callable[[Hashtag], None] | None = None


VECTOR_ONLY = GenerationRequest()


@dataclass(frozen=True, slots=True)
class ReadTokens:
    """Maximum tokens that a model reads from each field of a note. The rest is ignored."""

    title: int
    hashtags: int
    content: int


@dataclass(frozen=True, slots=True)
class Hashtag:
    """A generated hashtag.

    `score`, in (0, 1]: the probability that the model writes it first; under the policy "grounded" that probability
    combined with the share of neighbours that carry it (`model.hashtags.grounding.rerank`). `notes`: ids of the most
    similar neighbours that carry it.
    """

    text: str
    score: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CategoryProbability:
    """A category and its probability among the scored names, whose probabilities sum to 1."""

    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens used for one note: `prompt_tokens` given to the model, each counted once, and `generated_tokens` in all
    beams together. The first request with a new closed set includes the tokens of its label prior."""

    prompt_tokens: int = 0
    generated_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of both kinds."""
        return self.prompt_tokens + self.generated_tokens


@dataclass(frozen=True, slots=True)
class GenerationOutput:
    """The model's answer for one note.

    `vector`: the embedding, (dimension,) float32, unit length.
    `hashtags`: the best first; None when none were requested. If it is empty, `hashtags_reason` is a sentence that says
    why.
    `hashtags_below_min`: hashtags left out because their score is below `min_hashtag_score` of the request.
    `categories`: the scored names, the most probable first; None when none were requested.
    `truncated`: whether the note was longer than the model reads. `language_supported`: whether the model reads the
    note's script; if not, hashtags and categories are empty.
    `first_token_seconds`: time from the start of the request in the engine to its first generated token.
    """

    vector: npt.NDArray[np.float32]
    usage: Usage
    hashtags: tuple[Hashtag, ...] | None = None
    hashtags_reason: str | None = None
    hashtags_below_min: tuple[Hashtag, ...] = ()
    categories: tuple[CategoryProbability, ...] | None = None
    truncated: bool = False
    language_supported: bool = True
    first_token_seconds: float | None = None
