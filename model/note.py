"""The records that every layer speaks. Standard library only; knows nothing of tokens, HTTP or storage."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAX_HASHTAG_CHARS = 50
"""Longest hashtag kept, in characters; a longer one is cut by `normalise_hashtag`."""

Attribute = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Note:
    """One post as its author wrote it.

    `hashtags` and `category` are the author's own; what the model writes is a `GenerationOutput`. Times are
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
