"""The records that every layer speaks. Standard library only; knows nothing of tokens, HTTP or storage."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Nearest = Callable[["Note", npt.NDArray[np.float32], int], "Near"]
    """(note, its vector, count): stored notes with hashtags of their author, so many in each way; never the note
    itself."""

MAX_HASHTAG_CHARS = 50
"""Longest hashtag kept, in characters; a longer one is cut by `normalise_hashtag`."""

Attribute = str | int | float | bool
HashtagPolicy = Literal["open", "known", "grounded"]
"""What is told: whatever the model writes; of that, what other notes carry; or both, the best of what it writes and of
what the nearest notes carry."""


@dataclass(frozen=True, slots=True)
class Note:
    """One post as its author wrote it.

    `hashtags` and `category` are the author's own; what the model writes is a `Reading`. Times are
    seconds since the epoch, UTC.
    """

    title: str = ""
    content: str = ""
    hashtags: tuple[str, ...] = ()
    category: str | None = None
    id: str = ""
    author: str | None = None
    created_at: float | None = None
    expires_at: float | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    @property
    def prompt_text(self) -> tuple[str, str, tuple[str, ...]]:
        """The fields that enter the prompt: two notes equal here have the same embedding."""
        return self.title, self.content, self.hashtags


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
class Near:
    """Stored notes, the nearest first. `by_vector`: scores are cosines of vectors; `by_words`: those of Words."""

    by_vector: Sequence[Neighbour] = ()
    by_words: Sequence[Neighbour] = ()


class Words(Protocol):
    """Notes that come and go, found by the words that they share. Thread-safe."""

    def add(self, note: Note) -> None:
        """Or replace the one of the same id."""

    def remove(self, note_id: str) -> None:
        """An unknown id is ignored."""

    def nearest(self, note: Note, count: int) -> list[tuple[str, float]]:
        """Ids and scores of the `count` notes that share the most words with `note`, best first, ties by id; never the
        one of its own id. A score is above 0, and 1 where the words are the same."""

    def freeze(self) -> tuple[list[str], Mapping[str, Any]]:
        """Ids, and arrays: all of it as it is now."""

    def thaw(self, ids: Sequence[str], arrays: Mapping[str, Any]) -> None:
        """Become, from being empty, what was frozen."""


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
class Wanted:
    """What to read from a note beside the vector, which is always read.

    `hashtags`: how many to write, 0 for none. `categories`: the closed set to choose from, empty for none. Of
    hashtags, `blocked` are keys (`hashtag_key`) of those never told; `known` holds the only ones that may be told;
    `nearest` gives the notes whose hashtags count too; `settled` is told each hashtag once nothing better can come,
    the best first. These two are called in the engine's thread.
    """

    hashtags: int = 0
    categories: tuple[str, ...] = ()
    blocked: frozenset[str] = frozenset()
    known: Vocabulary | None = None
    nearest: Nearest | None = None
    settled: Callable[[Hashtag], None] | None = None


VECTOR_ONLY = Wanted()
MAX_CATEGORY_TOKENS = 4096
"""Of a closed set's names; what several of them begin with counts once."""


class CategoriesTooLong(ValueError):
    """The names of a closed set have more than MAX_CATEGORY_TOKENS."""


@dataclass(frozen=True, slots=True)
class Reading:
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


def replace_lone_surrogates(text: str) -> str:
    """UTF-16 surrogates without a partner become U+FFFD: no encoder accepts them."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def normalise_hashtag(text: str) -> str:
    """One hashtag in stored form: NFKC, no '#' or control characters, single spaces, at most 50 characters.

    Case is the author's. Returns "" where nothing is left.
    """
    text = unicodedata.normalize("NFKC", replace_lone_surrogates(text)).replace("#", " ")
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)
    return " ".join(text.split())[:MAX_HASHTAG_CHARS].strip()


def hashtag_key(text: str) -> str:
    """What makes two hashtags the same: case and spacing do not count."""
    return normalise_hashtag(text).casefold().replace(" ", "")


def normalise_hashtags(texts: Iterable[str]) -> tuple[str, ...]:
    """Stored form of a list: each normalised, empty ones dropped, of equal ones (`hashtag_key`) the first kept."""
    kept: dict[str, str] = {}
    for text in texts:
        if normal := normalise_hashtag(text):
            kept.setdefault(hashtag_key(normal), normal)
    return tuple(kept.values())
