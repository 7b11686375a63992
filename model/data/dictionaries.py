"""Dictionaries in the format of dictd, read from a folder of .index and .dict.dz files, and notes made from them.

An index has a line for each headword: the word, and the offset and length in bytes of its entry in the .dict.dz file,
as numbers in base 64 (format: dictfmt(1)). A .dict.dz file can be read as a gzip file.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from model.note import Note

BASE64_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
"""Digits of the offsets and lengths of an index, the least first."""
ABOUT_THE_DICTIONARY = ("00-database", "00database")
"""Prefixes of headwords whose entries are about the dictionary itself."""
LEFT_OUT = re.compile(r"\[(?:Obs|R|Archaic|Poetic|Prov|Scot|WordNet)\b|^\s*See\b")
"""Marks of paragraphs that are left out: words and meanings that hardly anybody uses any more, meanings from WordNet,
which is a source of its own, and references to other entries."""
PRONUNCIATION = re.compile(r"\\[^\\\n]+\\")
BRACKETS = re.compile(r"\[[^\[\]]*\]|<[^<>]*>")
"""Brackets around origins, sources and subjects."""
WORD_CLASS = re.compile(
    r"^(?:[^.:]{0,60}?,?\s)?(?:(?:n|v|t|i|a|adj|adv|prep|pl|sing|imp|p|pr|vb|vt|vi|conj|interj)\.[,;&\s]*)+"
)
"""Headword and word class before a definition, as in `Lapidation, n.`."""
MEANING_NUMBER = re.compile(r"^(?:\d+\.|\([a-z\d]\))\s*")
SUBJECT = re.compile(r"\([A-Z][a-z]+\.(?: (?:& )?[A-Z][a-z]+\.)?\)\s*")
"""Abbreviated subject of a meaning, as in `(Zool.)`."""
AUTHOR_OR_DATE = re.compile(r"\s*(?:--\s?[A-Z][^-]{0,40}|\(\d{4}-\d\d-\d\d\))$")
"""Author of a quotation, or date of an entry, at the end of a paragraph."""
MIN_WORDS = 5
"""Paragraphs with fewer words are dropped."""


def dictionary_notes(folder: Path) -> Iterator[Note]:
    """Yield a note for each paragraph of each entry: the headword as its title, the paragraph as its content."""
    for index in sorted(folder.glob("*.index")):
        for headword, entry in read_entries(index):
            for paragraph in paragraphs_of_entry(entry):
                yield Note(title=headword, content=paragraph)


def read_entries(index: Path) -> Iterator[tuple[str, str]]:
    """Yield headword and entry of a dictionary, given its .index file; an entry with several headwords once."""
    texts = gzip.decompress(index.with_suffix(".dict.dz").read_bytes())
    seen = set()
    for line in index.read_text("utf-8").splitlines():
        headword, offset, length = line.split("\t")[:3]
        start = index_number(offset)
        if start not in seen and not headword.startswith(ABOUT_THE_DICTIONARY):
            seen.add(start)
            yield headword, texts[start : start + index_number(length)].decode("utf-8", "replace")


def index_number(digits: str) -> int:
    """Return a number of an index, which is in base 64."""
    number = 0
    for digit in digits:
        number = number * 64 + BASE64_DIGITS.index(digit)
    return number


def paragraphs_of_entry(entry: str) -> Iterator[str]:
    """Yield the paragraphs of an entry that have MIN_WORDS or more and none of the marks LEFT_OUT.

    Pronunciation, word class, origin, subject, author, date and number are removed from them.
    """
    for paragraph in re.split(r"\n\s*\n", entry):
        if LEFT_OUT.search(paragraph):
            continue
        text = PRONUNCIATION.sub("", paragraph)
        for _ in range(2):  # brackets may be in brackets
            text = BRACKETS.sub("", text)
        text = " ".join(text.replace("{", "").replace("}", "").split()).replace(" ,", ",")
        for unwanted in (AUTHOR_OR_DATE, WORD_CLASS, MEANING_NUMBER, SUBJECT):
            text = unwanted.sub("", text)
        if len(text.split()) >= MIN_WORDS:
            yield text
