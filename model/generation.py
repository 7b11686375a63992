"""Generation types: a GenerationRequest goes to the model with a note, a GenerationOutput comes back.

Knows notes; not tokens, HTTP or storage.
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
"""Bound on the tokens that the names of a closed set add to a note's prefill, a prefix that several names share counted
once. They are computed in one forward, so this bounds its size; 500 names have about 1,400 (docs/log/engine.md)."""
MAX_WHOLE_SET = 64
"""Names of the largest closed set that is read whole without being asked for."""
CATEGORY_SHORTLIST = 32
"""Names that are read of a larger closed set. They have about as many tokens as a note."""


class CategoriesTooLong(ValueError):
    """Raised for a closed set whose names have more than MAX_CATEGORY_TOKENS tokens."""


HashtagPolicy = Literal["open", "known", "grounded"]
"""Where generated hashtags may come from. "open": whatever the model writes. "known": what the model writes, held to
the hashtags of stored notes. "grounded": the best of what the model writes and of what neighbouring notes carry."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A stored note that resembles the one being read, with its author's hashtags. A higher `score` is more similar."""

    id: str
    score: float
    hashtags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NamedHashtag:
    """A hashtag of stored notes whose words the note being read has, one after the other. `carriers`: number of other
    stored notes that carry it. `having`: number of those with the rarest of its words."""

    text: str
    carriers: int
    having: int


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Neighbours of one note, found in two ways, the most similar first, and hashtags of any notes that its text names.

    `by_vector`: scores are cosines of the vectors. `by_words`: scores are those of a lexical index, in (0, 1].
    """

    by_vector: Sequence[Neighbour] = ()
    by_words: Sequence[Neighbour] = ()
    named: Sequence[NamedHashtag] = ()


class FindNeighbours(Protocol):
    """Looks up stored notes whose authors gave hashtags, and hashtags that a note names."""

    def __call__(self, note: Note, vector: npt.NDArray[np.float32], count: int, /) -> Neighbours:
        """Return up to `count` neighbours in each of the two ways, never the note itself.

        `vector`: the embedding of `note`, (dimension,), unit length.
        """


class Vocabulary(Protocol):
    """The hashtags of the stored notes, and how each is spelled in tokens. Thread-safe."""

    def __len__(self) -> int:
        """Number of different hashtags."""

    def add(self, hashtags: Iterable[str]) -> None:
        """Add the hashtags of a note. A mapping from hashtags to counts adds those of that many notes."""

    def remove(self, hashtags: Iterable[str]) -> None:
        """Remove the hashtags of a note that was added."""

    def common_spelling(self, hashtag: str) -> str:
        """Return the most frequent spelling of `hashtag` in the stored notes. Spellings of one hashtag have the same
        `hashtag_key`; of equally frequent ones the last by code points counts. `hashtag` itself where no note has any.
        """

    def uses(self, keys: Collection[str], own: Collection[str] = ()) -> dict[str, tuple[str, int]]:
        """Return the most frequent spelling of each hashtag that stored notes have, and how many have any of its
        spellings, by `hashtag_key`; nothing for the other keys. `own`: hashtags of a stored note that does not count.
        """

    def after(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens after `ids` with which they still begin, or spell, a hashtag of the vocabulary."""

    def holds(self, ids: Sequence[int]) -> bool:
        """Return whether `ids` spell a whole hashtag."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Choice of what to generate for a note. Its vector is always computed.

    `hashtags`: how many to generate; 0 for none. The fields below `all_categories` apply to them.
    `categories`: the closed set to score; empty for none. Of more than MAX_WHOLE_SET names only the CATEGORY_SHORTLIST
    that are likeliest beforehand are read and returned, unless `all_categories`.
    `blocked`: keys (`hashtag_key`) of hashtags that are never returned.
    `vocabulary`: holds the only hashtags that may be returned (policy "known").
    `min_hashtag_score`: hashtags with a lower score are not returned, so that there may be fewer than asked for.
    `find_neighbours`: looks up the notes whose hashtags compete with the generated ones (policy "grounded").
    `on_hashtag`: is called with each hashtag of the answer, the best first, as soon as its rank and spelling are
    settled. Its score may still grow by further spellings.

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
    """Most tokens that a model reads of each field of a note. What is beyond them is not read."""

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
    """A category and its probability among the names that were read, whose probabilities sum to 1."""

    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens spent on one note: `prompt_tokens` given to the model, each counted once, and `generated_tokens` in all
    beams together. The first note with a new closed set also has the tokens of its label prior."""

    prompt_tokens: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class GenerationOutput:
    """The model's answer for one note.

    `vector`: the embedding, (dimension,) float32, unit length.
    `hashtags`: the best first; None when none were asked for. An empty tuple comes with `hashtags_reason`, a sentence.
    `hashtags_below_min`: those that were left out since their score is below `min_hashtag_score` of the request.
    `categories`: the names that were read, the most probable first; None when none was asked for.
    `truncated`: the note was longer than the model reads. `language_supported`: the model reads the note's script;
    where it does not, hashtags and categories are empty.
    `first_token_seconds`: from when the engine begins with the note until its first generated token is known.
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
