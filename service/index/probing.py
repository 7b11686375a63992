"""Probing: how many inverted lists a search of a sealed segment goes through, and how many candidates it takes by their
codes and compares by their vectors, so that it finds RECALL of the neighbours. Both are measured when the segment is
built.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from service.index.bitmaps import Mask, RowNumbers
from service.index.native import FaissIndex, lists_of_rows, nearest_lists, search_lists
from service.records import Vectors

RECALL = 0.998
"""Share of the true neighbours that a search finds."""
MEASURED_QUERIES = 128
"""Rows of a new segment that serve as queries to measure it."""
MEASURED_K = (10, 30, 100, 300, 1000)
"""Numbers of neighbours for which a segment is measured; values in between are interpolated."""
CANDIDATES_PER_NEIGHBOUR = (2, 3, 4, 6, 8, 12, 16, 24)
"""Numbers of candidates that are tried in turn, as multiples of the number of neighbours."""
ROWS_PER_CANDIDATE = 8
"""Rows of an inverted list that are compared in the time that fetching and comparing one row elsewhere takes."""
MIN_PASSING_SHARE = 1e-6
"""Lower bound on the share of rows that pass a filter, by which the number of lists is divided."""
ROUNDING_MARGIN = 1e-9
"""Subtracted before a number is rounded up, so that a rounding error does not add one."""


@dataclass(frozen=True, slots=True)
class Probing:
    """Measurements of an inverted file of `rows` rows in `lists` lists.

    `lists_by_k`: for each k of MEASURED_K, how many lists hold RECALL of the k neighbours. `candidates_by_k`: for each
    k, how many of the rows nearest by their codes, in `scanned_lists` lists, hold that share; it ends at the first k
    for which comparing the vectors of these candidates would take longer than comparing all rows of the lists.
    """

    rows: int
    lists: int
    lists_by_k: Mapping[int, int]
    candidates_by_k: Mapping[int, int]

    @classmethod
    def restored(cls, rows: int, lists: int, by_k: npt.NDArray[np.int64]) -> Probing:
        """Return the Probing that this `by_k` was taken from."""
        lists_by_k = {k: listed for k, listed, _ in by_k.tolist()}
        return cls(rows, lists, lists_by_k, {k: candidates for k, _, candidates in by_k.tolist() if candidates})

    @property
    def by_k(self) -> npt.NDArray[np.int64]:
        """k, lists and candidates (0: none) as rows, shape (len(MEASURED_K), 3)."""
        return np.array([(k, n, self.candidates_by_k.get(k, 0)) for k, n in self.lists_by_k.items()], np.int64)

    def lists_for(self, k: int, passing_share: float = 1.0) -> int:
        """Return how many lists to search for `k` neighbours.

        Where only `passing_share` of the rows passes a filter, the number is divided by that share, so that as many
        rows pass: the nearest of these lie farther away.
        """
        lists = interpolated(self.lists_by_k, k) / max(passing_share, MIN_PASSING_SHARE)
        return int(min(self.lists, math.ceil(lists - ROUNDING_MARGIN)))

    def rows_in(self, lists: int) -> float:
        """Return how many rows are in `lists` lists, on average."""
        return self.rows * lists / self.lists

    def scanned_lists(self, k: int) -> int:
        """Return how many lists a search by codes goes through: a quarter more than `lists_for`, to make up for what
        codes miss."""
        return min(self.lists, -(-self.lists_for(k) * 5 // 4))

    def candidates_for(self, k: float) -> float | None:
        """Return how many candidates to take by their codes for `k` neighbours, None where codes save no time.

        Below the first measured k the number falls with the square root of `k`: the fewer neighbours, the more
        candidates for each.
        """
        if not self.candidates_by_k or k > max(self.candidates_by_k):
            return None
        return interpolated(self.candidates_by_k, k) * math.sqrt(min(1.0, k / MEASURED_K[0]))


def interpolated(measured: Mapping[int, int], k: float) -> float:
    """Return the value for `k`: interpolated between two measured k on logarithmic scales, and in proportion beyond the
    last."""
    ks = sorted(measured)
    if len(ks) == 1:
        return measured[ks[0]] * max(1.0, k / ks[0])
    right = min(max(1, bisect_left(ks, k)), len(ks) - 1)
    low, high = ks[right - 1], ks[right]
    position = min(max(0.0, math.log(k / low) / math.log(high / low)), 1.0)
    return float(measured[low] * (measured[high] / measured[low]) ** position * max(1.0, k / high))


def measure(ivf: FaissIndex, codes: FaissIndex | None) -> Probing:
    """Measure an inverted file and the codes of its rows (None: it has none). Some of its rows serve as queries; they
    do not count as their own neighbours."""
    queries = ivf.reconstruct_batch(np.arange(0, ivf.ntotal, max(1, ivf.ntotal // MEASURED_QUERIES)))
    true_neighbours = search_lists(ivf, queries, MEASURED_K[-1] + 1, ivf.nlist)
    probing = Probing(ivf.ntotal, ivf.nlist, _lists(ivf, queries, true_neighbours), {})
    if codes is None:
        return probing
    return replace(probing, candidates_by_k=_candidates(probing, codes, queries, true_neighbours))


def _lists(ivf: FaissIndex, queries: Vectors, true_neighbours: RowNumbers) -> dict[int, int]:
    """Return the `lists_by_k` of a Probing. A search goes through the lists in the order of `nearest_lists` and finds
    the neighbours in them, so the places of the neighbours' lists in that order tell what searches would find."""
    place_of_list = np.argsort(nearest_lists(ivf, queries, ivf.nlist), axis=1)
    places = np.take_along_axis(place_of_list, lists_of_rows(ivf, true_neighbours), axis=1)
    lists_by_k: dict[int, int] = {}
    lists = 1
    for k in MEASURED_K:
        while lists < ivf.nlist and _recall(places[:, : k + 1] < lists, k) < RECALL:
            lists = min(ivf.nlist, -(-lists * 5 // 4))
        lists_by_k[k] = lists
    return lists_by_k


def _candidates(probing: Probing, codes: FaissIndex, queries: Vectors, true_neighbours: RowNumbers) -> dict[int, int]:
    """Return the `candidates_by_k` of a Probing: one step more than was enough for the sampled queries, which are
    few."""
    candidates_by_k: dict[int, int] = {}
    for k in MEASURED_K:
        max_candidates = probing.rows_in(probing.lists_by_k[k]) / ROWS_PER_CANDIDATE
        steps = pairwise(times * (k + 1) for times in CANDIDATES_PER_NEIGHBOUR)
        steps_that_pay = [(enough, more) for enough, more in steps if more <= max_candidates]
        if not steps_that_pay:
            break
        candidate_rows = search_lists(codes, queries, steps_that_pay[-1][0], probing.scanned_lists(k))
        pairs = zip(candidate_rows, true_neighbours[:, : k + 1], strict=True)
        is_true = np.stack([np.isin(rows, true) for rows, true in pairs])
        candidates = [more for enough, more in steps_that_pay if _recall(is_true[:, :enough], k) >= RECALL]
        if not candidates:
            break
        candidates_by_k[k] = candidates[0]
    return candidates_by_k


def _recall(is_found: Mask, k: int) -> float:
    """Return the share of `k` neighbours that are found. `is_found` (queries, n) also counts the query itself."""
    return float(is_found.sum(axis=1).mean() - 1) / k
