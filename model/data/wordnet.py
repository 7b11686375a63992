"""WordNet 3.0, read from the folder of its data files: entries, notes made from them, and names of everyday things."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model.note import Note, normalise_hashtags

DATA_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
SPECIES_TOPICS = frozenset({"05", "20"})
"""Lexicographer files of animals and plants: most of their entries are species that notes do not mention."""
EVERYDAY_TOPICS = frozenset({"04", "05", "06", "11", "13", "15", "28"})
"""Lexicographer files of acts, animals, artefacts, events, food, places and times."""
RUDE_MEANING = re.compile(
    r"\b(slurs?|offensive|disparag\w+|derogatory|obscene|vulgar|sexual\w*|genitals?|prostitut\w+|sex)\b"
)
"""Pattern of glosses whose words are unsuitable as hashtags."""
SPECIES_SHARE = 0.15
"""Share of the species that become notes."""
EXAMPLE_ALONE, EXAMPLE_AND_MEANING, MEANING_AS_CONTENT = 0.4, 0.7, 0.85
"""Bounds of a uniform draw that chooses the form of an entry's note; above the last one, the meaning is the title."""


@dataclass(frozen=True, slots=True)
class Synset:
    """One entry: words with one meaning.

    `key` and `parent`: part of speech and offset; `parent` is "" without a hypernym. `topic`: the two digits of the
    lexicographer file. `meaning`: the gloss without its `examples`.
    """

    key: str
    topic: str
    words: tuple[str, ...]
    meaning: str
    examples: tuple[str, ...]
    parent: str


def read_synsets(folder: Path) -> Iterator[Synset]:
    """Yield every entry of the data files; lines of the licence begin with two spaces."""
    for name in DATA_FILES:
        for line in (folder / name).read_text("utf-8").splitlines():
            if not line.startswith("  "):
                yield parse_synset(line)


def parse_synset(line: str) -> Synset:
    """Parse a line of a data file (format: wndb(5WN)).

    It has: offset, topic, part of speech, number of words in hexadecimal, (word, id) for each, number of pointers,
    (symbol, offset, part of speech, source and target) for each, then `|` and the gloss.
    """
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    pointers_at = 5 + 2 * int(fields[3], 16)
    words = tuple(re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in fields[4 : pointers_at - 1 : 2])
    parent = ""
    for at in range(pointers_at, len(fields) - 2, 4):
        symbol, offset, part_of_speech = fields[at : at + 3]
        if symbol in ("@", "@i"):  # hypernym, instance hypernym
            parent = f"{part_of_speech}{offset}"
            break
    return Synset(
        key=f"{fields[2]}{fields[0]}",
        topic=fields[1],
        words=words,
        meaning=gloss.split('; "')[0].strip(" ;"),
        examples=tuple(example.strip() for example in re.findall(r'"([^"]{8,})"', gloss)),
        parent=parent,
    )


def wordnet_notes(folder: Path) -> Iterator[Note]:
    """Yield notes of entries, in four forms: an example; an example with words and meaning; words with the meaning; the
    meaning as title. Only SPECIES_SHARE of the species are included."""
    rng = random.Random("wordnet")
    synsets = {synset.key: synset for synset in read_synsets(folder)}
    for synset in synsets.values():
        first = synset.words[0]
        species = synset.topic in SPECIES_TOPICS and (first[0].isupper() or " " in first)
        if species and rng.random() > SPECIES_SHARE:
            continue
        parent = synsets.get(synset.parent)
        hashtags = normalise_hashtags([first, *([parent.words[0]] if parent else [])])
        words = ", ".join(synset.words[: rng.randint(1, 3)])
        example = rng.choice(synset.examples) if synset.examples else ""
        form = rng.random()
        if example and form < EXAMPLE_ALONE:
            yield Note(title=example, hashtags=hashtags)
        elif example and form < EXAMPLE_AND_MEANING:
            yield Note(title=example, content=f"{words}: {synset.meaning}")
        elif form < MEANING_AS_CONTENT:
            yield Note(title=words, content=synset.meaning, hashtags=hashtags[1:])
        else:
            yield Note(title=synset.meaning, hashtags=hashtags)


def everyday_things(folder: Path) -> list[str]:
    """Return names of everyday things, sorted: topics of generated notes."""
    synsets = read_synsets(folder)
    return sorted({s.words[0] for s in synsets if s.topic in EVERYDAY_TOPICS and s.words[0].islower()})


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun. `topic`: topic of its first and most frequent meaning, as in Synset.

    `uses`, `other_uses`: frequency of the word in WordNet's corpus of ordinary texts, as a noun, and as a verb,
    adjective or adverb.
    """

    text: str
    topic: str
    uses: int
    other_uses: int


def read_nouns(folder: Path) -> Iterator[Noun]:
    """Yield every noun of index.noun, spelled as in its first meaning, except nouns with a rude meaning.

    A line of the file begins with the word, part of speech and number of meanings, and ends with the offset of each.
    """
    noun_uses, other_uses = count_uses(folder)
    synsets = {synset.key: synset for synset in read_synsets(folder)}
    for line in (folder / "index.noun").read_text("utf-8").splitlines():
        if line.startswith("  "):
            continue
        fields = line.split()
        lower = fields[0].replace("_", " ")
        meanings = [synsets[f"n{offset}"] for offset in fields[-int(fields[2]) :]]
        if not any(RUDE_MEANING.search(synset.meaning) for synset in meanings):
            spelled = [word for word in meanings[0].words if word.lower() == lower]
            text = spelled[0] if spelled else lower
            yield Noun(text, meanings[0].topic, noun_uses[fields[0]], other_uses[fields[0]])


def count_uses(folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Count the uses of words, as nouns and otherwise, in cntlist.rev, whose lines are `word%part-of-speech:...`, the
    number of a meaning, and its count."""
    noun_uses, other_uses = Counter[str](), Counter[str]()
    for line in (folder / "cntlist.rev").read_text("utf-8").splitlines():
        sense, _, count = line.split()
        word, _, part_of_speech = sense.partition("%")
        (noun_uses if part_of_speech.startswith("1") else other_uses)[word] += int(count)
    return noun_uses, other_uses
