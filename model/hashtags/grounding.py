"""Which hashtags may be told of a note, which are the same, and what the hashtags of the nearest notes add."""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from model.generation import Hashtag, Neighbours
from model.note import Note, hashtag_key

NEIGHBOURS = 50
"""Notes with hashtags that are looked at: so many by the vector, and so many by the words."""
MAX_CANDIDATES = 40
"""Of their hashtags, the heaviest, whose probability the model is asked for."""
NEIGHBOUR_SPREAD = 0.06
"""Difference of two cosines by which the nearer note weighs e times as much."""
LEXICAL_SHARE = 0.6
"""Of the weight of all near notes, that of those that are near by their words."""
MIN_NEIGHBOUR_SHARE = 0.02
"""Added to the share of the neighbours that carry a hashtag, so that one that none carries can be told."""
WRITTEN_WEIGHT = 0.1
"""Of log p that the model writes it, beside the log of that share. All of these: docs/decisions/0010-hashtags.md."""
NEIGHBOURS_NAMED = 5
"""Of those that carry a hashtag, the nearest."""
NO_PLURALS = ("news", "lens", "series", "species", "shoes")
EAST_ASIAN = ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC")


def dedup_key(text: str) -> str:
    """What makes two hashtags of one list the same: case, spacing and a plural do not count."""
    key = hashtag_key(text)
    if key.endswith(NO_PLURALS):
        return key
    if len(key) > 3 and key.endswith(("ies", "ie")):
        return key[: key.rindex("ie")] + "y"
    if len(key) > 4 and key.endswith(("ches", "shes", "sses", "xes", "oes")):
        return key[:-2]
    if len(key) > 3 and key.endswith("s") and not key.endswith(("ss", "us", "is")):
        return key[:-1]
    return key


def scripts(text: str) -> frozenset[str]:
    """The writing systems of its letters, as Unicode names them; those of Chinese and Japanese are one, CJK."""
    letters = (char for char in set(unicodedata.normalize("NFKC", text)) if char.isalpha())
    names = {unicodedata.name(char, "?").split()[0] for char in letters}
    return frozenset("CJK" if name in EAST_ASIAN else name for name in names)


@dataclass(frozen=True, slots=True)
class HashtagFilter:
    """`blocked`: keys of hashtags that are never told. `scripts`: those of the note; a hashtag of another one is not
    told, but for the Latin one, which all languages use. None: any."""

    blocked: frozenset[str] = frozenset()
    scripts: frozenset[str] | None = None

    @classmethod
    def of(cls, note: Note, blocked: frozenset[str]) -> HashtagFilter:
        return cls(blocked, scripts(" ".join((note.title, note.content, *note.hashtags))) or None)

    def __call__(self, text: str) -> bool:
        if hashtag_key(text) in self.blocked:
            return False
        return self.scripts is None or scripts(text) <= self.scripts | {"LATIN"}


@dataclass(slots=True)
class Candidate:
    """A hashtag of near notes: its weight among them, in [0, 1], and their ids, the nearest first."""

    text: str
    weight: float = 0.0
    notes: list[str] = field(default_factory=list)


def candidates_from(near: Neighbours, allowed: HashtagFilter) -> dict[str, Candidate]:
    """By `dedup_key`, the heaviest MOST_CARRIED first; a hashtag weighs as much as the notes that carry it."""
    notes = {of.id: of for of in (*near.by_words, *near.by_vector)}
    weights = neighbour_weights(near)
    found: dict[str, Candidate] = {}
    for note_id in sorted(weights, key=lambda note_id: (-weights[note_id], note_id)):
        for key, text in {dedup_key(text): text for text in notes[note_id].hashtags if allowed(text)}.items():
            of = found.setdefault(key, Candidate(text))
            of.weight += weights[note_id]
            of.notes.append(note_id)
    heaviest = sorted(found, key=lambda key: (-found[key].weight, key))[:MAX_CANDIDATES]
    return {key: found[key] for key in heaviest}


def neighbour_weights(near: Neighbours) -> dict[str, float]:
    """By id. All together weigh 1, those by words WORDS_SHARE of it, where both ways find something.

    By its vector a note weighs exp(cosine / NEIGHBOUR_SPREAD), by its words score^2, each divided by their sum.
    """
    top = max((of.score for of in near.by_vector), default=0.0)
    ways = (
        ({of.id: math.exp((of.score - top) / NEIGHBOUR_SPREAD) for of in near.by_vector}, 1 - LEXICAL_SHARE),
        ({of.id: of.score**2 for of in near.by_words}, LEXICAL_SHARE),
    )
    found = [(some, share) for some, share in ways if some]
    weights: dict[str, float] = defaultdict(float)
    for some, share in found:
        for note_id, weight in some.items():
            weights[note_id] += share * weight / sum(some.values()) / sum(share for _, share in found)
    return weights


def grounded(
    written: Sequence[Hashtag], near: Mapping[str, Candidate], probabilities: Mapping[str, float], count: int
) -> tuple[Hashtag, ...]:
    """What the model wrote and what near notes carry, the best `count` of both.

    score = (weight + UNCARRIED) / (1 + UNCARRIED) * p ** WRITTEN_WEIGHT. `probabilities`: p of those in `near`.
    """
    p = defaultdict(float, {dedup_key(hashtag.text): hashtag.score for hashtag in written}) | dict(probabilities)
    texts = {dedup_key(hashtag.text): hashtag.text for hashtag in written} | {k: of.text for k, of in near.items()}
    scored = []
    for key, text in texts.items():
        of = near.get(key, Candidate(text))
        score = (of.weight + MIN_NEIGHBOUR_SHARE) / (1 + MIN_NEIGHBOUR_SHARE) * p[key] ** WRITTEN_WEIGHT
        scored.append(Hashtag(text, min(1.0, score), tuple(of.notes[:NEIGHBOURS_NAMED])))
    best = sorted(scored, key=lambda hashtag: (-hashtag.score, hashtag.text))
    return tuple(hashtag for hashtag in best[:count] if hashtag.score > 0)
