"""Hashtags and a category for unlabelled texts, chosen by a sentence encoder: labels to train writing on.

As in KeyBERT, a tag's score is the cosine of its vector with the text's. Unlike in KeyBERT, tags may come from a
vocabulary outside the text, the score is corrected for hubs (tags that are near to everything), and tags that the text
contains, or that its source provides, are preferred.

Shapes: N texts, V tags, K dimension of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from model.config import DEFAULT_CATEGORIES
from model.data.community_tags import tags_by_category
from model.data.tag_vocabulary import TagVocabulary
from model.dedup_key import dedup_key
from model.note import Note, normalise_hashtag

Floats = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Floats]
"""Function that returns the unit vectors (n, K) of texts."""

MAX_TAGS = 6
OPEN_CANDIDATES = 20
"""Nearest open tags of a text from which its labels are chosen."""
HUB_TEXTS = 100
"""Nearest texts of a tag; their mean cosine is its hubness (CSLS, arXiv 1710.04087)."""
HUB_WEIGHT = 0.5
COMMUNITY_BONUS = 0.04
"""Added to the score of a tag of COMMUNITY_TAGS, since people use such tags."""
CONTAINED_BONUS = 0.08
"""Added to the score of a tag whose words appear in the text."""
SOURCE_BONUS = 0.10
"""Added to the score of a hashtag that the text's source provides."""
MIN_SCORE = 0.15
"""Minimum score of a label. On inspection, tags with lower scores are words that are only spelled like one of the text
(docs/log/writing.md)."""
MIN_BEST_SCORE = 0.20
"""A text whose best tag has a lower score gets no labels."""
MAX_SCORE_GAP = 0.25
"""Maximum difference between the best tag's score and a label's."""
REPETITION = 0.6
"""Cosine above which two tags repeat each other; the lower one's score is reduced by the excess (as MMR does)."""
CATEGORY_TAGS = 4
"""Nearest tags of a category whose mean score is the category's score."""
MIN_CATEGORY_SCORE = 0.05
MIN_CATEGORY_MARGIN = 0.035
"""Minimum score of the best category, and its minimum lead over the next one, for a text to get a category. Three
quarters of our sample notes get one, and 86% of these are right (docs/log/writing.md)."""
TEXT_BATCH_SIZE = 2048
"""Texts whose scores are computed at once: 50 MB for the whole vocabulary."""


@dataclass(frozen=True, slots=True)
class ScoredTag:
    """A tag and how well it fits a text."""

    text: str
    score: float


class TagVectors:
    """Vectors of tags, embedded when first needed, and each tag's hubness.

    `texts` (N, K): vectors of the texts among which a tag's nearest neighbours are searched.
    """

    def __init__(self, embed: Embed, texts: Floats) -> None:
        self._embed = embed
        self._texts = texts
        self._rows: dict[str, int] = {}
        self.vectors: Floats = np.zeros((0, texts.shape[1]), np.float32)
        self.hubness: Floats = np.zeros(0, np.float32)

    def add(self, tags: Sequence[str]) -> None:
        """Embed the tags that were not added before."""
        new = [tag for tag in dict.fromkeys(tags) if tag not in self._rows]
        if not new:
            return
        vectors = self._embed(new)
        nearest = min(HUB_TEXTS, len(self._texts))
        hubness = [
            np.partition(vectors[start : start + 256] @ self._texts.T, -nearest, axis=1)[:, -nearest:].mean(1)
            for start in range(0, len(new), 256)
        ]
        self._rows |= {tag: row for row, tag in enumerate(new, len(self._rows))}
        self.vectors = np.concatenate([self.vectors, vectors])
        self.hubness = np.concatenate([self.hubness, *hubness])

    def rows(self, tags: Sequence[str]) -> list[int]:
        """Return the rows of tags that were added."""
        return [self._rows[tag] for tag in tags]


class PseudoLabeller:
    """Labels texts by their vectors. `texts` (N, K): vectors of a sample of the texts to label."""

    def __init__(self, vocabulary: TagVocabulary, embed: Embed, texts: Floats) -> None:
        self.vocabulary = vocabulary
        self._tags = TagVectors(embed, texts)
        self._tags.add(vocabulary.open_tags)
        self._open_rows = np.array(self._tags.rows(vocabulary.open_tags))
        self._categories = tags_by_category()
        self._community = frozenset(tag for tags in self._categories.values() for tag in tags)
        self._mean_hubness = float(self._tags.hubness.mean())
        self._open_bonus = COMMUNITY_BONUS * np.array(
            [tag in self._community for tag in vocabulary.open_tags], np.float32
        )
        self._tags.add([tag for tags in self._categories.values() for tag in tags])

    def label(self, notes: Sequence[Note], vectors: Floats) -> Iterator[Note]:
        """Yield each note with its labels as hashtags, the best first, and its category or None.

        `vectors` (len(notes), K): vectors of the notes. A note's own hashtags are candidates; its own category is kept.
        """
        for start in range(0, len(notes), TEXT_BATCH_SIZE):
            batch = slice(start, start + TEXT_BATCH_SIZE)
            yield from self._label(notes[batch], vectors[batch])

    def _label(self, notes: Sequence[Note], vectors: Floats) -> Iterator[Note]:
        contained = [self.vocabulary.tags_in(note) for note in notes]
        given = [[normalise_hashtag(tag).lower() for tag in note.hashtags] for note in notes]
        given = [[tag for tag in tags if dedup_key(tag) in self.vocabulary.contained_tags] for tags in given]
        self._tags.add([tag for tags in (*contained, *given) for tag in tags])
        open_scores = self._scores(vectors, self._open_rows)
        open_scores += self._open_bonus
        nearest = np.argpartition(-open_scores, OPEN_CANDIDATES, axis=1)[:, :OPEN_CANDIDATES]
        for row, note in enumerate(notes):
            scores = {self.vocabulary.open_tags[i]: float(open_scores[row, i]) for i in nearest[row]}
            preferred = list(dict.fromkeys([*contained[row], *given[row]]))
            own = self._scores(vectors[row : row + 1], np.array(self._tags.rows(preferred), np.int64))[0]
            for tag, score in zip(preferred, own, strict=True):
                bonus = CONTAINED_BONUS * (tag in contained[row]) + SOURCE_BONUS * (tag in given[row])
                scores[tag] = float(score) + bonus + COMMUNITY_BONUS * (tag in self._community)
            tags = self.choose(scores)
            category = note.category or self.category(vectors[row])
            yield replace(note, hashtags=tuple(tag.text for tag in tags), category=category)

    def _scores(self, vectors: Floats, rows: npt.NDArray[np.int64]) -> Floats:
        """Scores (N, len(rows)) without bonus: cosine - HUB_WEIGHT * (the tag's hubness + the mean hubness)."""
        hubness = self._tags.hubness[rows]
        scores: Floats = vectors @ self._tags.vectors[rows].T - HUB_WEIGHT * (hubness + self._mean_hubness)
        return scores

    def choose(self, scores: Mapping[str, float]) -> list[ScoredTag]:
        """Choose at most MAX_TAGS greedily, by the highest remaining score.

        A chosen tag reduces the scores of tags whose cosine with it is above REPETITION, by the excess, and excludes
        tags with the same `dedup_key`.
        """
        tags = sorted(scores, key=lambda tag: -scores[tag])[: 2 * OPEN_CANDIDATES]
        vectors = self._tags.vectors[self._tags.rows(tags)]
        similar = vectors @ vectors.T
        remaining = np.array([scores[tag] for tag in tags], np.float32)
        best = float(remaining.max(initial=0))
        chosen: list[ScoredTag] = []
        while len(chosen) < MAX_TAGS and len(tags):
            i = int(remaining.argmax())
            if best < MIN_BEST_SCORE or remaining[i] < max(MIN_SCORE, best - MAX_SCORE_GAP):
                break
            chosen.append(ScoredTag(tags[i].lower(), float(remaining[i])))
            remaining -= np.maximum(similar[i] - REPETITION, 0)
            remaining[i] = -np.inf
            for j, tag in enumerate(tags):
                if dedup_key(tag) == dedup_key(tags[i]):
                    remaining[j] = -np.inf
        return chosen

    def category(self, vector: Floats) -> str | None:
        """Return the category with the nearest tags, or None where none of DEFAULT_CATEGORIES leads clearly."""
        scores = {name: self._category_score(vector, tags) for name, tags in self._categories.items()}
        first, second, *_ = sorted(scores, key=lambda name: -scores[name])
        clear = scores[first] - scores[second] >= MIN_CATEGORY_MARGIN and scores[first] >= MIN_CATEGORY_SCORE
        return first if clear and first in DEFAULT_CATEGORIES else None

    def _category_score(self, vector: Floats, tags: Sequence[str]) -> float:
        scores = self._scores(vector[None], np.array(self._tags.rows(tags)))[0]
        return float(np.sort(scores)[-CATEGORY_TAGS:].mean())
