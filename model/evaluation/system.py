"""Systems under evaluation: protocols for the abilities that one may have, and NoteLLM, which has them all.

NoteLLM is called through Engine, so that it is measured as it is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from model.evaluation.metrics import Floats
from model.evaluation.ranking import Scorer, cosine
from model.evaluation.record import HashtagSource
from model.generation import GenerationRequest, HashtagPolicy, Neighbour, Neighbours
from model.hashtags.lexical_index import InvertedLexicalIndex
from model.inference.engine import Engine
from model.note import Note

MIN_PROBABILITY = 1e-30
"""Lower bound of a probability whose logarithm is taken, so that it is finite."""


class System(Protocol):
    """A system under evaluation; it is measured on those of the abilities below that it has."""

    name: str


@runtime_checkable
class Retriever(System, Protocol):
    """Finds related notes."""

    def related(self, notes: Sequence[Note]) -> Scorer:
        """Return a scorer of these notes, the pool, against each other."""


@runtime_checkable
class Embedder(Protocol):
    """Has a vector for each note."""

    def embed(self, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
        """Return unit vectors (len(notes), D) in the order of `notes`."""


@runtime_checkable
class Classifier(Protocol):
    """Chooses a category from a closed set."""

    def category_log_probs(self, notes: Sequence[Note], categories: Sequence[str]) -> Floats:
        """Return log probabilities (len(notes), len(categories)), finite."""


@runtime_checkable
class FreeClassifier(Protocol):
    """Writes a category without a closed set."""

    def write_category(self, notes: Sequence[Note]) -> list[str]:
        """Return the text that is written for each note."""


@runtime_checkable
class Tagger(Protocol):
    """Predicts hashtags."""

    def hashtags(self, notes: Sequence[Note], count: int) -> list[tuple[str, ...]]:
        """Return at most `count` hashtags for each note, the best first."""


class Copier(Tagger, Protocol):
    """Predicts hashtags by copying those of training notes. `source`: the method, as a record names it."""

    source: HashtagSource


class EngineSystem:
    """NoteLLM with a hashtag policy. `known`: notes whose hashtags the policies "known" and "grounded" use."""

    def __init__(self, engine: Engine, policy: HashtagPolicy = "open", known: Sequence[Note] = ()) -> None:
        self.name = engine.name
        self.precision = engine.runtime.precision
        self.policy: HashtagPolicy = policy
        self._known = sorted((note for note in known if note.hashtags), key=lambda note: note.id)
        self._bare = [note for note in known if not note.hashtags]
        """Known notes without hashtags; their words count in the frequency of words."""
        self._engine = engine

    def related(self, notes: Sequence[Note]) -> Scorer:
        return cosine(self.embed(notes), self._engine.mean_share)

    def embed(self, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
        return self._engine.embed(notes)

    def category_log_probs(self, notes: Sequence[Note], categories: Sequence[str]) -> Floats:
        column = {name: i for i, name in enumerate(categories)}
        # Stays uniform for a note in a script that the model does not read, which gets no probabilities.
        log_probs = np.full((len(notes), len(categories)), -np.log(max(1, len(categories))))
        outputs = self._engine.generate(notes, GenerationRequest(categories=tuple(categories), all_categories=True))
        for row, output in zip(log_probs, outputs, strict=True):
            for category in output.categories or ():
                row[column[category.name]] = np.log(max(category.probability, MIN_PROBABILITY))
        return log_probs

    def check_categories(self, categories: Sequence[str]) -> None:
        """Raise CategoriesTooLong where the names of a closed set have too many tokens."""
        self._engine.tokenize(Note(), GenerationRequest(categories=tuple(categories)))

    def write_category(self, notes: Sequence[Note]) -> list[str]:
        return self._engine.write_category(notes)

    def hashtags(self, notes: Sequence[Note], count: int) -> list[tuple[str, ...]]:
        outputs = self._engine.generate(notes, self.hashtag_request(count))
        return [tuple(hashtag.text for hashtag in output.hashtags or ()) for output in outputs]

    def hashtag_request(self, count: int) -> GenerationRequest:
        """Return the request for `count` hashtags under the policy."""
        if self.policy == "known":
            vocabulary = self._engine.vocabulary()
            vocabulary.add(hashtag for note in self._known for hashtag in note.hashtags)
            return GenerationRequest(count, vocabulary=vocabulary)
        if self.policy == "open":
            return GenerationRequest(count)
        return self._grounded_request(count)

    def _grounded_request(self, count: int) -> GenerationRequest:
        """Return a request for hashtags grounded in the known notes, by vector and by words, as in the service."""
        row_of = {note.id: row for row, note in enumerate(self._known)}
        vectors = self._engine.embed(self._known)
        vocabulary = self._engine.vocabulary()
        vocabulary.add(hashtag for note in self._known for hashtag in note.hashtags)
        hashtags = [tuple(map(vocabulary.common_spelling, note.hashtags)) for note in self._known]
        words = InvertedLexicalIndex()
        words.begin_segment()
        for note in (*self._known, *self._bare):
            words.add(words.words_of(note))

        def find_neighbours(note: Note, vector: npt.NDArray[np.float32], limit: int) -> Neighbours:
            scores = vectors @ vector
            own_row = row_of.get(note.id)
            nearest = np.argsort(-scores, kind="stable")[: limit + 1]  # one more: the note itself may be known
            others = [i for i in nearest if i != own_row][:limit]
            by_vector = [Neighbour(self._known[i].id, float(scores[i]), hashtags[i]) for i in others]
            sharing = zip(*words.scores(words.words_of(note), len(words), own_row), strict=True)
            by_words = [Neighbour(self._known[i].id, float(s), hashtags[i]) for i, s in sharing if i < len(hashtags)]
            by_words.sort(key=lambda neighbour: (-neighbour.score, neighbour.id))
            phrases = words.phrases_of(note)
            uses = vocabulary.uses(phrases, () if own_row is None else hashtags[own_row])
            named = words.named_hashtags(phrases, uses, own_row)
            return Neighbours(by_vector, by_words[:limit], named, len(self._known) + len(self._bare))

        return GenerationRequest(count, find_neighbours=find_neighbours)
