"""EngineSeconds: how long notes are expected to take, and to wait."""

from __future__ import annotations

import pytest

from model.generation import VECTOR_ONLY, GenerationRequest
from service.admission import FIRST_ESTIMATE, Admission, EngineSeconds, Lane, first_estimate


def test_long_notes_loaded_in_bulk_are_not_taken_for_the_length_of_texts_searched_for() -> None:
    seconds = EngineSeconds()
    for _ in range(100):
        seconds.measure(Lane.BULK, VECTOR_ONLY, 10 * FIRST_ESTIMATE)
    seconds.measure(Lane.INTERACTIVE, VECTOR_ONLY, 2 * FIRST_ESTIMATE)  # the first note, alone in its step
    burst = [Admission(Lane.INTERACTIVE, VECTOR_ONLY, 1, 1, "acme") for _ in range(32)]
    assert seconds.expected_wait(burst, Lane.INTERACTIVE, "acme") < 1.25 * 32 * FIRST_ESTIMATE
    for _ in range(20):
        seconds.measure(Lane.INTERACTIVE, VECTOR_ONLY, 2 * FIRST_ESTIMATE)
    assert seconds.expected_wait(burst, Lane.INTERACTIVE, "acme") > 1.9 * 32 * FIRST_ESTIMATE, (
        "those that follow are slow, too"
    )


def test_one_note_that_takes_a_hundred_times_as_long_hardly_changes_what_the_next_is_expected_to_take() -> None:
    seconds = EngineSeconds()
    seconds.measure(Lane.INTERACTIVE, VECTOR_ONLY, 100 * FIRST_ESTIMATE)
    assert seconds.expected(Lane.INTERACTIVE, VECTOR_ONLY) < 2 * FIRST_ESTIMATE
    for _ in range(20):
        seconds.measure(Lane.INTERACTIVE, VECTOR_ONLY, 100 * FIRST_ESTIMATE)
    assert seconds.expected(Lane.INTERACTIVE, VECTOR_ONLY) > 90 * FIRST_ESTIMATE, "if all take as long, it follows"


def test_note_with_hashtags_and_category_is_expected_to_take_longer_before_any_was_measured() -> None:
    everything = GenerationRequest(hashtags=5, categories=("Food", "Travel"))
    seconds = EngineSeconds(first_estimate(0.8, everything))
    assert seconds.expected(Lane.INTERACTIVE, VECTOR_ONLY) == pytest.approx(0.1)
    assert seconds.expected(Lane.INTERACTIVE, everything) == pytest.approx(0.4)
    seconds.measure(Lane.INTERACTIVE, everything, 0.5)
    assert seconds.expected(Lane.INTERACTIVE, everything) == pytest.approx(0.42)


def test_expected_wait_counts_turns_of_other_tenants() -> None:
    seconds = EngineSeconds()
    for lane in Lane:
        for _ in range(100):
            seconds.measure(lane, VECTOR_ONLY, 0.1)
    load = [Admission(Lane.BULK, VECTOR_ONLY, 1000, 32, "load")]
    assert seconds.expected_wait(load, Lane.BULK, "load") == pytest.approx(100)
    assert seconds.expected_wait(load, Lane.BULK, "other") == pytest.approx(0.1)
    assert seconds.expected_wait(load, Lane.INTERACTIVE, "load") == 0
    person = Admission(Lane.INTERACTIVE, VECTOR_ONLY, 2, 2, "load")
    both = [*load, Admission(Lane.BULK, VECTOR_ONLY, 5, 5, "other"), person]
    assert seconds.expected_wait(both, Lane.BULK, "other") == pytest.approx(0.2 + 0.5 + 0.6)
