"""Words of a text and their hashes, used to compare notes and to predict categories."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator
from itertools import pairwise

from model.note import ANY_UNSEEN, Note, replace_lone_surrogates

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\U0003ffff"
"""Characters of scripts without spaces between words, from Thai to Chinese, and of Korean; each pair of neighbouring
characters is taken as a word. Korean has spaces, but its particles are joined to the words; with pairs, two notes share
a noun whatever particles follow."""
MAX_PHRASE_WORDS, MAX_PHRASE_CHARACTERS = 3, 6
"""Bounds on the length of a phrase: in words, and in characters of an UNSPACED script."""
RUN = re.compile(rf"([^\W_{UNSPACED}]+)([-'’](?=[^\W_{UNSPACED}]))?|((?:(?=[^\W_])[{UNSPACED}])+)")
"""Matches a run of letters and digits: a word (group 1) with the hyphen or apostrophe that joins it to the next one, as
in "hip-hop" (group 2), or text of an UNSPACED script (group 3)."""
MAX_CHARS = 2000
"""Maximum characters of a title, and of a content, that are split into words."""


def words_of(note: Note) -> frozenset[str]:
    """Return the words of title, content and hashtags.

    A word is a case-folded run of letters and digits without invisible characters and combining marks, such as the
    vowel signs of Indic scripts; in UNSPACED scripts, each pair of neighbouring characters.
    """
    return frozenset(words_in(_text(note)))


def words_in(text: str) -> list[str]:
    """Return the words of a text in order, with repeats; see `words_of`. A lone character of an UNSPACED script is a
    word."""
    return [word for run, _, unspaced in _runs(text) for word in ([run] if run else _pairs(unspaced) or [unspaced])]


def words_and_characters(note: Note) -> list[str]:
    """Return the words of a note in order, with repeats; in UNSPACED scripts, each character and each pair.

    A single character says much about a note's category, but hardly tells notes apart.
    """
    runs = _runs(_text(note))
    return [word for run, _, unspaced in runs for word in ([run] if run else (*unspaced, *_pairs(unspaced)))]


def phrases_of(note: Note) -> dict[str, tuple[str, ...]]:
    """Return the words of each phrase of title and content, keyed by the phrase in lower case without spaces: the
    `hashtag_key` of a hashtag with that text. Words that a hyphen or an apostrophe joins have two keys, with it and
    without. A hashtag is never found as a phrase if it has another character that is not part of words, or joins words
    to characters of an UNSPACED script."""
    phrases: dict[str, tuple[str, ...]] = {}
    for text in (note.title, note.content):
        for phrase, words in _phrases_in(text[:MAX_CHARS]):
            if len(words) > len(phrases.get(phrase, ())):  # "road trip" rather than "roadtrip"
                phrases[phrase] = words
    return phrases


def _phrases_in(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each phrase of a text and its words: up to MAX_PHRASE_WORDS consecutive words; in UNSPACED scripts, 2 to
    MAX_PHRASE_CHARACTERS characters, whose words are their pairs."""
    words: list[str] = []  # the last words, up to the current one
    spelled: list[str] = []  # the same, each with the hyphen or apostrophe that joins it to the next
    for word, joiner, unspaced in _runs(text):
        words = [*words, word][-MAX_PHRASE_WORDS:] if word else []
        for begin in range(len(words)):
            yield "".join(words[begin:]), tuple(words[begin:])
        spelled = [*spelled, word][-MAX_PHRASE_WORDS:] if word else []
        if spelled[:-1] != words[:-1]:
            for begin in range(len(words) - 1):
                yield "".join(spelled[begin:]), tuple(words[begin:])
        if joiner:
            spelled[-1] += joiner
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


def _runs(text: str) -> list[tuple[str, str, str]]:
    """Return the runs of a text, each the three groups of RUN. Normalisation may turn one character into 18, so the
    result is cut at twice the length of the text."""
    text = unicodedata.normalize("NFKC", replace_lone_surrogates(text))[: max(64, 2 * len(text))].casefold()
    if not text.isascii():
        text = ANY_UNSEEN.sub("", text)  # a soft hyphen splits no word
        text = "".join(char for char in text if not unicodedata.category(char).startswith("M"))
    return RUN.findall(text)


def _pairs(run: str) -> list[str]:
    """Return the pairs of neighbouring characters."""
    return ["".join(pair) for pair in pairwise(run)]
