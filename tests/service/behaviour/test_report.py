"""RecommendationCounts: each note of a recommendation counts once, in whatever order its events come."""

from __future__ import annotations

import itertools
import tracemalloc

import orjson
import pytest

from service.behaviour.report import DAY_SECONDS, MAX_OPEN, OTHER, RecommendationCounts, rates, wilson

DAY = 20_000 * DAY_SECONDS


def tell(counts: RecommendationCounts, what: str, note: str = "a", recommendation: str = "r", **fields: object) -> None:
    at = float(str(fields.pop("at", DAY)))
    details = orjson.dumps({"recommendation_id": recommendation, **fields})
    counts.add(note, at, details, shown=what == "shown", clicked=what == "click")


def totals(counts: RecommendationCounts) -> tuple[int, int]:
    ((rate,), _) = rates(counts.groups(), ())
    return rate.shown, rate.clicked


@pytest.mark.parametrize("told", sorted(set(itertools.permutations(["shown", "shown", "click", "click"]))))
def test_a_note_counts_once_whatever_the_order(told: tuple[str, ...]) -> None:
    counts = RecommendationCounts()
    for what in told:
        tell(counts, what)
    assert (totals(counts), counts.unmatched()) == ((1, 1), 0)


def test_a_click_without_a_showing_is_unmatched() -> None:
    counts = RecommendationCounts()
    tell(counts, "shown", "a")
    tell(counts, "click", "b")
    tell(counts, "click", "a", "another")
    assert (totals(counts), counts.unmatched()) == ((1, 0), 2)


def test_clicks_without_a_showing_push_out_no_note_that_was_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.behaviour.report.MAX_OPEN", 3)
    counts = RecommendationCounts()
    tell(counts, "shown")
    for number in range(5):
        tell(counts, "click", recommendation=f"unknown {number}")
    tell(counts, "click")
    assert (totals(counts), counts.unmatched()) == ((1, 1), 5)
    for number in range(5):  # the first two clicks are forgotten by now
        tell(counts, "shown", recommendation=f"unknown {number}")
    assert (totals(counts), counts.unmatched()) == ((6, 4), 2)


def test_unmatched_clicks_are_those_since_a_day() -> None:
    counts = RecommendationCounts()
    tell(counts, "click", "a")
    tell(counts, "click", "b", at=DAY + DAY_SECONDS)
    assert (counts.unmatched(DAY), counts.unmatched(DAY + DAY_SECONDS)) == (2, 1)
    tell(counts, "shown", "a", at=DAY + DAY_SECONDS)
    assert (counts.unmatched(DAY), counts.unmatched(DAY + DAY_SECONDS)) == (1, 1)
    counts.expire(DAY + 2 * DAY_SECONDS)
    tell(counts, "shown", "b", at=DAY + 2 * DAY_SECONDS)
    assert counts.unmatched() == 0


def test_events_of_no_recommendation_do_not_count() -> None:
    counts = RecommendationCounts()
    counts.add("a", DAY, b"", shown=True, clicked=False)
    counts.add("a", DAY, b'{"position":1}', shown=True, clicked=False)
    tell(counts, "other")
    assert rates(counts.groups(), ()) == ([], 0)


def test_rates_are_by_the_dimensions_that_are_asked_for_and_since_a_day() -> None:
    counts = RecommendationCounts()
    for number, (scenario, variant) in enumerate([("feed", "x"), ("feed", None), ("home", None)]):
        tell(counts, "shown", recommendation=f"r{number}", scenario=scenario, variant=variant)
    tell(counts, "shown", recommendation="later", scenario="feed", at=DAY + DAY_SECONDS)
    by_scenario = {rate.names["scenario"]: rate.shown for rate in rates(counts.groups(), ("scenario",))[0]}
    assert by_scenario == {"feed": 3, "home": 1}
    assert [rate.shown for rate in rates(counts.groups(), ("scenario", "variant"), since=DAY + DAY_SECONDS)[0]] == [1]
    counts.expire(DAY + DAY_SECONDS)
    assert totals(counts) == (1, 0)


def test_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.behaviour.report.MAX_GROUPS", 3)
    counts = RecommendationCounts()
    for number in range(6):
        tell(counts, "shown", recommendation=f"r{number}", scenario=f"s{number}")
    by_scenario = {rate.names["scenario"]: rate.shown for rate in rates(counts.groups(), ("scenario",))[0]}
    assert by_scenario == {"s0": 1, "s1": 1, "s2": 1, OTHER: 3}


def test_positions_are_given_up_before_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.behaviour.report.MAX_POSITION_GROUPS", 2)
    counts = RecommendationCounts()
    for number in range(6):
        tell(counts, "shown", recommendation=f"r{number}", scenario=f"s{number % 3}", position=number)
    by_both = {
        (rate.names["scenario"], rate.names["position"]): rate.shown
        for rate in rates(counts.groups(), ("scenario", "position"))[0]
    }
    assert by_both == {("s0", "0"): 1, ("s1", "1"): 1, ("s2", OTHER): 2, ("s0", OTHER): 1, ("s1", OTHER): 1}


def test_the_memory_that_it_tells_is_what_it_takes() -> None:
    tracemalloc.start()
    counts = RecommendationCounts()
    for number in range(MAX_OPEN + 1000):
        tell(counts, "shown", recommendation=f"r{number}", scenario=f"s{number % 500}", position=number % 7)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.5 * taken < counts.bytes < 2 * taken


@pytest.mark.parametrize(
    ("clicked", "shown", "low", "high"),
    [(0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (10, 10, 0.72247, 1.0), (90, 1000, 0.07383, 0.10930)],
)
def test_the_interval_is_wilsons(clicked: int, shown: int, low: float, high: float) -> None:
    assert wilson(clicked, shown) == pytest.approx((clicked / shown, low, high), abs=5e-5)


def test_a_report_has_the_rates_of_what_was_shown_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.behaviour.report.MAX_RATES", 2)
    counts = RecommendationCounts()
    for number in range(4):
        for note in range(1 + number % 3):
            tell(counts, "shown", note=f"n{note}", recommendation=f"r{number}", scenario=f"s{number}")
    most, left_out = rates(counts.groups(), ("scenario",))
    assert [(rate.names["scenario"], rate.shown) for rate in most] == [("s2", 3), ("s1", 2)]
    assert left_out == 2
