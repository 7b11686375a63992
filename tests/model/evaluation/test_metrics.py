"""Metrics against values worked out by hand and against naive loops."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.evaluation.metrics import (
    TEMPERATURE_LIMITS,
    accuracy,
    apply_temperature,
    compare,
    expected_calibration_error,
    exposure_groups,
    fit_temperature,
    hashtag_prf,
    illusory_share,
    macro_f1,
    mean_reciprocal_rank,
    recall_at,
    recall_by_exposure,
    rouge,
    rouge_tokens,
    target_ranks,
)

Scores = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
NO_PAIRS = np.array([], dtype=np.int64)


@given(st.data())
def test_ranks_are_places_in_the_sorted_pool(data: st.DataObject) -> None:
    notes = data.draw(st.integers(2, 8))
    few_values = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, math.inf])  # so that most scores are tied
    scores = data.draw(st.lists(st.lists(few_values, min_size=notes, max_size=notes), min_size=1, max_size=4))
    own = [data.draw(st.integers(-1, notes - 1)) for _ in scores]
    others = [[column for column in range(notes) if column != query] for query in own]
    targets = [data.draw(st.lists(st.sampled_from(columns), unique=True)) for columns in others]

    ranks = target_ranks(
        np.array(scores, dtype=np.float32), [np.array(t, dtype=np.int64) for t in targets], np.array(own)
    )

    for row, columns, row_targets, row_ranks in zip(scores, others, targets, ranks, strict=True):
        order = [column for _, column in sorted((-row[column], column) for column in columns)]
        assert row_ranks.tolist() == [1 + order.index(column) for column in row_targets]


def test_query_itself_is_not_in_the_pool() -> None:
    scores = np.array([[9, 5, 7]], dtype=np.float32)
    assert target_ranks(scores, [np.array([1, 2])], np.array([0]))[0].tolist() == [2, 1]
    assert target_ranks(scores, [np.array([1, 2])], np.array([-1]))[0].tolist() == [3, 2]
    assert scores.tolist() == [[9, 5, 7]]


@pytest.mark.parametrize(
    ("scores", "targets", "own", "message"),
    [
        ([[1, 2]], [[0]], [-1, -1], "do not match"),
        ([[1, 2]], [[0], [1]], [-1], "do not match"),
        ([1, 2], [[0]], [-1], "do not match"),
        ([[1, 2]], [[2]], [-1], "columns below 2"),
        ([[1, 2]], [[-1]], [0], "columns below 2"),
        ([[1, 2]], [[0]], [0], "not the query's own"),
        ([[1, 2]], [[0]], [2], "column below 2"),
        ([[1, math.nan]], [[0]], [-1], "NaN"),
    ],
)
def test_ranks_of_mismatched_arrays_are_refused(
    scores: list[list[float]], targets: list[list[int]], own: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        target_ranks(np.array(scores, dtype=np.float32), [np.array(t) for t in targets], np.array(own))


def test_recall_and_reciprocal_rank_are_means_over_pairs() -> None:
    ranks = np.array([1, 2, 4, 100])
    assert [recall_at(ranks, k) for k in (1, 2, 3, 4, 100)] == [0.25, 0.5, 0.5, 0.75, 1.0]
    assert mean_reciprocal_rank(ranks) == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 100) / 4)


@pytest.mark.parametrize("ranks", [NO_PAIRS, np.array([0, 1]), np.array([[1, 2]])])
def test_means_over_invalid_ranks_are_refused(ranks: npt.NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match="rank"):
        recall_at(ranks, 1)
    with pytest.raises(ValueError, match="rank"):
        mean_reciprocal_rank(ranks)


def test_recall_at_less_than_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        recall_at(np.array([1]), 0)


def test_exposure_groups_are_equal_thirds_by_clicks_then_by_id() -> None:
    clicks = np.array([5, 1, 5, 9, 1, 0])
    targets = np.array([3, 2, 0, 4, 1, 4])
    # Targets by clicks, then by id: 1 (1 click), 4 and 4 (1), 0 (5), 2 (5), 3 (9).
    assert exposure_groups(targets, clicks).tolist() == [2, 2, 1, 0, 0, 1]


@given(st.lists(st.integers(0, 4), max_size=30))
def test_exposure_groups_differ_by_at_most_one_in_size(targets: list[int]) -> None:
    groups = exposure_groups(np.array(targets, dtype=np.int64), np.array([3, 3, 0, 8, 1]))
    sizes = np.bincount(groups, minlength=3)
    assert len(sizes) == 3
    assert sizes.max() - sizes.min() <= 1


def test_recall_by_exposure_is_the_recall_of_each_group() -> None:
    recall = recall_by_exposure(np.array([1, 9, 2, 3, 8, 9]), np.array([0, 0, 1, 1, 2, 2]), k=3)
    assert recall == {"low": 0.5, "middle": 1.0, "high": 0.0}


def test_exposure_of_mismatched_arrays_is_refused() -> None:
    with pytest.raises(ValueError, match="columns below 2"):
        exposure_groups(np.array([2]), np.array([1, 1]))
    with pytest.raises(ValueError, match="one axis"):
        exposure_groups(np.array([[0]]), np.array([1, 1]))
    with pytest.raises(ValueError, match="differ in shape"):
        recall_by_exposure(np.array([1]), np.array([0, 1]), 1)


def two_equal_systems(generator: np.random.Generator) -> tuple[Scores, Scores, Numbers, Numbers]:
    """Hits of two equally good systems, with the query and target of each pair. Which pairs a system finds depends on
    the target and on chance, not on the query."""
    queries, targets = (generator.integers(0, 60, 600) for _ in range(2))
    a, b = (generator.normal(0, 1, 60)[targets] + generator.normal(0, 1, 600) for _ in range(2))
    return (a > 0).astype(float), (b > 0).astype(float), queries, targets


def test_comparison_of_independent_units_is_the_paired_z_test() -> None:
    generator = np.random.default_rng(7)
    a, b = generator.binomial(1, 0.7, 200).astype(float), generator.binomial(1, 0.6, 200).astype(float)
    comparison = compare(a, b)
    error = float(np.std(a - b, ddof=1)) / math.sqrt(200)
    assert comparison.difference == pytest.approx(a.mean() - b.mean())
    assert comparison.low == pytest.approx(comparison.difference - 1.96 * error, abs=1e-4)
    assert comparison.high == pytest.approx(comparison.difference + 1.96 * error, abs=1e-4)
    assert comparison.p == pytest.approx(2 * NormalDist().cdf(-abs(comparison.difference) / error))
    assert comparison.ratio == pytest.approx(a.mean() / b.mean())
    assert compare(a, b, np.arange(200), np.arange(200)[::-1]) == comparison  # each unit a cluster of its own


def test_variance_counts_each_two_units_of_one_query_or_target() -> None:
    generator = np.random.default_rng(5)
    a, b, queries, targets = two_equal_systems(generator)
    deviations = (a - b) - (a - b).mean()
    sums: dict[object, list[float]] = {"query": [], "target": [], "both": []}
    for name, clusters in (
        ("query", queries.tolist()),
        ("target", targets.tolist()),
        ("both", list(zip(queries.tolist(), targets.tolist(), strict=True))),
    ):
        members = [sum(d for d, c in zip(deviations, clusters, strict=True) if c == one) for one in set(clusters)]
        sums[name] = [len(members) / (len(members) - 1) * member**2 for member in members]
    variance = (sum(sums["query"]) + sum(sums["target"]) - sum(sums["both"])) / len(a) ** 2
    comparison = compare(a, b, queries, targets)
    assert comparison.high - comparison.low == pytest.approx(2 * 1.959964 * math.sqrt(variance))


def test_equal_systems_whose_pairs_share_targets_rarely_differ() -> None:
    generator = np.random.default_rng(1)
    draws = [two_equal_systems(generator) for _ in range(300)]
    by_both = np.mean([compare(*draw).p < 0.05 for draw in draws])
    by_query = np.mean([compare(a, b, queries).p < 0.05 for a, b, queries, _ in draws])
    assert 0.02 < by_both < 0.1
    assert by_query > 0.3


def test_interval_of_the_ratio_holds_the_true_ratio_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    held = []
    for _ in range(400):
        a, b = generator.binomial(1, 0.6, 300).astype(float), generator.binomial(1, 0.4, 300).astype(float)
        comparison = compare(a, b)
        held.append(comparison.ratio_low <= 1.5 <= comparison.ratio_high)
    assert 0.92 < np.mean(held) < 0.98


def test_variance_is_at_least_that_of_either_clustering() -> None:
    # Deviations partly cancel within each query and each target: variance by query + by target - by both is below 0.
    a, b = np.array([2.0, 0.0, 0.0, 0.0]), np.array([0.0, 1.0, 1.0, 0.0])
    queries, targets = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    comparison = compare(a, b, queries, targets)
    assert comparison == compare(a, b, queries)
    assert comparison.low < 0 < comparison.high


def test_identical_systems_do_not_differ() -> None:
    scores = np.arange(9) / 3  # scores that floats only approximate
    comparison = compare(scores, scores.copy(), np.arange(9) // 3, np.arange(9) % 3)
    assert (comparison.difference, comparison.low, comparison.high, comparison.p) == (0, 0, 0, 1)
    assert (comparison.ratio, comparison.ratio_low, comparison.ratio_high) == (1, 1, 1)


def test_constant_advantage_has_no_width() -> None:
    scores = np.arange(8) / 4
    comparison = compare(scores + 0.25, scores, np.arange(8) // 2)
    assert (comparison.difference, comparison.low, comparison.high) == (0.25, 0.25, 0.25)
    assert comparison.p == 0
    assert comparison.ratio_low < comparison.ratio < comparison.ratio_high


def test_p_is_two_sided() -> None:
    a, b, *clusterings = two_equal_systems(np.random.default_rng(3))
    ahead, behind = compare(a, b, *clusterings), compare(b, a, *clusterings)
    assert ahead.p == behind.p
    assert (ahead.low, ahead.high) == (-behind.high, -behind.low)
    assert (ahead.ratio_low, ahead.ratio_high) == pytest.approx((1 / behind.ratio_high, 1 / behind.ratio_low))


def test_ratio_to_zero_is_nan() -> None:
    comparison = compare(np.array([1.0, 0.0]), np.zeros(2))
    assert all(math.isnan(value) for value in (comparison.ratio, comparison.ratio_low, comparison.ratio_high))
    comparison = compare(np.zeros(2), np.array([1.0, 0.0]))
    assert comparison.ratio == 0
    assert math.isnan(comparison.ratio_low)


@pytest.mark.parametrize(
    ("a", "clusterings", "message"),
    [
        ([1.0], [], "at least two units"),
        ([[1.0, 0.0]], [], "share one axis"),
        ([1.0, 0.0], [[1]], "share one axis"),
        ([1.0, 0.0], [[0, 1]] * 3, "at most two clusterings"),
        ([1.0, 0.0], [[0, 1], [1, 1]], "at least two clusters"),
    ],
)
def test_comparison_of_mismatched_arrays_is_refused(a: list[float], clusterings: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(np.array(a), np.zeros_like(a), *map(np.array, clusterings))


def test_accuracy_and_macro_f1_are_as_by_hand() -> None:
    truth = ["food", "food", "pets", "film"]
    predicted = ["food", "pets", "pets", "home"]
    assert accuracy(predicted, truth) == 0.5
    # food 2/(1+2), pets 2/(2+1), film 0, home 0: it counts although it is no note's category
    assert macro_f1(predicted, truth) == pytest.approx((2 / 3 + 2 / 3 + 0 + 0) / 4)


def test_illusory_outputs_are_those_outside_the_closed_set() -> None:
    assert illusory_share(["food", "Food", "pets", ""], {"food", "pets"}) == 0.5
    assert illusory_share(["food"], ("food", "pets")) == 0


def test_mismatched_or_empty_lists_are_refused() -> None:
    for mean in (accuracy, macro_f1, rouge):
        with pytest.raises(ValueError, match="differ in length"):
            mean(["a"], ["a", "b"])
        with pytest.raises(ValueError, match="nothing to average"):
            mean([], [])
    with pytest.raises(ValueError, match="nothing to average"):
        illusory_share([], {"food"})


def test_calibration_error_is_zero_when_confidence_is_accuracy() -> None:
    confidence = np.repeat([0.25, 0.5, 1.0], 4)
    correct = np.array([1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1], dtype=bool)
    assert expected_calibration_error(confidence, correct) == 0


def test_calibration_error_is_as_by_hand() -> None:
    # Two bins: (0, 0.5] has 0.2 and 0.5, one right; (0.5, 1] has 0.9 and 0.9, one right.
    confidence = np.array([0.2, 0.5, 0.9, 0.9])
    correct = np.array([True, False, True, False])
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx((abs(0.7 - 1) + abs(1.8 - 1)) / 4)


def test_calibration_bin_holds_its_upper_edge_and_the_first_zero() -> None:
    right = np.array([False, True])
    assert expected_calibration_error(np.array([0.0, 0.5]), right, bins=2) == pytest.approx(0.25)  # both in one bin
    assert expected_calibration_error(np.array([0.5, 0.51]), right, bins=2) == pytest.approx(
        (0.5 + 0.49) / 2
    )  # one in each bin


@pytest.mark.parametrize(
    ("confidence", "bins", "message"),
    [([0.5, 0.5], 15, "share one axis"), ([1.1], 15, "in"), ([math.nan], 15, "in"), ([0.5], 0, "one bin")],
)
def test_calibration_of_invalid_probabilities_is_refused(confidence: list[float], bins: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(np.array(confidence), np.array([True]), bins)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_fitted_temperature_recovers_the_one_that_made_the_truth(temperature: float) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=2, size=(20_000, 5))
    drawn = np.argmax(logits + generator.gumbel(size=logits.shape), axis=1)  # draws from softmax(logits)
    sharpened = apply_temperature(logits * temperature, 1).astype(np.float32)
    assert fit_temperature(sharpened, drawn) == pytest.approx(temperature, rel=0.03)


def test_fitted_temperature_is_the_likeliest() -> None:
    generator = np.random.default_rng(1)
    logits, truth = generator.normal(size=(50, 3)), generator.integers(0, 3, 50)
    logits[np.arange(50), truth] += 1

    def loss(temperature: float) -> float:
        return -float(apply_temperature(logits, temperature)[np.arange(50), truth].mean())

    best = fit_temperature(logits, truth)
    assert loss(best) < min(loss(best * 0.99), loss(best * 1.01))


def test_fitted_temperature_without_an_optimum_is_at_a_limit() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 2.0]])
    assert fit_temperature(logits, np.array([0, 1])) == pytest.approx(TEMPERATURE_LIMITS[0])
    assert fit_temperature(logits, np.array([1, 0])) == pytest.approx(TEMPERATURE_LIMITS[1])


def test_applied_temperature_is_as_by_hand() -> None:
    log_probs = np.log([[0.8, 0.2]])
    assert np.exp(apply_temperature(log_probs, 1)) == pytest.approx(np.array([[0.8, 0.2]]))
    assert np.exp(apply_temperature(log_probs, 2)) == pytest.approx(
        np.array([[2 / 3, 1 / 3]])
    )  # sqrt(0.8) : sqrt(0.2) is 2 : 1


@pytest.mark.parametrize(
    ("log_probs", "truth", "message"),
    [
        ([[0.0, 1.0]], [0, 1], r"\(N, C\)"),
        ([0.0, 1.0], [0, 1], r"\(N, C\)"),
        ([[0.0, -math.inf]], [0], "finite"),
        ([[0.0, 1.0]], [2], "truth below 2"),
        ([[0.0, 1.0]], [-1], "truth below 2"),
    ],
)
def test_temperature_for_mismatched_arrays_is_refused(
    log_probs: list[list[float]], truth: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(np.array(log_probs), np.array(truth))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_that_is_not_above_zero_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        apply_temperature(np.zeros((1, 2)), temperature)


def test_hashtag_scores_are_means_over_notes() -> None:
    scores = hashtag_prf([["a", "b", "c"], ["x"]], [["a", "c", "d", "e"], ["y"]], k=2)
    # First note: 1 hit among 2 predicted and 4 true hashtags, F1 2/(2+4). Second note: no hit.
    assert (scores.precision, scores.recall, scores.f1) == pytest.approx((1 / 4, 1 / 8, 1 / 6))


def test_missing_hashtag_counts_as_a_wrong_one() -> None:
    scores = hashtag_prf([["a"]], [["a"]], k=4)
    assert (scores.precision, scores.recall, scores.f1) == pytest.approx((0.25, 1, 0.4))


def test_hashtag_case_spacing_repetition_and_blanks_do_not_count() -> None:
    scores = hashtag_prf([["#", "Street Food", "streetfood", "咖啡"]], [["#STREETFOOD", "咖啡", "咖啡"]], k=2)
    assert (scores.precision, scores.recall, scores.f1) == (1, 1, 1)


def test_note_without_predictions_scores_zero() -> None:
    scores = hashtag_prf([[]], [["a"]], k=3)
    assert (scores.precision, scores.recall, scores.f1) == (0, 0, 0)


@pytest.mark.parametrize(
    ("predicted", "truth", "k", "message"),
    [
        ([["a"]], [["a"], ["b"]], 1, "differ in length"),
        ([], [], 1, "nothing to average"),
        ([["a"]], [["a"]], 0, "at least 1"),
        ([["a"]], [["#"]], 1, "omit it"),
    ],
)
def test_hashtags_that_cannot_be_scored_are_refused(
    predicted: list[list[str]], truth: list[list[str]], k: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        hashtag_prf(predicted, truth, k)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("#Street_Food, 2024!", ["street_food", "2024"]),
        ("上海citywalk攻略", ["上", "海", "citywalk", "攻", "略"]),
        ("コーヒー・の", ["コ", "ー", "ヒ", "ー", "の"]),
        ("서울 카페", ["서울", "카페"]),
        ("𠮷野家", ["𠮷", "野", "家"]),
        ("ÉTÉ", ["été"]),
        (" #- ", []),
    ],
)
def test_words_and_chinese_characters_are_tokens(text: str, tokens: list[str]) -> None:
    assert rouge_tokens(text) == tokens


@pytest.mark.parametrize(
    ("predicted", "truth", "scores"),
    [
        ("a b c", "A B C", (1, 1, 1)),
        ("a b c d", "a c b", (6 / 7, 0, 4 / 7)),
        ("a a a", "a", (2 / 4, 0, 2 / 4)),  # clipped: only one of the three counts
        ("a b a b", "a b", (4 / 6, 2 / 4, 4 / 6)),
        ("上海咖啡", "上海 美食 咖啡", (8 / 10, 2 * 2 / (3 + 5), 8 / 10)),
        ("a", "a", (1, 0, 1)),  # no bigram in either
        ("", "a b", (0, 0, 0)),
        ("a b", "", (0, 0, 0)),
    ],
)
def test_rouge_is_as_by_hand(predicted: str, truth: str, scores: tuple[float, float, float]) -> None:
    computed = rouge([predicted], [truth])
    assert (computed.rouge_1, computed.rouge_2, computed.rouge_l) == pytest.approx(scores)


def test_rouge_is_the_mean_over_notes() -> None:
    scores = rouge(["a b c", ""], ["a b c", "d"])
    assert (scores.rouge_1, scores.rouge_2, scores.rouge_l) == (0.5, 0.5, 0.5)
