"""Decay curves and matches."""

from __future__ import annotations

import math
from typing import Any

import pytest

from model.note import Note
from service.ranking.boosts import Curve, Decay, Match, decayed
from service.records import StoredNote

CURVES: tuple[Curve, ...] = ("exp", "gauss", "linear")


def stored(**fields: Any) -> StoredNote:
    return StoredNote(Note(id="a", **fields), "s")


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("midpoint", [0.1, 0.5, 0.9])
def test_decay_is_one_at_its_target_and_the_midpoint_at_its_scale(curve: Curve, midpoint: float) -> None:
    assert decayed(curve, 0.0, midpoint) == 1
    assert decayed(curve, 1.0, midpoint) == pytest.approx(midpoint)
    values = [decayed(curve, distance, midpoint) for distance in (0, 0.5, 1, 2, 10, 1e9, 1e300)]
    assert values == sorted(values, reverse=True)
    assert all(0 <= value <= 1 for value in values)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [("exp", 0.5**2.5), ("gauss", 0.5**6.25), ("linear", 0.0)],
)
def test_decay_curves_have_their_shapes(curve: Curve, expected: float) -> None:
    assert decayed(curve, 2.5, 0.5) == pytest.approx(expected)


def test_decay_of_time_is_measured_from_now_without_a_target() -> None:
    note = stored(created_at=1000.0)
    assert Decay("exp", scale=50).value(note, now=1050.0) == pytest.approx(0.5)
    assert Decay("exp", scale=50, target=1100.0).value(note, now=0.0) == pytest.approx(0.25)


@pytest.mark.parametrize("value", ["12", True, None])
def test_attribute_that_is_no_number_has_no_decay(value: Any) -> None:
    attributes = {} if value is None else {"price": value}
    assert Decay("linear", 1, "price", 12).value(stored(attributes=attributes), 0.0) == 0


def test_huge_numbers_decay_to_nothing() -> None:
    assert Decay("gauss", 1e-300, "price", 0).value(stored(attributes={"price": 1e308}), 0.0) == 0
    assert not math.isnan(Decay("exp", 1e300, "price", -1e308).value(stored(attributes={"price": 1e308}), 0.0))


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (Match(category="Food"), 1),
        (Match(category="food"), 0),
        (Match(hashtag="#Street Food"), 1),
        (Match(author="ann", hashtag="streetfood"), 1),
        (Match(author="bob", hashtag="streetfood"), 0),
        (Match(attribute=("seats", "4")), 1),
        (Match(attribute=("seats", "5")), 0),
    ],
)
def test_match_needs_all_of_its_fields(match: Match, expected: float) -> None:
    note = stored(category="Food", author="ann", hashtags=("street food",), attributes={"seats": 4})
    assert match.value(note, 0.0) == expected
