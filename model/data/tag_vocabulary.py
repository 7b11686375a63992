"""The hashtags from which pseudo-labels are chosen: tags of lifestyle communities, and nouns of WordNet.

An open tag may label any text that it fits. The other nouns, including names, label only texts that contain them:
chosen by meaning alone, most of them would be too rare, too general or about someone else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.data.community_tags import tags_by_category
from model.data.wordnet import read_nouns
from model.dedup_key import dedup_key
from model.note import Note

OPEN_TOPICS = frozenset({"04", "05", "06", "08", "10", "11", "12", "13", "17", "18", "19", "20", "26", "27"})
"""Lexicographer files whose common nouns are open: acts, animals, artefacts, body, communication, events, feelings,
food, natural objects, people, phenomena, plants, states and substances."""
CONTAINED_TOPICS = OPEN_TOPICS | {"09", "14", "15", "22", "28"}
"""Lexicographer files whose nouns label texts that contain them: also ideas, groups, places, processes and times."""
MAX_WORDS = 3
"""Maximum words of a tag."""
MIN_CHARS = 3
"""Minimum characters of a noun: shorter ones are abbreviations with many meanings."""
WORD = re.compile(r"[^\W\d_][\w'’+-]*")
GENERAL_NOUNS = """
    one two three four five six seven eight nine ten way day days week weeks month year years morning afternoon hour
    minute second time times end part parts piece bit lot set side top front back place thing things something someone
    somebody person people man men woman women guy boy girl child kind type sort form name word line point case fact
    idea reason result question answer problem help use using act action activity work job change start beginning stop
    try attempt turn move look view sight sound voice hand head face eye eyes foot body mind mouth number amount size
    level group member unit item object example list note post title page text story course matter order system state
    condition situation position area world life living being self own friend attention effect event process movement
    motion making taking getting going doing having giving keeping coming feeling thinking talking saying telling asking
    working looking finding putting running out use user today tomorrow yesterday now tonight mo may can will must might
    need want wish like well good better best bad great first last next same whole half center middle little inside
    outside content description information subject topic issue statement remark comment term expression meaning
    reference source library package tool tools file files data program application module support server interface
    version development command client engine format
"""
GENERAL = frozenset(map(dedup_key, GENERAL_NOUNS.split()))
"""Keys (`dedup_key`) of nouns that say nothing about a text that contains them."""


@dataclass(frozen=True, slots=True)
class TagVocabulary:
    """`open_tags` may label any text. `contained_tags`, by `dedup_key`, label only texts with their words."""

    open_tags: tuple[str, ...]
    contained_tags: dict[str, str]

    def tags_in(self, note: Note) -> list[str]:
        """Return the tags whose words stand next to each other in title or content, longer ones first.

        A name counts only where the text capitalises its first letter, so that "nice" is not the town.
        """
        return list(dict.fromkeys(self._tags_in(note.title + " . " + note.content)))

    def _tags_in(self, text: str) -> Iterator[str]:
        for part in re.split(r"[.,;:!?()\[\]\"“”|/]|\s[-–—]\s", text):
            words = WORD.findall(part)
            for length in range(MAX_WORDS, 0, -1):
                for phrase in phrases(words, length):
                    tag = self.contained_tags.get(dedup_key(phrase))
                    if tag is not None and (tag.islower() or phrase[0].isupper()):
                        yield tag


def phrases(words: Sequence[str], length: int) -> Iterator[str]:
    """Yield every run of `length` words."""
    for start in range(len(words) - length + 1):
        yield " ".join(words[start : start + length])


def build_vocabulary(wordnet: Path) -> TagVocabulary:
    """Build the vocabulary from COMMUNITY_TAGS and the nouns in a folder of WordNet's data files."""
    tags = dict.fromkeys(tag for tags in tags_by_category().values() for tag in tags)
    open_tags = {dedup_key(tag): tag for tag in tags}
    contained_tags: dict[str, str] = dict(open_tags)
    for noun in read_nouns(wordnet):
        key, words = dedup_key(noun.text), noun.text.split()
        if len(noun.text) < MIN_CHARS or len(words) > MAX_WORDS or not WORD.fullmatch(noun.text.replace(" ", "")):
            continue
        if noun.topic not in CONTAINED_TOPICS or noun.other_uses > noun.uses:
            continue
        if key in GENERAL:
            continue
        contained_tags.setdefault(key, noun.text)
        if noun.uses and noun.topic in OPEN_TOPICS and noun.text.islower() and len(words) == 1:
            open_tags.setdefault(key, noun.text)
    return TagVocabulary(tuple(open_tags.values()), contained_tags)
