"""Metrics against values worked out by hand and against naive loops."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.evaluation import metrics
from model.evaluation.metrics import (
    TEMPERATURE_LIMITS,
    Comparison,
    accuracy,
    apply_temperature,
    expected_calibration_error,
    exposure_groups,
    fit_temperature,
    hashtag_prf,
    illusory_share,
    macro_f1,
    mean_reciprocal_rank,
    paired_bootstrap,
    recall_at,
    recall_by_exposure,
    rouge,
    rouge_tokens,
    target_ranks,
)

NO_PAIRS = np.array([], dtype=np.int64)


def sums_of_two_systems(
    queries: int = 40,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Hits of two systems, a the better one, and the pairs of each query."""
    generator = np.random.default_rng(7)
    counts = generator.integers(1, 6, queries)
    return generator.binomial(counts, 0.7).astype(float), generator.binomial(counts, 0.5).astype(float), counts


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
    # Ascending: 1 (1 click), 4, 4 (1), 0 (5), 2 (5), 3 (9).
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


def naive_bootstrap(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], seed: int, rounds: int
) -> Comparison:
    """Bootstrap with the same draws, each written out as a list of queries."""
    generator = np.random.default_rng(seed)
    queries = len(counts)
    differences, ratios = [], []
    for _ in range(rounds):
        times = generator.multinomial(queries, [1 / queries] * queries)
        sample = [query for query in range(queries) for _ in range(times[query])]
        pairs = sum(counts[query] for query in sample)
        mean_a, mean_b = (sum(sums[query] for query in sample) / pairs for sums in (a, b))
        differences.append(mean_a - mean_b)
        ratios.append(mean_a / mean_b)
    tail = min(sum(d <= 0 for d in differences), sum(d >= 0 for d in differences))
    return Comparison(
        difference=sum(a) / sum(counts) - sum(b) / sum(counts),
        low=float(np.percentile(differences, 2.5)),
        high=float(np.percentile(differences, 97.5)),
        p=min(1, 2 * (tail + 1) / (rounds + 1)),
        ratio=sum(a) / sum(b),
        ratio_low=float(np.percentile(ratios, 2.5)),
        ratio_high=float(np.percentile(ratios, 97.5)),
    )


def as_tuple(comparison: Comparison) -> tuple[float, ...]:
    return tuple(getattr(comparison, name) for name in Comparison.__slots__)


@pytest.mark.parametrize("cells", [1, 40 * 64, 1_000_000])
def test_bootstrap_in_chunks_of_any_size_equals_a_naive_loop(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_BOOTSTRAP_CELLS", cells)
    a, b, counts = sums_of_two_systems()
    comparison = paired_bootstrap(a, b, counts, seed=3, rounds=200)
    assert as_tuple(comparison) == pytest.approx(as_tuple(naive_bootstrap(a, b, counts, seed=3, rounds=200)))


def test_bootstrap_interval_is_near_the_normal_approximation() -> None:
    a, b, counts = sums_of_two_systems(queries=500)
    comparison = paired_bootstrap(a, b, counts, seed=1, rounds=4000)
    residuals = (a - b) - comparison.difference * counts
    error = math.sqrt((residuals**2).sum()) / counts.sum()
    assert comparison.low == pytest.approx(comparison.difference - 1.96 * error, abs=0.2 * error)
    assert comparison.high == pytest.approx(comparison.difference + 1.96 * error, abs=0.2 * error)


def test_bootstrap_of_identical_systems_finds_no_difference() -> None:
    _, b, counts = sums_of_two_systems()
    b = b / 3  # sums that floats only approximate
    comparison = paired_bootstrap(b, b.copy(), counts, seed=0, rounds=500)
    assert (comparison.difference, comparison.low, comparison.high, comparison.p) == (0, 0, 0, 1)
    assert (comparison.ratio, comparison.ratio_low, comparison.ratio_high) == pytest.approx((1, 1, 1))


def test_bootstrap_of_a_constant_advantage_has_no_width() -> None:
    _, b, counts = sums_of_two_systems()
    comparison = paired_bootstrap(b + 0.25 * counts, b, counts, seed=0, rounds=999)
    assert (comparison.difference, comparison.low, comparison.high) == pytest.approx((0.25, 0.25, 0.25))
    assert comparison.p == 2 / 1000
    assert comparison.ratio_low < comparison.ratio < comparison.ratio_high


def test_bootstrap_p_is_two_sided() -> None:
    a, b, counts = sums_of_two_systems(queries=12)
    ahead, behind = (paired_bootstrap(*sums, counts, seed=5, rounds=500) for sums in ((a, b), (b, a)))
    assert ahead.p == behind.p
    assert (ahead.low, ahead.high) == pytest.approx((-behind.high, -behind.low))


def test_bootstrap_depends_on_its_seed_alone() -> None:
    sums = sums_of_two_systems()
    assert paired_bootstrap(*sums, seed=1, rounds=300) == paired_bootstrap(*sums, seed=1, rounds=300)
    assert paired_bootstrap(*sums, seed=1, rounds=300) != paired_bootstrap(*sums, seed=2, rounds=300)


def test_bootstrap_ignores_queries_without_pairs() -> None:
    a, b, counts = sums_of_two_systems()
    padded = np.insert(a, 3, 0), np.insert(b, 3, 0), np.insert(counts, 3, 0)
    assert paired_bootstrap(*padded, seed=1, rounds=300) == paired_bootstrap(a, b, counts, seed=1, rounds=300)


def test_bootstrap_ratio_to_zero_is_nan() -> None:
    a, b, counts = sums_of_two_systems()
    comparison = paired_bootstrap(a, np.zeros_like(b), counts, seed=0, rounds=100)
    assert all(math.isnan(value) for value in (comparison.ratio, comparison.ratio_low, comparison.ratio_high))
    rarely = np.zeros_like(b)
    rarely[0] = 1
    comparison = paired_bootstrap(a, rarely, counts, seed=0, rounds=100)
    assert comparison.ratio == sum(a)
    assert math.isnan(comparison.ratio_low)


@pytest.mark.parametrize(
    ("a", "counts", "rounds", "message"),
    [
        ([1.0], [1, 1], 10, "share one axis"),
        ([[1.0]], [[1]], 10, "share one axis"),
        ([1.0, 1.0], [1, 0], 10, "without pairs"),
        ([0.0, 0.0], [1, -1], 10, "negative"),
        ([0.0], [0], 10, "at least one pair"),
        ([1.0], [1], 0, "one round"),
    ],
)
def test_bootstrap_of_mismatched_arrays_is_refused(
    a: list[float], counts: list[int], rounds: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(np.array(a), np.zeros_like(a), np.array(counts), seed=0, rounds=rounds)


def test_accuracy_and_macro_f1_are_as_by_hand() -> None:
    truth = ["food", "food", "pets", "film"]
    predicted = ["food", "pets", "pets", "home"]
    assert accuracy(predicted, truth) == 0.5
    # food 2/(1+2), pets 2/(2+1), film 0, home 0 although no note is of it
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
    # Of two bins: (0, 0.5] holds 0.2 and 0.5, one right; (0.5, 1] holds 0.9 and 0.9, one right.
    confidence = np.array([0.2, 0.5, 0.9, 0.9])
    correct = np.array([True, False, True, False])
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx((abs(0.7 - 1) + abs(1.8 - 1)) / 4)


def test_calibration_bin_holds_its_upper_edge_and_the_first_zero() -> None:
    right = np.array([False, True])
    assert expected_calibration_error(np.array([0.0, 0.5]), right, bins=2) == pytest.approx(0.25)  # one bin
    assert expected_calibration_error(np.array([0.5, 0.51]), right, bins=2) == pytest.approx((0.5 + 0.49) / 2)  # two


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
    drawn = np.argmax(logits + generator.gumbel(size=logits.shape), axis=1)  # of softmax(logits)
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
    )  # of square roots, 2 : 1


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
    # First note: 1 hit of 2 asked for, of 4 true ones, F1 2/(2+4). Second: nothing.
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
        ([["a"]], [["#"]], 1, "leave it out"),
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
        ("a a a", "a", (2 / 4, 0, 2 / 4)),  # clipped: one a of three
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
