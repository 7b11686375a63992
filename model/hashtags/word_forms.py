"""Forms of one word among the hashtags that the model writes: "metallic" after "metal" says nothing new."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from functools import lru_cache
from math import ceil

from model.dedup_key import dedup_key
from model.generation import Hashtag
from model.words import UNSPACED

MIN_SHARED_LETTERS = 5
"""Minimum number of first letters that two forms of one word share."""
MIN_SHARED_PART = 0.5
"""Minimum part of the longer form that these letters are. Leaving out further forms changes F1 by no more than noise
(docs/log/hashtags.md)."""
KEPT_PAIRS = 2**15
"""Number of pairs of hashtags whose comparison is cached: a beam search compares the same ones at each step."""
WORD = re.compile(rf"[^\W\d_{UNSPACED}]+")
"""Matches a word of letters alone. Where words have no spaces between them, hashtags that begin alike often have one
word in common and differ in the next."""


@lru_cache(KEPT_PAIRS)
def are_forms_of_one_word(one: str, other: str) -> bool:
    """Return whether two hashtags are single words that begin alike, as derived words ("photographer", "photography")
    and misspelt ones ("barbecue", "barbeque") do. Some words with another meaning do, too ("childhood", "childbirth").
    """
    if not (WORD.fullmatch(one) and WORD.fullmatch(other)):
        return False
    one, other = one.casefold(), other.casefold()
    shared = max(MIN_SHARED_LETTERS, ceil(MIN_SHARED_PART * max(len(one), len(other))))
    return min(len(one), len(other)) >= shared and one[:shared] == other[:shared]


def without_further_forms(ranked: Iterable[Hashtag], exempt: Container[str] = ()) -> Iterator[Hashtag]:
    """Yield hashtags, which are given best first, without those that are another form of a better one. `exempt`: keys
    (`dedup_key`) of hashtags that are never left out."""
    better: list[str] = []
    for hashtag in ranked:
        repeated = any(are_forms_of_one_word(hashtag.text, other) for other in better)
        if not repeated or dedup_key(hashtag.text) in exempt:
            better.append(hashtag.text)
            yield hashtag
