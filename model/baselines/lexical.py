"""What a team would deploy otherwise: TF-IDF, BM25, a small sentence encoder (`baselines.encoder`), copied hashtags.

The encoder is all-MiniLM-L6-v2, the paper's SentenceBERT row at this size and the strongest honest rival.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from model.baselines.encoder import CATEGORIES_FILE, CategoryEncoder, SentenceEncoder, plain_text
from model.evaluation.evaluate import (
    QUERY_BATCH_SIZE,
    EngineSystem,
    Floats,
    Record,
    Retriever,
    Scorer,
    System,
    evaluate_hashtags,
)
from model.generation import HashtagPolicy
from model.inference.engine import Engine
from model.note import Note, hashtag_key
from model.weights import Progress


def system(
    name: str, known: Sequence[Note], cache: Path, dtype: str, progress: Progress, policy: HashtagPolicy = "open"
) -> System:
    """tf-idf, bm25, minilm, frequent, the folder of a fine-tuned encoder, or whatever `Engine.load` takes.

    `known`: the notes whose hashtags may be looked at. `policy`: of those that an engine writes.
    """
    named: dict[str, Callable[[], System]] = {
        "tf-idf": TfIdf,
        "bm25": Bm25,
        "minilm": SentenceEncoder,
        "frequent": lambda: FrequentHashtags(known),
    }
    if name in named:
        return named[name]()
    folder = Path(name)
    config = folder / "config.json"
    if config.is_file() and json.loads(config.read_text("utf-8")).get("model_type") == "bert":
        load = CategoryEncoder.load if (folder / CATEGORIES_FILE).is_file() else SentenceEncoder
        return load(folder, name=folder.parent.name)
    return EngineSystem(Engine.load(name, cache=cache, dtype=dtype, progress=progress), policy, known)


def with_copied_hashtags(
    record: Record, retriever: Retriever, own: Sequence[Note], known: Sequence[Note], progress: Progress
) -> Record:
    """The record with the hashtags that copying from the nearest `known` notes gives its `own`."""
    copied = evaluate_hashtags(CopiedHashtags(retriever, known), own, known, progress)
    return replace(record, hashtags=copied, hashtags_from="copied")


class TfIdf:
    """Cosine of word TF-IDF, sublinear counts, fitted on the pool."""

    name = "tf-idf"

    def related(self, notes: Sequence[Note]) -> Scorer:
        from sklearn.feature_extraction.text import TfidfVectorizer

        matrix = TfidfVectorizer(sublinear_tf=True).fit_transform([plain_text(note) for note in notes])
        return lambda rows: (matrix[rows] @ matrix.T).toarray()


class Bm25:
    """Okapi BM25 (Robertson and Zaragoza 2009, section 3.2), a note's words as the query, fitted on the pool."""

    name = "bm25"

    def __init__(self, k1: float = 1.2, b: float = 0.75) -> None:
        self._k1 = k1
        self._b = b

    def related(self, notes: Sequence[Note]) -> Scorer:
        from scipy import sparse
        from sklearn.feature_extraction.text import CountVectorizer

        counts = CountVectorizer().fit_transform([plain_text(note) for note in notes]).astype(np.float32)
        lengths = np.asarray(counts.sum(1)).ravel()
        holding = np.asarray((counts > 0).sum(0)).ravel()
        idf = np.log1p((len(notes) - holding + 0.5) / (holding + 0.5))
        norm = self._k1 * (1 - self._b + self._b * lengths / lengths.mean())
        weights = counts.tocoo()
        weights.data = idf[weights.col] * weights.data * (self._k1 + 1) / (weights.data + norm[weights.row])
        documents = sparse.csr_matrix(weights)
        return lambda rows: (counts[rows] @ documents.T).toarray()


class CopiedHashtags:
    """A note's hashtags are those of its nearest `known` notes, by the sum of the scores of those that have each.

    Of `known`, the notes without hashtags are left out: there is nothing to copy. Of equally near ones the smaller id
    comes first.
    """

    def __init__(self, system: Retriever, known: Iterable[Note], neighbours: int = 10) -> None:
        self.name = f"{system.name}, hashtags copied"
        self._system = system
        self._known = sorted((note for note in known if note.hashtags), key=lambda note: note.id)
        self._neighbours = neighbours

    def hashtags(self, notes: Sequence[Note], count: int) -> list[tuple[str, ...]]:
        """At most `count` for each of the notes, best first. A note's own hashtags are not looked at, here or where it
        is among the known ones."""
        pool = [*self._known, *(replace(note, hashtags=()) for note in notes)]
        score = self._system.related(pool)
        copied: list[tuple[str, ...]] = []
        for at in range(0, len(notes), QUERY_BATCH_SIZE):
            queries = notes[at : at + QUERY_BATCH_SIZE]
            rows = len(self._known) + at + np.arange(len(queries))
            scores = score(rows)[:, : len(self._known)]
            copied += [self._copied(note, row, count) for note, row in zip(queries, scores, strict=True)]
        return copied

    def _copied(self, note: Note, scores: Floats, count: int) -> tuple[str, ...]:
        nearest = np.argsort(-scores, kind="stable")[: self._neighbours + 1]
        others = [i for i in nearest if self._known[i].id != note.id][: self._neighbours]
        return heaviest(((hashtag, float(scores[i])) for i in others for hashtag in self._known[i].hashtags), count)


class FrequentHashtags:
    """The most frequent hashtags of the `known` notes, the same for everybody."""

    name = "frequent hashtags"

    def __init__(self, known: Iterable[Note]) -> None:
        self._hashtags = heaviest((hashtag, 1.0) for note in known for hashtag in note.hashtags)

    def hashtags(self, notes: Sequence[Note], count: int) -> list[tuple[str, ...]]:
        """At most `count` for each of the notes, best first."""
        return [self._hashtags[:count]] * len(notes)


def heaviest(weighted: Iterable[tuple[str, float]], count: int | None = None) -> tuple[str, ...]:
    """The `count` hashtags, or all, with the largest sums of weights, of equal ones the smaller key first.

    Hashtags are the same when `hashtag_key` is; the first spelling stays.
    """
    weights: dict[str, float] = defaultdict(float)
    spellings: dict[str, str] = {}
    for hashtag, weight in weighted:
        key = hashtag_key(hashtag)
        weights[key] += weight
        spellings.setdefault(key, hashtag)
    best = sorted(weights, key=lambda key: (-weights[key], key))[:count]
    return tuple(spellings[key] for key in best)
