"""Note, the record that every layer passes on, and the stored form of hashtags.

Standard library only; knows nothing of tokens, HTTP or storage.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAX_HASHTAG_CHARS = 50
"""Longest hashtag kept, in characters; `normalise_hashtag` cuts a longer one."""

Attribute = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Note:
    """One post as its author wrote it.

    `hashtags` and `category` are the author's own; what the model generates is a `GenerationOutput`. `created_at` and
    `expires_at` are seconds since the epoch, UTC. `attributes` are further fields that a search can filter by.
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
        """Title, content and hashtags: the fields that enter the prompt. Notes equal here have the same embedding."""
        return self.title, self.content, self.hashtags

    def is_same(self, other: Note) -> bool:
        """Return whether two notes are equal, also in the types of their attributes: True, 1 and 1.0 are three values,
        which Python takes for one."""
        types = [{name: type(value) for name, value in note.attributes.items()} for note in (self, other)]
        return self == other and types[0] == types[1]


def replace_lone_surrogates(text: str) -> str:
    """Return `text` with each UTF-16 surrogate that has no partner replaced by U+FFFD: no encoder accepts them."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def normalise_hashtag(text: str) -> str:
    """Return the stored form of a hashtag, or "" where nothing is left of it.

    NFKC, without '#' and control characters, single spaces, at most MAX_HASHTAG_CHARS characters. Case is kept.
    """
    text = unicodedata.normalize("NFKC", replace_lone_surrogates(text)).replace("#", " ")
    text = "".join(" " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char for char in text)
    return " ".join(text.split())[:MAX_HASHTAG_CHARS].strip()


def hashtag_key(text: str) -> str:
    """Return the key that two spellings of one hashtag share: case and spacing do not count."""
    return normalise_hashtag(text).casefold().replace(" ", "")


def normalise_hashtags(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the stored form of a list: empty hashtags dropped, and of those with one `hashtag_key` the first kept."""
    kept: dict[str, str] = {}
    for text in texts:
        if hashtag := normalise_hashtag(text):
            kept.setdefault(hashtag_key(hashtag), hashtag)
    return tuple(kept.values())
