"""What a checkpoint, or a rival, retrieves and writes. NoteLLM is read through Engine: measured as it is served.

`evaluate` asks a System about one split of one data set and gives a Record.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from model.engine import Engine
from model.metrics import mean_reciprocal_rank, recall_at, target_ranks
from model.note import Note
from model.pairs import Pair, Split, split_of
from model.weights import Progress, silent

Floats = npt.NDArray[np.floating[Any]]
Scorer = Callable[[npt.NDArray[np.int64]], Floats]
"""Rows of the pool (Q,) -> their scores against the whole pool (Q, N), higher is closer."""
QUERIES_AT_ONCE = 512
CUTOFFS = (10, 100, 1000)
PROTOCOLS = ("cold-cold", "cold-all")


class System(Protocol):
    """What is compared."""

    name: str

    def related(self, notes: Sequence[Note]) -> Scorer:
        """How each of these notes, the pool, scores every other."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """A rank for each pair, in the order of (note, related), and the number of the query that the pair belongs to."""

    ranks: list[int]
    queries: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One system on one split of one data set: what tables and paired tests need, and no text of the data.

    `related`: by protocol, cold-cold or cold-all. `seconds_per_note`: of reading the pool.
    """

    system: str
    data: str
    split: Split
    with_hashtags: bool
    seconds_per_note: float
    related: Mapping[str, Ranks] = field(default_factory=dict)

    def summary(self) -> dict[str, dict[str, float]]:
        """By protocol: pairs, Recall@k in percent, MRR."""
        return {
            protocol: {
                "pairs": len(found.ranks),
                **{f"Recall@{k}": 100 * recall_at(np.array(found.ranks), k) for k in CUTOFFS},
                "MRR": mean_reciprocal_rank(np.array(found.ranks)),
            }
            for protocol, found in self.related.items()
        }


class EngineSystem:
    """NoteLLM as it is served."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self._engine = engine

    def related(self, notes: Sequence[Note]) -> Scorer:
        return cosine(self._engine.embed(notes))


def evaluate(
    system: System,
    data: str,
    notes: Mapping[str, Note],
    pairs: Sequence[Pair],
    *,
    split: Split = "test",
    with_hashtags: bool = True,
    protocols: Sequence[str] = PROTOCOLS,
    progress: Progress = silent,
) -> Record:
    """Related notes. cold-cold: a note of the split for another one of it, among the split. cold-all: for any note,
    among all: what a new post meets. Every pair counts; `pairs` holds those with a score that is high enough."""
    pool = [note for i, note in sorted(notes.items()) if "cold-all" in protocols or split_of(i) == split]
    if not with_hashtags:
        pool = [replace(note, hashtags=()) for note in pool]
    progress(f"{system.name}: reading {len(pool):,} notes")
    started = time.perf_counter()
    score = system.related(pool)
    seconds = (time.perf_counter() - started) / len(pool)
    ids = [note.id for note in pool]
    related = {}
    for protocol in protocols:
        inside = protocol == "cold-cold"
        chosen = sorted(
            (p.note, p.related)
            for p in pairs
            if split_of(p.note) == split and (not inside or split_of(p.related) == split)
        )
        rows = np.array([i for i, note_id in enumerate(ids) if not inside or split_of(note_id) == split])
        ranks = rank_pairs(_among(score, rows), [ids[row] for row in rows], chosen)
        numbered = {query: i for i, query in enumerate(sorted({query for query, _ in chosen}))}
        related[protocol] = Ranks(ranks.tolist(), [numbered[query] for query, _ in chosen])
    return Record(
        system=system.name,
        data=data,
        split=split,
        with_hashtags=with_hashtags,
        seconds_per_note=seconds,
        related=related,
    )


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
    for at in range(0, len(queries), QUERIES_AT_ONCE):
        chunk = queries[at : at + QUERIES_AT_ONCE]
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
