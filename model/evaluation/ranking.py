"""Ranks of related notes: scores against a pool, and the rank of each pair's target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from model.centre import query_vectors
from model.evaluation.metrics import Floats, recall_at, target_ranks

Scorer = Callable[[npt.NDArray[np.int64]], Floats]
"""Rows of the pool (Q,) -> their scores against the whole pool (Q, N), higher is closer."""
MAX_QUERIES, MAX_SCORES = 512, 2**26
"""Bounds on the queries that are scored at once, and on their scores (Q, N): 268 MB of float32."""


def cosine(vectors: npt.NDArray[np.float32], mean_share: float = 0.0) -> Scorer:
    """Return a scorer by the cosine of unit vectors (N, D). From a query's vector `mean_share` of the mean of all
    vectors is subtracted; the result is scaled to unit length."""
    queries = query_vectors(vectors, np.float32(mean_share) * vectors.mean(axis=0)) if mean_share else vectors
    return lambda rows: queries[rows] @ vectors.T


def within(score: Scorer, rows: npt.NDArray[np.int64]) -> Scorer:
    """Restrict the pool of `score` to some of its rows; queries and columns are then indices into `rows`."""
    return lambda queries: score(rows[queries])[:, rows]


def order_of_ties(ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the rows of `ids` (N,) in the order that breaks ties: by a hash, since ids themselves may tell how popular
    a note is (docs/log/data.md#what-the-ids-of-films-tell)."""
    return np.array(sorted(range(len(ids)), key=lambda row: blake2b(ids[row].encode()).digest()), np.int64)


def queries_at_once(pool: int) -> int:
    """Return the number of queries that are scored at once against a pool of that many notes."""
    return max(1, min(MAX_QUERIES, MAX_SCORES // max(pool, 1)))


def rank_pairs(score: Scorer, ids: Sequence[str], pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.int64]:
    """Return the rank of each pair's second note for its first one as the query, 1 for the best, (P,) in the order of
    `pairs`.

    `ids`: the pool, in the row order of `score`. A query is not ranked for itself. Equal scores rank by
    `order_of_ties`.
    """
    row_by_place = order_of_ties(ids)
    column = {ids[row]: place for place, row in enumerate(row_by_place)}
    targets: dict[str, list[int]] = defaultdict(list)
    places = []
    for query, target in pairs:
        places.append((query, len(targets[query])))
        targets[query].append(column[target])
    queries = list(targets)
    ranks: dict[str, npt.NDArray[np.int64]] = {}
    size = queries_at_once(len(ids))
    for start in range(0, len(queries), size):
        batch = queries[start : start + size]
        own = np.array([column[query] for query in batch])
        scores = score(row_by_place[own])[:, row_by_place]
        batch_targets = [np.array(targets[query]) for query in batch]
        ranks |= dict(zip(batch, target_ranks(scores, batch_targets, own), strict=True))
    return np.array([ranks[query][i] for query, i in places], np.int64)


def recall_of_pairs(
    vectors: npt.NDArray[np.float32], ids: Sequence[str], pairs: Sequence[tuple[str, str]], k: int
) -> float:
    """Return Recall@k of unit vectors (N, D), over both directions of each pair."""
    both_directions = [*pairs, *((related, note) for note, related in pairs)]
    return recall_at(rank_pairs(cosine(vectors), ids, both_directions), k)


def pool_cutoff(notes: int) -> int:
    """Return the k of Recall@k for a validation pool of `notes` notes: 100, or a tenth of a pool of fewer than 1,000,
    where the 100 nearest notes would be a large part or all."""
    return max(1, min(100, notes // 10))
