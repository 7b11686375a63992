"""Tests of the blend benchmark: the replay order, the clicks known to each query, and results on synthetic clicks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from benchmarks.quality.blend import BUCKETS, KAPPAS, fit, fitted_recalls, in_time_order, is_hit, measure, replay, rows
from model.data.pairs import split_of

NOTES = [f"n{number}" for number in range(400)]
QUERY = next(note for note in NOTES if split_of(note) == "validation")
TARGET = NOTES[-1]


def test_clicks_without_times_keep_each_users_order() -> None:
    clicks = [{"user": user, "note": f"n{n}", "time": None} for user in ("a", "b") for n in range(5)]
    order = in_time_order(clicks)
    for user in ("a", "b"):
        assert [note for one, note, _ in order if one == user] == [f"n{n}" for n in range(5)]
    assert [user for user, *_ in order] != ["a"] * 5 + ["b"] * 5


def test_clicks_with_times_are_in_their_order() -> None:
    clicks = [{"user": "a", "note": "x", "time": 2}, {"user": "b", "note": "y", "time": 1}]
    assert in_time_order(clicks) == [("b", "y", 1.0), ("a", "x", 2.0)]


def test_a_next_click_is_seen_before_it_is_taken_in() -> None:
    clicks = [(user, note, float(time)) for time, (user, note) in enumerate(
        [("a", QUERY), ("a", TARGET), ("b", QUERY), ("b", TARGET)]
    )]  # fmt: skip
    seen = [
        (click.clicks, [one.id for one in kept.related(click.query)])
        for click, kept in replay(clicks, {QUERY: 0, TARGET: 1})
    ]
    assert seen == [(0, []), (1, [TARGET])]


def test_a_note_is_a_hit_among_the_first_hundred_without_the_query() -> None:
    scores = np.arange(200, 0, -1).astype(np.float64)
    assert is_hit(scores, query=0, target=100)
    assert not is_hit(scores, query=0, target=101)
    assert not is_hit(np.zeros(200), query=150, target=100)


def test_behaviour_counts_once_there_is_some_and_content_before() -> None:
    """Content never finds the target; behaviour finds it, since every user clicks the same two notes."""

    def content(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        scores = np.zeros((len(rows), len(NOTES)))
        scores[:, 150:350] = 0.5  # more than 100 notes that outrank the target
        return scores

    clicks = [
        (f"u{user}", note, float(2 * user + step)) for user in range(200) for step, note in enumerate((QUERY, TARGET))
    ]
    hits = measure(content, NOTES, clicks, 50)
    assert {bucket for _, bucket in hits} <= set(BUCKETS)
    recalls = fitted_recalls(hits)
    kappa = fit(recalls)
    assert kappa in KAPPAS
    table = {one["what"].partition("≥ ")[2].split()[0]: one for one in rows(hits, recalls, min(KAPPAS))[1:]}
    assert table["51"]["value"] == 100.0
    assert table["51"]["against"] == "content only 0.0, behaviour only 100.0"
    assert all(one["met"] for one in table.values())
