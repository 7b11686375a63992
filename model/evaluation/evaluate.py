"""What a checkpoint, or a rival, retrieves and writes. NoteLLM is read through Engine: measured as it is served.

`evaluate` asks a system about one split of one data set and gives a Record, which holds no text of the data.
"""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from model.data.pairs import Pair, Split, split_of
from model.evaluation.metrics import (
    EXPOSURES,
    accuracy,
    expected_calibration_error,
    exposure_groups,
    hashtag_prf,
    illusory_share,
    macro_f1,
    mean_reciprocal_rank,
    recall_at,
    rouge,
    target_ranks,
)
from model.evaluation.protocol import COLD_ALL, COLD_COLD
from model.generation import GenerationRequest, HashtagPolicy, Neighbour, Neighbours
from model.hashtags.lexical_index import InvertedLexicalIndex
from model.inference.engine import Engine
from model.note import Note, hashtag_key
from model.weights import Progress, silent

Floats = npt.NDArray[np.floating[Any]]
Scorer = Callable[[npt.NDArray[np.int64]], Floats]
"""Rows of the pool (Q,) -> their scores against the whole pool (Q, N), higher is closer."""
QUERY_BATCH_SIZE = 512
CUTOFFS = (10, 100, 1000)
HASHTAG_CUTOFFS = (1, 3, 5)
PARTS = ("related", "categories", "hashtags")
IMPOSSIBLE = -1e9
"""Log probability of what is not in a closed set: finite, so that it can be divided by a temperature."""
INVENTED = -1
"""Stands for a freely written category that is none of the closed set."""


class System(Protocol):
    """What is compared: on whatever of the following it can do."""

    name: str


@runtime_checkable
class Retriever(System, Protocol):
    """What is compared on related notes."""

    def related(self, notes: Sequence[Note]) -> Scorer:
        """How each of these notes, the pool, scores every other."""


@runtime_checkable
class Embedder(Protocol):
    """Whose scores are cosines of vectors."""

    def embed(self, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
        """(len(notes), D), unit length, in their order."""


@runtime_checkable
class Classifier(Protocol):
    """What is compared on categories."""

    def category_log_probs(self, notes: Sequence[Note], categories: Sequence[str]) -> Floats:
        """(len(notes), len(categories)), finite."""


@runtime_checkable
class FreeClassifier(Protocol):
    """A classifier that can also answer without a closed set."""

    def write_category(self, notes: Sequence[Note]) -> list[str]:
        """Whatever it writes."""


@runtime_checkable
class Tagger(Protocol):
    """What is compared on hashtags."""

    def hashtags(self, notes: Sequence[Note], count: int) -> list[tuple[str, ...]]:
        """At most `count` for each note, the best first."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """A rank for each pair, in the order of (note, related), the number of the query that the pair belongs to, and the
    target's group of exposure, a place in `EXPOSURES`."""

    ranks: list[int]
    queries: list[int]
    exposures: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Categories:
    """For each note with a category, in the order of ids: the true one, the likeliest of the closed set, its
    probability, and the freely written one; all as places in the closed set, INVENTED where it is none."""

    truth: list[int]
    chosen: list[int]
    probability: list[float]
    free: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Hashtags:
    """For each note with hashtags, in the order of ids: F1, precision and recall at each of HASHTAG_CUTOFFS, and
    ROUGE-1, 2 and L of the first five, joined by spaces, against its own; and of these five, how many no training note
    has, and how many there are."""

    f1: list[list[float]]
    precision: list[list[float]]
    recall: list[list[float]]
    rouge: list[list[float]]
    unused: list[list[int]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One system on one split of one data set: what tables and paired tests need, and no text of the data.

    `related`: by protocol. `seconds_per_note`: of reading the pool. `hashtags_from`: whether `hashtags` are what the
    system writes, by which policy, or those of its nearest training notes. What was not asked, or cannot be, is None.
    """

    system: str
    data: str
    split: Split
    with_hashtags: bool
    seconds_per_note: float | None = None
    related: Mapping[str, Ranks] = field(default_factory=dict)
    categories: Categories | None = None
    hashtags: Hashtags | None = None
    hashtags_from: Literal["written", "known", "grounded", "copied"] = "written"

    def summary(self) -> dict[str, Any]:
        """All shares in [0, 1]. The form is that of `notellm evaluate --json`; what is missing is None."""
        found = {name: np.array(ranks.ranks) for name, ranks in self.related.items()}
        return {
            "recall": {p: {str(k): recall_at(r, k) for k in CUTOFFS} for p, r in found.items()} or None,
            "mrr": {protocol: mean_reciprocal_rank(ranks) for protocol, ranks in found.items()} or None,
            "pairs": {protocol: len(ranks) for protocol, ranks in found.items()} or None,
            "recall_by_exposure": {p: _by_exposure(ranks) for p, ranks in self.related.items()} or None,
            "category": self.categories and _category_summary(self.categories),
            "hashtags": self.hashtags and _hashtag_summary(self.hashtags),
            "notes_per_second": self.seconds_per_note and 1 / self.seconds_per_note,
        }


def _by_exposure(found: Ranks) -> dict[str, float] | None:
    """Recall@100 of the pairs whose target is in each group; None where clicks were not given or pairs too few."""
    groups = np.array(found.exposures)
    if set(found.exposures) != set(range(len(EXPOSURES))):
        return None
    return {name: recall_at(np.array(found.ranks)[groups == at], 100) for at, name in enumerate(EXPOSURES)}


def _category_summary(found: Categories) -> dict[str, float | None]:
    right = np.equal(found.truth, found.chosen)
    return {
        "notes": len(found.truth),
        "accuracy_free": None if found.free is None else accuracy(found.free, found.truth),
        "accuracy_constrained": accuracy(found.chosen, found.truth),
        "macro_f1": macro_f1(found.chosen, found.truth),
        "illusory": None if found.free is None else illusory_share(found.free, set(found.free) - {INVENTED}),
        "ece": expected_calibration_error(np.array(found.probability), right),
    }


def _hashtag_summary(found: Hashtags) -> dict[str, float | None]:
    scores = {"f1": found.f1, "precision": found.precision, "recall": found.recall}
    by_cutoff = {
        f"{name}@{k}": float(mean)
        for name, rows in scores.items()
        for k, mean in zip(HASHTAG_CUTOFFS, np.mean(rows, axis=0), strict=True)
    }
    rouges = dict(zip(("rouge1", "rouge2", "rougeL"), np.mean(found.rouge, axis=0).tolist(), strict=True))
    unused, told = np.sum(found.unused, axis=0) if found.unused else (0, 0)
    return {"notes": len(found.f1), **by_cutoff, **rouges, "unused": float(unused / told) if told else None}


class EngineSystem:
    """NoteLLM as it is served. `policy` of its hashtags; `known`: the notes whose hashtags may be looked at."""

    def __init__(self, engine: Engine, policy: HashtagPolicy = "open", known: Sequence[Note] = ()) -> None:
        self.name = engine.name
        self.precision = engine.runtime.precision
        self.policy: HashtagPolicy = policy
        self._known = sorted((note for note in known if note.hashtags), key=lambda note: note.id)
        self._engine = engine

    def related(self, notes: Sequence[Note]) -> Scorer:
        return cosine(self.embed(notes))

    def embed(self, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
        return self._engine.embed(notes)

    def category_log_probs(self, notes: Sequence[Note], categories: Sequence[str]) -> Floats:
        column = {name: i for i, name in enumerate(categories)}
        log_probs = np.empty((len(notes), len(categories)))
        for row, reading in zip(
            log_probs, self._engine.generate(notes, GenerationRequest(categories=tuple(categories))), strict=True
        ):
            for category in reading.categories or ():
                row[column[category.name]] = np.log(max(category.probability, 1e-30))
        return log_probs

    def write_category(self, notes: Sequence[Note]) -> list[str]:
        return self._engine.write_category(notes)

    def hashtags(self, notes: Sequence[Note], count: int) -> list[tuple[str, ...]]:
        readings = self._engine.generate(notes, self._wanted(count))
        return [tuple(hashtag.text for hashtag in reading.hashtags or ()) for reading in readings]

    def _wanted(self, count: int) -> GenerationRequest:
        if self.policy == "known":
            vocabulary = self._engine.vocabulary()
            vocabulary.add(hashtag for note in self._known for hashtag in note.hashtags)
            return GenerationRequest(count, vocabulary=vocabulary)
        if self.policy == "open":
            return GenerationRequest(count)
        known, vectors = {note.id: note.hashtags for note in self._known}, self._engine.embed(self._known)
        words = InvertedLexicalIndex()
        for note in self._known:
            words.add(note)

        def nearest(note: Note, vector: npt.NDArray[np.float32], count: int) -> Neighbours:
            scores = vectors @ vector
            best = np.argsort(-scores, kind="stable")[:count]
            by_vector = [Neighbour(self._known[i].id, float(scores[i]), self._known[i].hashtags) for i in best]
            return Neighbours(by_vector, [Neighbour(i, score, known[i]) for i, score in words.nearest(note, count)])

        return GenerationRequest(count, find_neighbours=nearest)


def evaluate(
    system: System,
    data: str,
    notes: Mapping[str, Note],
    pairs: Mapping[str, Sequence[Pair]],
    clicks: Mapping[str, int],
    *,
    split: Split = "test",
    with_hashtags: bool = True,
    parts: Sequence[str] = PARTS,
    most_notes: int | None = None,
    progress: Progress = silent,
) -> Record:
    """Everything of `parts` that the system can do and the data can answer; the rest is None in the record.

    `pairs`: by protocol. `clicks`: of each note. `with_hashtags`: whether notes show theirs; where hashtags are what is
    asked for they never do. `most_notes`: whose categories and hashtags are asked for, drawn at random; all by default.
    """
    own = notes_of_split(notes, split, most_notes)
    shown = own if with_hashtags else [replace(note, hashtags=()) for note in own]
    record = Record(system=system.name, data=data, split=split, with_hashtags=with_hashtags)
    if "related" in parts and isinstance(system, Retriever) and pairs:
        related, seconds = evaluate_related(
            system, notes, pairs, clicks, split=split, with_hashtags=with_hashtags, progress=progress
        )
        record = replace(record, related=related, seconds_per_note=seconds)
    if "categories" in parts and isinstance(system, Classifier):
        record = replace(record, categories=evaluate_categories(system, shown, closed_set(notes), progress))
    if "hashtags" in parts and isinstance(system, Tagger):
        known = [note for i, note in notes.items() if split_of(i) == "train"]
        record = replace(record, hashtags=evaluate_hashtags(system, own, known, progress))
        if isinstance(system, EngineSystem) and system.policy != "open":
            record = replace(record, hashtags_from=system.policy)
    return record


def notes_of_split(notes: Mapping[str, Note], split: Split, most_notes: int | None = None) -> list[Note]:
    """Those of a split, in the order of ids; or so many of them, the same at every call."""
    own = [note for i, note in sorted(notes.items()) if split_of(i) == split]
    if most_notes is None or len(own) <= most_notes:
        return own
    return [own[at] for at in sorted(random.Random(0).sample(range(len(own)), most_notes))]


def evaluate_related(
    system: Retriever,
    notes: Mapping[str, Note],
    pairs: Mapping[str, Sequence[Pair]],
    clicks: Mapping[str, int],
    *,
    split: Split,
    with_hashtags: bool = True,
    progress: Progress = silent,
) -> tuple[dict[str, Ranks], float | None]:
    """Ranks by protocol, and the seconds that reading one note of the pool took; None where no pair counts.

    cold-cold: a note of the split for another one of it, among the split. cold-all: for any note, among all: what a new
    post meets. `pairs`: by protocol; of them those that start in the split count, in cold-cold those that also end
    there, and only those of `notes`. `clicks`: of each note, for the target's exposure.
    """
    chosen = {}
    for protocol, given in pairs.items():
        inside = protocol == COLD_COLD
        chosen[protocol] = sorted(
            (p.note, p.related)
            for p in given
            if p.note in notes and p.related in notes
            if split_of(p.note) == split and (not inside or split_of(p.related) == split)
        )
    chosen = {protocol: some for protocol, some in chosen.items() if some}
    if not chosen:
        return {}, None
    everyone = COLD_ALL in chosen
    pool = [note for i, note in sorted(notes.items()) if everyone or split_of(i) == split]
    if not with_hashtags:
        pool = [replace(note, hashtags=()) for note in pool]
    progress(f"{system.name}: reading {len(pool):,} notes")
    started = time.perf_counter()
    score = system.related(pool)
    seconds = (time.perf_counter() - started) / len(pool)
    related = {}
    for protocol, some in chosen.items():
        rows = np.array([i for i, n in enumerate(pool) if protocol != COLD_COLD or split_of(n.id) == split])
        related[protocol] = _ranks(_among(score, rows), [pool[row].id for row in rows], some, clicks)
    return related, seconds


def _ranks(score: Scorer, ids: Sequence[str], pairs: Sequence[tuple[str, str]], clicks: Mapping[str, int]) -> Ranks:
    numbered = {query: i for i, query in enumerate(sorted({query for query, _ in pairs}))}
    by_id = {note_id: place for place, note_id in enumerate(sorted(ids))}
    targets = np.array([by_id[target] for _, target in pairs])
    groups = exposure_groups(targets, np.array([clicks.get(note_id, 0) for note_id in by_id])) if clicks else None
    return Ranks(
        rank_pairs(score, ids, pairs).tolist(),
        [numbered[query] for query, _ in pairs],
        [] if groups is None else groups.tolist(),
    )


def evaluate_categories(
    system: Classifier, notes: Sequence[Note], categories: Sequence[str], progress: Progress = silent
) -> Categories | None:
    """Of the notes with a category of the closed set, which they do not show; None where there is none."""
    place = {name: i for i, name in enumerate(categories)}
    asked = [note for note in notes if note.category in place]
    if not asked:
        return None
    progress(f"Choosing one of {len(categories)} categories for {len(asked):,} notes")
    log_probs = system.category_log_probs(asked, categories)
    probabilities = np.exp(log_probs - log_probs.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    free = None
    if isinstance(system, FreeClassifier):
        progress("Writing them freely")
        free = [place.get(text, INVENTED) for text in system.write_category(asked)]
    return Categories(
        truth=[place[note.category] for note in asked if note.category is not None],
        chosen=log_probs.argmax(1).tolist(),
        probability=probabilities.max(1).tolist(),
        free=free,
    )


def evaluate_hashtags(
    system: Tagger, notes: Sequence[Note], known: Iterable[Note], progress: Progress = silent
) -> Hashtags | None:
    """Of the notes with hashtags, which are withheld; None where there is none. `known`: whose hashtags are in use."""
    asked = [note for note in notes if note.hashtags]
    if not asked:
        return None
    progress(f"Hashtags of {len(asked):,} notes")
    written = system.hashtags([replace(note, hashtags=()) for note in asked], max(HASHTAG_CUTOFFS))
    scores = [[hashtag_prf([w], [n.hashtags], k) for k in HASHTAG_CUTOFFS] for w, n in zip(written, asked, strict=True)]
    rouges = [rouge([" ".join(w)], [" ".join(n.hashtags)]) for w, n in zip(written, asked, strict=True)]
    used = {hashtag_key(hashtag) for note in known for hashtag in note.hashtags}
    return Hashtags(
        f1=[[s.f1 for s in row] for row in scores],
        precision=[[s.precision for s in row] for row in scores],
        recall=[[s.recall for s in row] for row in scores],
        rouge=[[r.rouge_1, r.rouge_2, r.rouge_l] for r in rouges],
        unused=[[sum(hashtag_key(hashtag) not in used for hashtag in w), len(w)] for w in written],
    )


def closed_set(notes: Mapping[str, Note]) -> tuple[str, ...]:
    """The categories that training notes have, the most frequent first."""
    counts = Counter(note.category for i, note in notes.items() if note.category and split_of(i) == "train")
    return tuple(name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _among(score: Scorer, rows: npt.NDArray[np.int64]) -> Scorer:
    """The same scores where the pool is only `rows`."""
    return lambda queries: score(rows[queries])[:, rows]


def cosine(vectors: npt.NDArray[np.float32]) -> Scorer:
    """Scores of unit vectors (N, D)."""
    return lambda rows: vectors[rows] @ vectors.T


def rank_pairs(score: Scorer, ids: Sequence[str], pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.int64]:
    """Rank of each pair's second note for its first one, among all of `ids` but the first; in the order of `pairs`.

    Ties go to the smaller id. `ids` in the order of the pool that `score` knows.
    """
    by_id = np.argsort(np.array(ids))
    column = {ids[row]: place for place, row in enumerate(by_id)}
    targets: dict[str, list[int]] = defaultdict(list)
    place = []
    for query, target in pairs:
        place.append((query, len(targets[query])))
        targets[query].append(column[target])
    queries = list(targets)
    ranks: dict[str, npt.NDArray[np.int64]] = {}
    for at in range(0, len(queries), QUERY_BATCH_SIZE):
        chunk = queries[at : at + QUERY_BATCH_SIZE]
        own = np.array([column[query] for query in chunk])
        scores = score(by_id[own])[:, by_id]
        wanted = [np.array(targets[query]) for query in chunk]
        ranks |= dict(zip(chunk, target_ranks(scores, wanted, own), strict=True))
    return np.array([ranks[query][i] for query, i in place], np.int64)


def recall_of_pairs(
    vectors: npt.NDArray[np.float32], ids: Sequence[str], pairs: Sequence[tuple[str, str]], k: int
) -> float:
    """Recall@k of unit vectors (N, D), both directions of each pair."""
    both = [*pairs, *((b, a) for a, b in pairs)]
    return recall_at(rank_pairs(cosine(vectors), ids, both), k)
