"""Metrics of retrieval, classification, calibration and hashtags: pure functions on numpy; shares are in [0, 1].

Shapes: Q queries, N notes of the pool, P pairs (a query and one of its targets), C classes. Every function raises
ValueError for shapes that do not match and where there is nothing to average over.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from model.note import hashtag_key, normalise_hashtags

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]

EXPOSURES = ("low", "middle", "high")
"""Names of the groups 0, 1 and 2 of `exposure_groups`."""

TEMPERATURE_LIMITS = (0.01, 100.0)
"""Bounds of the search in `fit_temperature`, far beyond the temperatures of a usable model."""

_NORMAL_95 = 1.959964
"""Standard deviations on either side of the mean that hold 95% of a normal distribution."""


class NaNScoresError(ValueError):
    """A model's scores hold NaN, so that nothing can be measured: its weights are too large or not finite."""


def target_ranks(scores: Floats, targets: Sequence[Integers], own: Integers) -> list[npt.NDArray[np.int64]]:
    """Rank of every target among the whole pool but the query itself, 1 for the best.

    `scores`: (Q, N) float32, higher is closer; of equal scores the lower column ranks first. `targets`: Q arrays of
    columns. `own`: (Q,) the query's own column, -1 where it has none. Targets of one query count against each other,
    as in the paper's recall over pairs. Returns Q int64 arrays shaped as `targets`. NaNScoresError for NaN, ValueError
    for a column outside the pool and for a query that is its own target.
    """
    if scores.ndim != 2 or own.shape != (len(scores),) or len(targets) != len(scores):
        raise ValueError(f"scores {scores.shape}, own {own.shape} and {len(targets)} lists of targets do not match")
    if ((own < -1) | (own >= scores.shape[1])).any():
        raise ValueError(f"own must be a column below {scores.shape[1]}, or -1")
    return [_ranks_in_row(*query) for query in zip(scores, targets, own, strict=True)]


def _ranks_in_row(scores: Floats, targets: Integers, own: np.integer[Any]) -> npt.NDArray[np.int64]:
    if np.isnan(scores).any():
        raise NaNScoresError("scores hold NaN, which has no rank")
    if ((targets < 0) | (targets >= len(scores)) | (targets == own)).any():
        raise ValueError(f"targets must be columns below {len(scores)} and not the query's own")
    pool = scores.copy()
    if own >= 0:
        pool[own] = np.nan  # neither above nor equal to any score
    ranks = [1 + np.count_nonzero(pool > pool[t]) + np.count_nonzero(pool[:t] == pool[t]) for t in targets]
    return np.array(ranks, dtype=np.int64)


def recall_at(ranks: Integers, k: int) -> float:
    """Share of pairs whose target is among the first k: the paper's R@k. `ranks`: (P,), 1-based."""
    _check_ranks(ranks)
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    return float(np.mean(ranks <= k))


def mean_reciprocal_rank(ranks: Integers) -> float:
    """Mean of 1/rank over pairs, in (0, 1]. `ranks`: (P,), 1-based.

    Over pairs, like `recall_at`; it is the usual MRR (best target of each query) where a query has one target.
    """
    _check_ranks(ranks)
    return float(np.mean(1 / ranks))


def exposure_groups(targets: Integers, clicks: Integers) -> npt.NDArray[np.int64]:
    """Split pairs into three groups of equal size by the clicks of the target, as the paper does for exposure.

    `targets`: (P,) column of each pair's target, where columns are numbered by ascending note id. `clicks`: (N,) clicks
    of each column. Returns (P,) int64: 0 low, 1 middle, 2 high. Sizes differ by at most one; of equal clicks the lower
    column is lower, so at a boundary the pairs of one target may fall in two groups, the earlier pairs in the lower.
    """
    if targets.ndim != 1 or clicks.ndim != 1:
        raise ValueError(f"targets {targets.shape} and clicks {clicks.shape} must have one axis")
    if ((targets < 0) | (targets >= len(clicks))).any():
        raise ValueError(f"targets must be columns below {len(clicks)}")
    groups = np.empty(len(targets), dtype=np.int64)
    groups[np.lexsort((targets, clicks[targets]))] = np.arange(len(targets)) * len(EXPOSURES) // max(len(targets), 1)
    return groups


def recall_by_exposure(ranks: Integers, groups: Integers, k: int) -> dict[str, float]:
    """`recall_at` in each of `EXPOSURES`. `ranks` and `groups` (of `exposure_groups`): (P,), at least three pairs."""
    if ranks.shape != groups.shape:
        raise ValueError(f"ranks {ranks.shape} and groups {groups.shape} differ in shape")
    return {name: recall_at(ranks[groups == group], k) for group, name in enumerate(EXPOSURES)}


def _check_ranks(ranks: Integers) -> None:
    if ranks.ndim != 1 or not len(ranks):
        raise ValueError(f"ranks must be those of at least one pair, on one axis, not of shape {ranks.shape}")
    if ranks.min() < 1:
        raise ValueError("ranks start at 1")


@dataclass(frozen=True, slots=True)
class Comparison:
    """System a against system b, with intervals of 95%.

    `difference`: a - b, from `low` to `high`. `p`: two-sided, under no difference. `ratio`: a / b, from `ratio_low` to
    `ratio_high`. The ratio and its interval are NaN where b is 0, and the interval also where a is.
    """

    difference: float
    low: float
    high: float
    p: float
    ratio: float
    ratio_low: float
    ratio_high: float


def compare(a: Floats, b: Floats, *clusterings: Integers) -> Comparison:
    """Compare two systems' means over units, such as pairs or notes, that may depend on each other.

    `a`, `b`: (U,) each unit's score, such as 1 for a hit. `clusterings`: none, where units are independent, or up to
    two of (U,) cluster numbers: units of one cluster depend on each other, as pairs that share their query, or their
    target. The variance of the difference is cluster-robust. With two clusterings it is the sum of both variances less
    that of clusters by both (Cameron, Gelbach & Miller 2011, "Robust inference with multiway clustering"), but at least
    the larger of both, which a finite sample can exceed (MacKinnon, Nielsen & Webb 2024, "Jackknife inference with
    two-way clustering"). Intervals and p are of the normal distribution; the ratio's are of its logarithm.

    Raises ValueError for arrays of other shapes, fewer than two units, more than two clusterings, and a clustering with
    one cluster alone.
    """
    if a.ndim != 1 or any(other.shape != a.shape for other in (b, *clusterings)):
        raise ValueError("scores and clusters must share one axis")
    if len(a) < 2 or len(clusterings) > 2:
        raise ValueError("there must be at least two units and at most two clusterings")
    differences = a.astype(np.float64) - b
    difference, mean_a, mean_b = float(differences.mean()), float(a.mean()), float(b.mean())
    error = _standard_error(differences - difference, clusterings)
    z = abs(difference) / error if error else math.inf if difference else 0.0
    ratio = ratio_low = ratio_high = math.nan
    if mean_b:
        ratio = mean_a / mean_b
    if mean_a > 0 and mean_b > 0:
        factor = math.exp(_NORMAL_95 * _standard_error(a / mean_a - b / mean_b, clusterings))
        ratio_low, ratio_high = ratio / factor, ratio * factor
    low, high = difference - _NORMAL_95 * error, difference + _NORMAL_95 * error
    return Comparison(difference, low, high, math.erfc(z / math.sqrt(2)), ratio, ratio_low, ratio_high)


def _standard_error(deviations: Floats, clusterings: Sequence[Integers]) -> float:
    """Standard error of a mean over units (U,), from each unit's deviation from the mean."""
    if not clusterings:
        return math.sqrt(_variance(deviations, np.arange(len(deviations))))
    variances = [_variance(deviations, clusters) for clusters in clusterings]
    if len(clusterings) == 2:
        _, by_both = np.unique(np.stack(clusterings), axis=1, return_inverse=True)
        variances.append(sum(variances) - _variance(deviations, by_both))
    return math.sqrt(max(variances))


def _variance(deviations: Floats, clusters: Integers) -> float:
    """Variance of a mean over units (U,) that depend on each other within clusters; ValueError for one cluster."""
    _, numbers = np.unique(clusters, return_inverse=True)
    sums = np.bincount(numbers, weights=deviations)
    if len(sums) < 2:
        raise ValueError("there must be at least two clusters")
    return float((sums**2).sum()) * len(sums) / (len(sums) - 1) / len(deviations) ** 2


def accuracy(predicted: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """Share of predictions equal to the truth."""
    _check_lengths(predicted, truth)
    return sum(p == t for p, t in zip(predicted, truth, strict=True)) / len(truth)


def macro_f1(predicted: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """Mean of F1 over every label that occurs in the truth or among the predictions, as in scikit-learn.

    F1 of a label is 2 hits / (times predicted + times true). An invented label is a class with F1 0, so give all free
    outputs outside the closed set one common label first.
    """
    _check_lengths(predicted, truth)
    hits = Counter(t for p, t in zip(predicted, truth, strict=True) if p == t)
    occurrences = Counter(predicted) + Counter(truth)
    return sum(2 * hits[label] / n for label, n in occurrences.items()) / len(occurrences)


def illusory_share(outputs: Sequence[Hashable], closed_set: Collection[Hashable]) -> float:
    """Share of free outputs that are not in the closed set, compared exactly."""
    _check_lengths(outputs)
    return sum(output not in closed_set for output in outputs) / len(outputs)


def expected_calibration_error(confidence: Floats, correct: npt.NDArray[np.bool_], bins: int = 15) -> float:
    """Mean distance between confidence and accuracy in bins of equal width, weighted by their size; in [0, 1].

    `confidence`: (N,) probability of each prediction, in [0, 1]. `correct`: (N,) whether it was right. A bin excludes
    its lower edge, but 0 is in the first (Guo et al. 2017, section 2).
    """
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(f"confidence {confidence.shape} and correct {correct.shape} must share one axis, not empty")
    if bins < 1 or not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("confidence must be in [0, 1], and there must be at least one bin")
    inner_edges = np.linspace(0, 1, bins + 1)[1:-1]
    gaps = np.bincount(np.digitize(confidence, inner_edges, right=True), weights=correct - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def fit_temperature(log_probs: Floats, truth: Integers) -> float:
    """Fit the temperature T under which the truth is likeliest: softmax(log_probs / T) (Guo et al. 2017, section 4.2).

    `log_probs`: (N, C) finite log probabilities or logits. `truth`: (N,) classes in [0, C). The negative log likelihood
    is convex in 1/T, so its slope changes sign once, and bisection on log T finds where. Returns a limit of
    `TEMPERATURE_LIMITS` where the optimum lies outside, as it does when every prediction is right.
    """
    if log_probs.ndim != 2 or truth.shape != (len(log_probs),) or not len(truth):
        raise ValueError(f"log_probs {log_probs.shape} and truth {truth.shape} must be (N, C) and (N,), not empty")
    if not np.isfinite(log_probs).all() or ((truth < 0) | (truth >= log_probs.shape[1])).any():
        raise ValueError(f"log_probs must be finite and truth below {log_probs.shape[1]}")
    true_mean = log_probs[np.arange(len(truth)), truth].mean(dtype=np.float64)
    low, high = map(math.log, TEMPERATURE_LIMITS)
    for _ in range(50):  # to the precision of a float64
        middle = (low + high) / 2
        probs = np.exp(apply_temperature(log_probs, math.exp(middle)))
        too_sharp = (probs * log_probs).sum(axis=1).mean() > true_mean  # the slope in 1/T is their difference
        low, high = (middle, high) if too_sharp else (low, middle)
    return math.exp((low + high) / 2)


def apply_temperature(log_probs: Floats, temperature: float) -> npt.NDArray[np.float64]:
    """Log of softmax(log_probs / temperature) over the last axis, same shape, float64.

    Raises ValueError for a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    scaled: npt.NDArray[np.float64] = log_probs.astype(np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    scaled -= np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
    return scaled


@dataclass(frozen=True, slots=True)
class HashtagScores:
    """Precision, recall and F1 at k, each the mean over notes."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class RougeScores:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, each the mean over notes."""

    rouge_1: float
    rouge_2: float
    rouge_l: float


def hashtag_prf(predicted: Sequence[Sequence[str]], truth: Sequence[Sequence[str]], k: int) -> HashtagScores:
    """Precision, recall and F1 of each note's first k hashtags, averaged over notes (macro).

    Hashtags are equal when their `hashtag_key` is; repeated and empty ones are dropped before the first k are taken.
    Precision is hits / k, so a missing hashtag counts as a wrong one and predicting fewer does not score more (F1@5 of
    Chen et al. 2020, arXiv 2004.08511). Recall is hits / all true hashtags; F1 is taken per note. Raises ValueError for
    a note without true hashtags.
    """
    _check_lengths(predicted, truth)
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    rows = [_prf(_keys(p)[:k], _keys(t), k) for p, t in zip(predicted, truth, strict=True)]
    return HashtagScores(*np.mean(rows, axis=0).tolist())


def _keys(hashtags: Sequence[str]) -> list[str]:
    return [hashtag_key(hashtag) for hashtag in normalise_hashtags(hashtags)]


def _prf(predicted: list[str], truth: list[str], k: int) -> tuple[float, float, float]:
    if not truth:
        raise ValueError("a note without true hashtags cannot be scored: omit it")
    hits = len(set(predicted) & set(truth))
    return hits / k, hits / len(truth), 2 * hits / (k + len(truth))


def rouge(predicted: Sequence[str], truth: Sequence[str]) -> RougeScores:
    """ROUGE F-measures (Lin 2004) of texts, such as a note's hashtags joined by a space, averaged over notes.

    Tokens are those of `rouge_tokens`, neither stemmed nor filtered. ROUGE-1 and ROUGE-2 count an n-gram at most as
    often as the other text has it; ROUGE-L is the longest common subsequence. Precision and recall weigh the same.
    A note scores 0 where either text has no n-gram of that size, as an empty prediction has none.
    """
    _check_lengths(predicted, truth)
    rows = [_rouge(rouge_tokens(p), rouge_tokens(t)) for p, t in zip(predicted, truth, strict=True)]
    return RougeScores(*np.mean(rows, axis=0).tolist())


_UNSPACED = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
"""Ranges of Han characters and kana, which are written without spaces. Hangul has spaces, so it is not among them."""

_TOKEN = re.compile(rf"(?=\w)[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def rouge_tokens(text: str) -> list[str]:
    r"""Split a text into lower-cased words (`\w+`); each Han character or kana is a token of its own."""
    return _TOKEN.findall(text.lower())


def _rouge(predicted: list[str], truth: list[str]) -> tuple[float, float, float]:
    unigrams = Counter(predicted), Counter(truth)
    bigrams = Counter(pairwise(predicted)), Counter(pairwise(truth))
    common = _longest_common_subsequence(predicted, truth)
    return _overlap_f1(*unigrams), _overlap_f1(*bigrams), 2 * common / max(len(predicted) + len(truth), 1)


def _overlap_f1(predicted: Counter[Any], truth: Counter[Any]) -> float:
    return 2 * (predicted & truth).total() / max(predicted.total() + truth.total(), 1)


def _longest_common_subsequence(a: list[str], b: list[str]) -> int:
    lengths = [0] * (len(b) + 1)  # of the tokens of a so far against each prefix of b
    for token in a:
        previous = lengths
        lengths = [0]
        for i, other in enumerate(b):
            lengths.append(previous[i] + 1 if token == other else max(previous[i + 1], lengths[i]))
    return lengths[-1]


def _check_lengths(*lists: Sequence[object]) -> None:
    lengths = [len(values) for values in lists]
    if len(set(lengths)) > 1:
        raise ValueError(f"lists differ in length: {lengths}")
    if not lengths[0]:
        raise ValueError("nothing to average over")
