"""Hashtag filtering, and re-ranking with the hashtags of a note's neighbours (policy "grounded").

model/inference/candidate_scoring.py asks the model for the probabilities that `rerank` combines.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

from model.dedup_key import MAX_CACHED_HASHTAGS, blocked_keys, dedup_key
from model.generation import Hashtag, NamedHashtag, Neighbour, Neighbours
from model.hashtags.word_forms import without_further_forms
from model.note import Note
from model.scripts import scripts

NEIGHBOURS = 50
"""Number of neighbours with hashtags that are looked up by vector, and as many by words
(docs/decisions/0010-hashtags.md)."""
MAX_CANDIDATES = 40
"""Maximum candidates, those with the largest weights, whose probability the model computes; that takes one forward
(docs/decisions/0010-hashtags.md)."""

# The weights of the score below were chosen on validation notes: docs/decisions/0010-hashtags.md.
NEIGHBOUR_TEMPERATURE = 0.06
"""Temperature of a neighbour's weight by its vector: a cosine higher by this weighs e times as much."""
LEXICAL_SHARE = 0.6
"""Share of the total weight that neighbours by words have; those by vector have the rest."""
NEIGHBOUR_SMOOTHING = 0.02
"""Added to a hashtag's weight, so that one that no neighbour carries keeps a score above 0."""
NAMED_WEIGHT = 0.05
"""Weight of a hashtag that the note names, if all notes with its words carry it."""
NAMED_SMOOTHING = 4
"""Added to the number of notes with the words of a named hashtag: one or two carriers tell little about how likely it
is."""
NEAR_SHARE = 0.2
"""A hashtag with a larger `named_share` is exempt from the minimum probability: authors chose 15 to 45% of those that
their notes named (docs/log/hashtags.md). One note that carries it is not enough."""

MIN_WRITTEN_PROBABILITY = 1e-5
"""Lower bound on the probability in the score. For a word that the model does not know, such as those that communities
coin, how small the probability is carries no information, but over many nats it would outweigh all neighbours
(docs/log/hashtags.md)."""

FEW_NOTES, MANY_NOTES = 300, 3000
"""Numbers of stored notes between which `written_weight` goes from the first to the second of a checkpoint's weights.
Neighbours in a small community are often about something else, so the model's own view counts for more
(docs/log/hashtags.md)."""

AGREEMENT = (1e-3, 0.03)
"""Bounds of the agreement between which `agreed_weight` goes from the exponent of the community's size to the
checkpoint's `agreed_written_weights`. The agreement of a note is the total probability that the model writes its
heaviest candidates, FIRST_CANDIDATE_TOKENS of model/inference/candidate_scoring.py (docs/log/hashtags.md)."""

TRUSTED_COSINES, TRUSTED_WORDS = (0.4, 0.8), (0.12, 0.22)
"""Bounds of the nearest neighbour's cosine, and of its word score, for `neighbour_trust`. If both are at or below their
lower bounds, neighbours get no weight; if either reaches its upper bound, all of it; in between it grows linearly. In a
small community the nearest note may be about something else (docs/log/hashtags.md)."""

# Thresholds of a near neighbour: its hashtags are returned even if their probability is below `min_hashtag_score`
# (docs/log/hashtags.md).
NEAR_COSINE = 0.4
"""Minimum cosine of a neighbour that is near by its vector."""
NEAR_WORDS = 0.12
"""Minimum score of a neighbour that is near by words; MIN_COSINE_FOR_WORDS must be reached, too."""
MIN_COSINE_FOR_WORDS = 0.3
"""Neighbours by words count as near only if the nearest one by vectors has at least this cosine: a note that says
nothing, such as "same thing", shares words with some notes but is near none."""

KNOWN_MIN_SCORE_FACTOR = 0.005
"""Factor on the checkpoint's `min_hashtag_score` for the policy "known": the model does not know the words that a
community has chosen, so fitting hashtags may be improbable (docs/log/writing.md)."""
NEIGHBOURS_NAMED = 5
"""Maximum neighbours returned with a hashtag that they carry: enough to show its origin in one line."""


@lru_cache(MAX_CACHED_HASHTAGS)
def hashtag_scripts(hashtag: str) -> frozenset[str]:
    """Return the scripts of the letters in a hashtag."""
    return scripts(hashtag)


@dataclass(frozen=True, slots=True)
class HashtagFilter:
    """Decides which hashtags may be returned for a note.

    `blocked`: keys (`dedup_key`) of hashtags that may not be returned. `own`: keys of the note's own hashtags, which
    are not repeated. `scripts`: scripts of the note; a hashtag may have no other, except Latin, which every language
    uses. None allows all scripts.
    """

    blocked: frozenset[str] = frozenset()
    scripts: frozenset[str] | None = None
    own: frozenset[str] = frozenset()

    @classmethod
    def of(cls, note: Note, blocked: frozenset[str], read: Collection[str] = ()) -> HashtagFilter:
        """Return the filter for `note`. `blocked`: keys (`hashtag_key`). `read`: scripts that the model reads, () for
        all. A note without letters, such as emoji alone, allows the scripts of `read`: for others the model can't tell
        whether a hashtag fits."""
        note_scripts = scripts(" ".join((note.title, note.content, *note.hashtags))) or frozenset(read)
        return cls(blocked_keys(blocked), note_scripts or None, frozenset(map(dedup_key, note.hashtags)))

    def __call__(self, text: str) -> bool:
        """Return whether the hashtag `text` may be returned."""
        key = dedup_key(text)
        if key in self.blocked or key in self.own:
            return False
        return self.scripts is None or hashtag_scripts(text) <= self.scripts | {"LATIN"}


@dataclass(slots=True)
class Candidate:
    """A hashtag that neighbours carry or the note names.

    `weight`: in [0, 1]. `is_near`: whether a near neighbour carries it, or more than NEAR_SHARE of the notes with its
    words do. `notes`: ids of the neighbours that carry it, the heaviest first. `spellings`: the weight of each of its
    spellings, plurals included.
    """

    text: str
    weight: float = 0.0
    is_near: bool = False
    notes: list[str] = field(default_factory=list)
    spellings: dict[str, float] = field(default_factory=dict)

    def add_named_share(self, share: float) -> None:
        """Add the weight of being named by the note; `share`: the `named_share`. Either this or the neighbours may be
        right, so the weights are combined like probabilities of independent events."""
        named_weight = NAMED_WEIGHT * share
        self.weight += named_weight - self.weight * named_weight
        self.is_near |= share > NEAR_SHARE

    def add(self, text: str, weight: float, note_id: str, is_near: bool) -> None:
        """Add a neighbour that carries the hashtag in the spelling `text`; `self.text` is the heaviest spelling."""
        self.weight += weight
        self.is_near |= is_near
        self.notes.append(note_id)
        self.spellings[text] = self.spellings.get(text, 0.0) + weight
        if self.spellings[text] > self.spellings.get(self.text, 0.0):
            self.text = text


def candidates_from(neighbours: Neighbours, allowed: HashtagFilter) -> dict[str, Candidate]:
    """Return the candidates with the largest weights, at most MAX_CANDIDATES, by `dedup_key`, the heaviest first.
    Candidates are the allowed hashtags that neighbours carry or the note names.

    The weight of a hashtag is the sum of the weights of the neighbours that carry it, times `neighbour_trust`; it grows
    if the note names the hashtag.
    """
    notes = {note.id: note for note in (*neighbours.by_words, *neighbours.by_vector)}
    weights, near, trust = neighbour_weights(neighbours), near_neighbours(neighbours), neighbour_trust(neighbours)
    candidates: dict[str, Candidate] = {}
    for note_id in sorted(weights, key=lambda note_id: (-weights[note_id], note_id)):
        hashtags = {dedup_key(text): text for text in notes[note_id].hashtags if allowed(text)}
        for key, text in hashtags.items():
            candidate = candidates.setdefault(key, Candidate(text))
            candidate.add(text, trust * weights[note_id], note_id, note_id in near)
    named = sorted(neighbours.named, key=lambda hashtag: (named_share(hashtag), hashtag.text))
    named_by_key = {dedup_key(hashtag.text): hashtag for hashtag in named if allowed(hashtag.text)}
    for key, hashtag in named_by_key.items():  # of singular and plural, the one with the larger share
        candidates.setdefault(key, Candidate(hashtag.text)).add_named_share(named_share(hashtag))
    heaviest = sorted(candidates, key=lambda key: (-candidates[key].weight, key))
    return {key: candidates[key] for key in heaviest[:MAX_CANDIDATES]}


def named_share(named: NamedHashtag) -> float:
    """Return the smoothed share, in (0, 1), of the notes with the words of a named hashtag that carry it."""
    return named.carriers / (max(named.carriers, named.having) + NAMED_SMOOTHING)


def neighbour_weights(neighbours: Neighbours) -> dict[str, float]:
    """Return the weight of each neighbour by its id; they sum to 1.

    A neighbour by vector weighs exp(cosine / NEIGHBOUR_TEMPERATURE), one by words score^2. The weights of each search
    are normalised to its share, LEXICAL_SHARE for words; a search that finds nothing leaves its share to the other. A
    neighbour found by both has the sum of both weights.
    """
    top = best_score(neighbours.by_vector)
    by_vector = {note.id: math.exp((note.score - top) / NEIGHBOUR_TEMPERATURE) for note in neighbours.by_vector}
    by_words = {note.id: note.score**2 for note in neighbours.by_words}
    ways = [(raw, share) for raw, share in ((by_vector, 1 - LEXICAL_SHARE), (by_words, LEXICAL_SHARE)) if raw]
    all_shares = sum(share for _, share in ways)
    weights: dict[str, float] = defaultdict(float)
    for raw, share in ways:
        total = sum(raw.values())
        for note_id, weight in raw.items():
            weights[note_id] += share * weight / total / all_shares
    return weights


def neighbour_trust(neighbours: Neighbours) -> float:
    """Return the factor in [0, 1] on the weights of neighbours: linear in the cosine or the word score of the nearest
    one, whichever gives more."""

    def share(nearest: Sequence[Neighbour], bounds: tuple[float, float]) -> float:
        least, full = bounds
        return (best_score(nearest) - least) / (full - least)

    says_most = max(share(neighbours.by_vector, TRUSTED_COSINES), share(neighbours.by_words, TRUSTED_WORDS))
    return min(1.0, max(0.0, says_most))


def written_weight(weights: tuple[float, float], stored_notes: int) -> float:
    """Return the exponent of the model's probability in the score of a hashtag, in a community of `stored_notes` notes.

    `weights`: the checkpoint's `written_weights` or `agreed_written_weights`. The first one applies up to FEW_NOTES,
    the second one from MANY_NOTES on; in between the exponent is linear in the logarithm of the number of notes.
    """
    few, many = weights
    notes = min(max(stored_notes, FEW_NOTES), MANY_NOTES)
    return few + (many - few) * math.log(notes / FEW_NOTES) / math.log(MANY_NOTES / FEW_NOTES)


def agreed_weight(weight: float, agreed: float, agreement: float) -> float:
    """Return the exponent of the model's probability for one note: `weight`, that of the community's size, where the
    model would hardly write what the neighbours carry, and `agreed` where it would; in between it is linear in the
    logarithm of the `agreement`. It is never below `weight`."""
    least, full = AGREEMENT
    share = math.log(max(agreement, least) / least) / math.log(full / least)
    return weight + max(0.0, agreed - weight) * min(1.0, share)


def best_score(neighbours: Sequence[Neighbour]) -> float:
    """Return the highest score of some neighbours, 0 for none."""
    return max((neighbour.score for neighbour in neighbours), default=0.0)


def near_neighbours(neighbours: Neighbours) -> set[str]:
    """Return the ids of near neighbours: their hashtags are exempt from the minimum probability."""
    top = best_score(neighbours.by_vector)
    by_words = neighbours.by_words if top >= MIN_COSINE_FOR_WORDS else ()
    return {note.id for note in neighbours.by_vector if note.score >= NEAR_COSINE} | {
        note.id for note in by_words if note.score >= NEAR_WORDS
    }


def rerank(
    written: Sequence[Hashtag],
    candidates: Mapping[str, Candidate],
    probabilities: Mapping[str, float],
    count: int,
    written_weight: float,
    min_probability: float = 0.0,
) -> tuple[Hashtag, ...]:
    """Return the best `count` of the hashtags that the model wrote and of the candidates.

        score = share * max(p, MIN_WRITTEN_PROBABILITY) ** written_weight
        share = (w + NEIGHBOUR_SMOOTHING) / (1 + NEIGHBOUR_SMOOTHING)

    where w is the weight of the candidate, 0 for a hashtag that is not a candidate, and p the probability that the
    model writes it (docs/decisions/0010-hashtags.md). `written_weight`: as the function of this name returns it.
    `probabilities` has p for the candidates, by `dedup_key` as in `candidates`; a candidate without an entry has the p
    of the written hashtag with the same key. A hashtag with p below `min_probability` is dropped, unless its candidate
    is near.

    A written hashtag with the key of a candidate is also scored with w = 0, and the better of the two is returned, in
    its spelling: the model may find the neighbours' spelling improbable, but not its own. A written hashtag that is no
    candidate is left out if it is a further form of a word that has a better score.
    """
    p = defaultdict(float, {dedup_key(hashtag.text): hashtag.score for hashtag in written}) | dict(probabilities)
    scored = [(key, candidate, p[key]) for key, candidate in candidates.items()]
    for hashtag in written:
        key = dedup_key(hashtag.text)
        notes = candidates[key].notes if key in candidates else []
        scored.append((key, Candidate(hashtag.text, notes=notes), hashtag.score))
    best: dict[str, Hashtag] = {}
    for key, candidate, probability in scored:
        score = min(1.0, grounded_score(candidate.weight, probability, written_weight))
        is_better = key not in best or score > best[key].score
        if is_better and is_likely_enough(candidate, probability, min_probability):
            best[key] = Hashtag(candidate.text, score, tuple(candidate.notes[:NEIGHBOURS_NAMED]))
    ranked = sorted(best.values(), key=lambda hashtag: (-hashtag.score, hashtag.text))
    return tuple(islice(without_further_forms(ranked, exempt=candidates), count))


def grounded_score(weight: float, probability: float, written_weight: float) -> float:
    """Return the score of a hashtag, which grows with both: the weight of its candidate and the probability that the
    model writes it (`rerank` has the formula)."""
    written: float = max(probability, MIN_WRITTEN_PROBABILITY) ** written_weight
    return (weight + NEIGHBOUR_SMOOTHING) / (1 + NEIGHBOUR_SMOOTHING) * written


def is_likely_enough(candidate: Candidate, probability: float, min_probability: float) -> bool:
    """Return whether `probability` reaches `min_probability`, or the candidate is near."""
    return probability >= min_probability or candidate.is_near
