"""Tests of GroundedRanking: which candidates bounds close, and that bounds never change the answer."""

from __future__ import annotations

import math
import random

import pytest

from model.generation import Hashtag
from model.hashtags.grounded_ranking import GroundedRanking
from model.hashtags.grounding import (
    AGREEMENT,
    MIN_WRITTEN_PROBABILITY,
    NEIGHBOUR_SMOOTHING,
    Candidate,
    agreed_weight,
    grounded_score,
    rerank,
)

WRITTEN_WEIGHT = 0.1
SOUP, HOT, COLD = (Candidate("soup", 0.6, True), Candidate("hot", 0.3, True), Candidate("cold", 0.001))
CANDIDATES = {candidate.text: candidate for candidate in (SOUP, HOT, COLD)}


def test_all_candidates_are_open_until_something_is_known() -> None:
    ranking = GroundedRanking(CANDIDATES, 2, WRITTEN_WEIGHT, 0.0)
    assert ranking.open_candidates() == ["soup", "hot", "cold"]
    assert ranking.settled(0.0) == ()
    assert not ranking.is_complete_without(0.0)


def test_candidate_whose_bound_is_below_the_last_score_is_closed() -> None:
    ranking = GroundedRanking(CANDIDATES, 2, WRITTEN_WEIGHT, 0.0)
    ranking.score({"soup": 0.5, "hot": 1e-3})
    assert ranking.open_candidates() == []
    assert [hashtag.text for hashtag in ranking.ranked([])] == ["soup", "hot"]


def test_bound_on_the_probability_closes_a_candidate() -> None:
    ranking = GroundedRanking(CANDIDATES, 1, WRITTEN_WEIGHT, 0.0)
    ranking.score({"hot": 0.9})
    assert ranking.open_candidates() == ["soup"]
    ranking.bound({"soup": 1e-6, "hot": 1e-9})  # the bound of a scored candidate is ignored
    assert ranking.open_candidates() == []


def test_improbable_candidate_below_the_floor_is_closed() -> None:
    ranking = GroundedRanking(CANDIDATES, 5, WRITTEN_WEIGHT, 0.02)
    ranking.bound({"soup": 1e-3, "hot": 1e-3, "cold": 1e-3})
    assert ranking.open_candidates() == ["soup", "hot"]


def test_candidate_whose_bound_makes_no_difference_is_closed() -> None:
    ranking = GroundedRanking(CANDIDATES, 5, WRITTEN_WEIGHT, 0.0)
    ranking.bound({"soup": MIN_WRITTEN_PROBABILITY / 2, "hot": 2 * MIN_WRITTEN_PROBABILITY})
    assert ranking.open_candidates() == ["hot", "cold"]
    ranking.score(
        {"soup": MIN_WRITTEN_PROBABILITY / 4, "hot": 1e-3, "cold": 1e-3}
    )  # an exact probability may follow a bound
    assert [hashtag.text for hashtag in ranking.ranked([])] == ["soup", "hot", "cold"]


def test_hashtag_is_settled_once_no_rival_can_pass_it() -> None:
    ranking = GroundedRanking(CANDIDATES, 3, WRITTEN_WEIGHT, 0.0)
    ranking.score({"soup": 0.5})
    assert [hashtag.text for hashtag in ranking.settled(1.0)] == ["soup"]
    ranking.score({"hot": 0.5})
    assert [hashtag.text for hashtag in ranking.settled(1.0)] == ["soup", "hot"]
    ranking.score({"cold": 1.0})
    written = NEIGHBOUR_SMOOTHING / (1 + NEIGHBOUR_SMOOTHING)
    assert [hashtag.text for hashtag in ranking.settled(1.0)] == ["soup", "hot", "cold"]
    assert ranking.is_complete_without(1.0) == (grounded_score(COLD.weight, 1.0, WRITTEN_WEIGHT) > written)


def test_candidate_left_to_the_search_bounds_what_is_written() -> None:
    ranking = GroundedRanking(CANDIDATES, 1, WRITTEN_WEIGHT, 0.0)
    ranking.leave_to_search(["soup"])
    ranking.score({"hot": 0.5})
    assert ranking.open_candidates() == []
    assert not ranking.is_complete_without(1.0)
    assert ranking.is_complete_without(1e-6)
    assert [hashtag.text for hashtag in ranking.ranked([Hashtag("Soup", 0.9)])] == ["soup"]


@pytest.mark.parametrize(("probability", "first"), [(1e-4, "soup"), (0.02, "hot")])
def test_models_view_counts_more_where_it_would_write_what_neighbours_carry(probability: float, first: str) -> None:
    """The model finds "hot" ten times as likely as "soup", which neighbours find twice as likely."""
    ranking = GroundedRanking(CANDIDATES, 2, 0.05, 0.0, agreed_written_weight=0.5)
    ranking.score_heaviest({"soup": probability / 10, "hot": probability})
    assert ranking.ranked([])[0].text == first
    agreed = agreed_weight(0.05, 0.5, 1.1 * probability)
    assert ranking.ranked([]) == rerank([], CANDIDATES, {"soup": probability / 10, "hot": probability}, 2, agreed)


def test_exponent_grows_with_the_logarithm_of_the_agreement_and_never_falls() -> None:
    least, full = AGREEMENT
    assert [agreed_weight(0.1, 0.3, agreement) for agreement in (0.0, least, full, 1.0)] == [0.1, 0.1, 0.3, 0.3]
    assert agreed_weight(0.1, 0.3, math.sqrt(least * full)) == pytest.approx(0.2)
    assert agreed_weight(0.4, 0.3, 1.0) == 0.4


@pytest.mark.parametrize("min_probability", [0.0, 0.015])
@pytest.mark.parametrize("written_weight", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(20))
def test_answer_equals_that_of_all_probabilities(seed: int, written_weight: float, min_probability: float) -> None:
    rng = random.Random(seed)
    weights = sorted((rng.random() ** 6 for _ in range(30)), reverse=True)
    candidates = {f"tag{i}": Candidate(f"tag {i}", w / sum(weights), rng.random() < 0.5) for i, w in enumerate(weights)}
    exact = {key: 10 ** -rng.uniform(0, 12) for key in candidates}
    written = [Hashtag(f"new {i}", 10 ** -rng.uniform(0, 4)) for i in range(5)]
    written += [
        Hashtag(f"Tag {i}", 10 ** -rng.uniform(0, 4)) for i in rng.sample(range(30), 5)
    ]  # other spellings of candidates
    ranking = GroundedRanking(candidates, 5, written_weight, min_probability, 2 * written_weight)
    heaviest = {key: exact[key] for key in list(candidates)[:6]}
    ranking.score_heaviest(heaviest)
    written_weight = agreed_weight(written_weight, 2 * written_weight, sum(heaviest.values()))
    ranking.bound({key: min(1.0, 10 * p) for key, p in exact.items()})
    max_written = max(hashtag.score for hashtag in written)
    expected = rerank(written, candidates, exact, 5, written_weight, min_probability)

    opened = ranking.open_candidates()
    settled = ranking.settled(max_written)
    assert settled == expected[: len(settled)]
    ranking.score({key: exact[key] for key in opened})
    assert ranking.ranked(written) == expected
    if ranking.is_complete_without(max_written):
        assert ranking.ranked([]) == expected
