"""Unicode scripts of a text's letters."""

from __future__ import annotations

import unicodedata
from collections import Counter

from model.note import ANY_IGNORED

EAST_ASIAN = ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC")
"""First words of the Unicode names of characters that Japanese mixes with Chinese ones; their script counts as CJK."""


def letters_by_script(text: str) -> Counter[str]:
    """Count the letters of each script in `text`. Scripts have their Unicode names, but all of Chinese and Japanese is
    CJK."""
    counts: Counter[str] = Counter()
    for char, count in Counter(text).items():
        # One character at a time: normalising a text takes quadratic time in its longest run of combining marks.
        if ANY_IGNORED.match(char):  # such as the fillers of Hangul, which are letters that show nothing
            continue
        for normal in filter(str.isalpha, unicodedata.normalize("NFKC", char)):
            name = unicodedata.name(normal, "?").split()[0]
            if name != "MODIFIER":  # the letters of "Hawaiʻi" and "Qurʼan" that belong to any script
                counts["CJK" if name in EAST_ASIAN else name] += count
    return counts


def scripts(text: str) -> frozenset[str]:
    """Return the scripts of the letters in `text`."""
    return frozenset(letters_by_script(text))
