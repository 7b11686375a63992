"""Note, the record shared by all layers, and the normalisation of hashtags.

Standard library only; independent of tokens, HTTP and storage.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

MAX_HASHTAG_CHARS = 50
"""Longest hashtag kept, in characters; `normalise_hashtag` cuts a longer one."""
MAX_CACHED_KEYS = 2048
"""Cache size of `hashtag_keys`: lists of hashtags, up to a few kB each."""
MAX_RAW_HASHTAG_CHARS = 10 * MAX_HASHTAG_CHARS
"""Maximum characters of a hashtag that are normalised: NFKC takes quadratic time in a run of combining marks, 21 s for
128,000."""

CONTROL = "\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029"
"""Control characters and line separators, for a character class of a regular expression, as are the two constants
below."""
INVISIBLE = (
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
"""Characters that are neither visible nor joiners; they are removed from hashtags."""
IGNORED = "\u034f\u115f\u1160\u17b4\u17b5\u200c\u200d\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef"
"""Characters that are invisible themselves; most change how their neighbours are displayed, such as joined letters or
emoji in colour. Hashtags keep them, their keys do not."""
JOINERS = "\u200c\u200d"
"""Characters of IGNORED that join the characters on both sides, and have no meaning at the end of a word."""
SUBDIVISION_FLAG = "\U0001f3f4[\U000e0030-\U000e007a]+\U000e007f"
"""Regular expression for the flag emoji of a part of a country, such as Scotland: a black flag followed by INVISIBLE
characters."""
DOTTED_I = "i\u0307"
"""The letter i and a combining dot: `str.casefold` turns the Turkish capital letter I with a dot into these two."""
FLAG_OR_INVISIBLE = re.compile(f"({SUBDIVISION_FLAG})|[{INVISIBLE}]")
ANY_CONTROL, ANY_IGNORED = re.compile(f"[{CONTROL}]"), re.compile(f"[{IGNORED}]")
ANY_UNSEEN = re.compile(f"[{INVISIBLE}{IGNORED}]")
KEYCAP = "\u20e3"
"""Character that draws a key around the one before it, such as a '#', which a hashtag loses."""
BLANK = re.compile(f"[\\s\u2800{CONTROL}{INVISIBLE}{IGNORED}{KEYCAP}]*")
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

    def expired(self, now: float) -> bool:
        """Return whether the note has expired at `now`, in seconds since the epoch."""
        return self.expires_at is not None and self.expires_at <= now

    def is_same(self, other: Note) -> bool:
        """Return whether two notes are equal, including the types of their attributes: to Python, True, 1 and 1.0 are
        equal."""
        types = [{name: type(value) for name, value in note.attributes.items()} for note in (self, other)]
        return self == other and types[0] == types[1]


def replace_lone_surrogates(text: str) -> str:
    """Return `text` with each UTF-16 surrogate that has no partner replaced by U+FFFD: no encoder accepts them."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def normalise_hashtag(text: str) -> str:
    """Return the stored form of a hashtag, or "" if nothing is left of it.

    The stored form is NFKC with single spaces and at most MAX_HASHTAG_CHARS characters, without '#', control and
    invisible characters. Case is kept.
    """
    text = _without_invisible(replace_lone_surrogates(text))[:MAX_RAW_HASHTAG_CHARS]
    text = ANY_CONTROL.sub(" ", unicodedata.normalize("NFKC", text)[:MAX_RAW_HASHTAG_CHARS]).replace("#", " ")
    words = (word.strip(JOINERS) for word in text.split())
    hashtag = _without_invisible(" ".join(filter(None, words))[:MAX_HASHTAG_CHARS])  # a flag may have been cut
    hashtag = hashtag.strip(f" {JOINERS}")
    return "" if is_blank(hashtag) else hashtag


def _without_invisible(text: str) -> str:
    """Return `text` without INVISIBLE characters, except in flags."""
    return FLAG_OR_INVISIBLE.sub(lambda match: match[1] or "", text)


def is_blank(text: str) -> bool:
    """Return whether a text has nothing visible: only spaces, control and invisible characters."""
    return BLANK.fullmatch(text) is not None


def hashtag_key(text: str) -> str:
    """Return the key shared by all spellings of one hashtag. It ignores case, spaces, invisible characters (which show
    an emoji in colour or join letters), and the dot that case folding leaves of a Turkish capital I."""
    key = normalise_hashtag(text).casefold().replace(" ", "").replace(DOTTED_I, "i")
    return unicodedata.normalize("NFC", ANY_IGNORED.sub("", key))


@lru_cache(MAX_CACHED_KEYS)
def hashtag_keys(hashtags: tuple[str, ...]) -> frozenset[str]:
    """Return the `hashtag_key` of each hashtag. Results are cached, since a filter with many conditions asks for a
    note's keys once per condition."""
    return frozenset(map(hashtag_key, hashtags))


def normalise_hashtags(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the stored form of a list of hashtags, without empty ones; of those with the same `hashtag_key`, the
    first."""
    kept: dict[str, str] = {}
    for text in texts:
        if hashtag := normalise_hashtag(text):
            kept.setdefault(hashtag_key(hashtag), hashtag)
    return tuple(kept.values())
