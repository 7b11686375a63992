"""Words of a text, by which notes are compared and categories told, and their hashes."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator
from itertools import pairwise

from model.note import Note, replace_lone_surrogates

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\U0003ffff"
"""Characters of scripts without spaces between words, from Thai to Chinese, and of Korean; each pair of neighbouring
characters is taken as a word. Korean has spaces, but its particles are joined to the words: two notes share the pairs
of a noun whatever particles follow."""
MAX_PHRASE_WORDS, MAX_PHRASE_CHARACTERS = 3, 6
"""Bounds on the length of a phrase: in words, and in characters of an UNSPACED script."""
RUN = re.compile(rf"([^\W_{UNSPACED}]+)|((?:(?=[^\W_])[{UNSPACED}])+)")
"""A run of letters and digits: a word, or else a text without spaces."""
MAX_CHARS = 2000
"""Bound on the characters of a title, and of a content, that are split into words."""


def words_of(note: Note) -> frozenset[str]:
    """Return the words of title, content and hashtags.

    A word is a case-folded run of letters and digits without combining marks, such as the vowel signs of Indic
    scripts; in UNSPACED scripts, each pair of neighbouring characters.
    """
    return frozenset(words_in(_text(note)))


def words_in(text: str) -> list[str]:
    """Return the words of a text, in its order; see `words_of`. A single character of an UNSPACED script is a word."""
    return [word for run, unspaced in _runs(text) for word in ([run] if run else _pairs(unspaced) or [unspaced])]


def words_and_characters(note: Note) -> list[str]:
    """Return the words of a note in its order, repeated as they are; in UNSPACED scripts each character and each pair.

    A single character says much of a note's category, and little of which note it is.
    """
    runs = _runs(_text(note))
    return [word for run, unspaced in runs for word in ([run] if run else (*unspaced, *_pairs(unspaced)))]


def phrases_of(note: Note) -> dict[str, tuple[str, ...]]:
    """Return the words of each phrase of title and content, by the phrase in lower case and without spaces: the
    `hashtag_key` of a hashtag that is spelled so. A hashtag with a hyphen or another character that no word has, or
    that joins words to characters of an UNSPACED script, is no phrase."""
    phrases: dict[str, tuple[str, ...]] = {}
    for text in (note.title, note.content):
        for phrase, words in _phrases_in(text[:MAX_CHARS]):
            if len(words) > len(phrases.get(phrase, ())):  # of "roadtrip" and "road trip" the one of more words
                phrases[phrase] = words
    return phrases


def _phrases_in(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each phrase of a text and its words: up to MAX_PHRASE_WORDS words that follow each other; in UNSPACED
    scripts, 2 to MAX_PHRASE_CHARACTERS characters, whose words are their pairs."""
    words: list[str] = []  # those that the next phrases may begin with
    for word, unspaced in _runs(text):
        words = [*words, word][-MAX_PHRASE_WORDS:] if word else []
        for begin in range(len(words)):
            yield "".join(words[begin:]), tuple(words[begin:])
        pairs = tuple(_pairs(unspaced))
        for begin in range(len(pairs)):
            for end in range(begin + 1, min(begin + MAX_PHRASE_CHARACTERS, len(unspaced))):
                yield unspaced[begin : end + 1], pairs[begin:end]


def word_hashes(note: Note) -> frozenset[int]:
    """Return 32-bit hashes of the words of a note."""
    return frozenset(map(word_hash, words_of(note)))


def word_hash(word: str) -> int:
    return zlib.crc32(word.encode())


def _text(note: Note) -> str:
    return " ".join((note.title[:MAX_CHARS], note.content[:MAX_CHARS], *note.hashtags))


def _runs(text: str) -> list[tuple[str, str]]:
    """Return the runs of a text, of which a character may become 18: what exceeds twice its length is left out. Each is
    (a word, "") or ("", characters of a script without spaces)."""
    text = unicodedata.normalize("NFKC", replace_lone_surrogates(text))[: max(64, 2 * len(text))].casefold()
    if not text.isascii():
        text = "".join(char for char in text if not unicodedata.category(char).startswith("M"))
    return RUN.findall(text)


def _pairs(run: str) -> list[str]:
    """Return the pairs of neighbouring characters."""
    return ["".join(pair) for pair in pairwise(run)]
