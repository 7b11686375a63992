"""Keys by which two spellings count as the same hashtag, in a list of hashtags and as blocked ones."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from model.note import hashtag_key

MAX_CACHED_HASHTAGS = 2**15
"""Number of hashtags whose key and scripts are cached: a hundred neighbours share most of theirs with those of other
notes, and without a cache 3,000 hashtags take 0.1 s of the thread that runs the model."""
MAX_CACHED_BLOCK_LISTS = 16
"""Number of block lists whose keys are cached: the deployment's, and some of requests."""
HYPHENS = ("Pd", "Pc")
"""Unicode categories of hyphens, dashes and underscores, which some authors use to join the words of a hashtag."""
SINGULARS_IN_S = ("news", "lens", "alias", "atlas", "canvas", "pancreas", "christmas")
"""Endings of singulars that look like a plural, because of another word ("news" of "new") or with a plural of their own
("canvas", "canvases")."""
ENDINGS_BEFORE_ES = ("ch", "sh", "ss", "x", "z", "o", "us", "is", "gas", *SINGULARS_IN_S)
"""Endings of a singular whose plural may add "es"."""
ENDINGS_WITH_E = tuple(f"{ending}e" for ending in ENDINGS_BEFORE_ES)
"""Endings of a plural in "es" without its "s". A singular may end the same way: "caches" is the plural of "cache",
"beaches" of "beach"."""


@lru_cache(MAX_CACHED_HASHTAGS)
def dedup_key(text: str) -> str:
    """Return the key by which lists of hashtags are deduplicated. Case, spaces, hyphens, underscores and regular
    English plurals do not count. A key need not be a word."""
    return _dedup_key(hashtag_key(text))


def _dedup_key(key: str) -> str:
    """Return the `dedup_key` of a hashtag from its `hashtag_key`."""
    return number_neutral("".join(char for char in key if unicodedata.category(char) not in HYPHENS) or key)


@lru_cache(MAX_CACHED_BLOCK_LISTS)
def blocked_keys(keys: frozenset[str]) -> frozenset[str]:
    """Return the `dedup_key` of hashtags from their `hashtag_key`. Results are cached, since a deployment's list may
    have thousands of hashtags, and each note needs it."""
    return frozenset(map(_dedup_key, keys))


def number_neutral(word: str) -> str:
    """Return a form that the singular and the regular plural of an English word share, which need not be a word: "cach"
    of "cache" and "caches". Irregular plurals ("mice"), and those of words of two letters ("TVs"), keep their own
    form."""
    if word.endswith(SINGULARS_IN_S):
        return word
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    if word.endswith(("i", "u")) and len(word) > 2:
        return word + "s"  # "menus" may be a plural, and "virus" is none: both keep their "s", so "menu" gets one
    if len(word) > 3 and word.endswith("ie"):
        return word[:-2] + "y"
    if len(word) > 3 and word.endswith(ENDINGS_WITH_E):
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith("zz") else word
