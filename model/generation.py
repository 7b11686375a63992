"""What is asked of the model and what it answers. Knows notes; not tokens, HTTP or storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from model.note import Note

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FindNeighbours = Callable[[Note, npt.NDArray[np.float32], int], "Neighbours"]
    """(note, its vector, count): stored notes with hashtags of their author, so many in each way; never the note
    itself."""


HashtagPolicy = Literal["open", "known", "grounded"]
"""What is told: whatever the model writes; of that, what other notes carry; or both, the best of what it writes and of
what the nearest notes carry."""


@dataclass(frozen=True, slots=True)
class Hashtag:
    """A generated hashtag. `score` in (0, 1]: the probability that the model writes it first; of grounded ones that
    and how many near notes carry it, together. `notes`: the nearest of these, by id."""

    text: str
    score: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A stored note, its author's hashtags, and how near it is to the one being read."""

    id: str
    score: float
    hashtags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Stored notes, the nearest first. `by_vector`: scores are cosines of vectors; `by_words`: those of Words."""

    by_vector: Sequence[Neighbour] = ()
    by_words: Sequence[Neighbour] = ()


class Vocabulary(Protocol):
    """The hashtags of notes that come and go, and how they are spelled in tokens. Thread-safe."""

    def __len__(self) -> int: ...
    def add(self, hashtags: Iterable[str]) -> None:
        """Those of one more note; a mapping tells how many more notes have each."""

    def remove(self, hashtags: Iterable[str]) -> None:
        """Those of a note that was added."""

    def after(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The tokens by which a hashtag that begins with `ids` goes on."""

    def holds(self, ids: Sequence[int]) -> bool:
        """Whether these are all tokens of a hashtag."""


@dataclass(frozen=True, slots=True)
class CategoryProbability:
    """A category of the closed set and its exact probability among the set (they sum to 1)."""

    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that one note cost: given to the model, each counted once, and written by it in all beams."""

    prompt_tokens: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to read from a note beside the vector, which is always read.

    `hashtags`: how many to write, 0 for none. `categories`: the closed set to choose from, empty for none. Of
    hashtags, `blocked` are keys (`hashtag_key`) of those never told; `vocabulary` holds the only ones that may be told;
    `find_neighbours` gives the notes whose hashtags count too; `on_hashtag` is told each hashtag once nothing better can come,
    the best first. These two are called in the engine's thread.
    """

    hashtags: int = 0
    categories: tuple[str, ...] = ()
    blocked: frozenset[str] = frozenset()
    vocabulary: Vocabulary | None = None
    find_neighbours: FindNeighbours | None = None
    on_hashtag: Callable[[Hashtag], None] | None = None


VECTOR_ONLY = GenerationRequest()


MAX_CATEGORY_TOKENS = 4096
"""Of a closed set's names; what several of them begin with counts once."""


class CategoriesTooLong(ValueError):
    """The names of a closed set have more than MAX_CATEGORY_TOKENS."""


@dataclass(frozen=True, slots=True)
class GenerationOutput:
    """What the model read from one note.

    `vector`: (dimension,) float32, unit length. `hashtags` is None when none were asked for; an empty
    tuple comes with `hashtags_reason`. `categories` holds the whole closed set, most probable first.
    `first_token_seconds`: from the start of the batch to the first generated token.
    """

    vector: npt.NDArray[np.float32]
    usage: Usage
    hashtags: tuple[Hashtag, ...] | None = None
    hashtags_reason: str | None = None
    categories: tuple[CategoryProbability, ...] | None = None
    first_token_seconds: float | None = None
