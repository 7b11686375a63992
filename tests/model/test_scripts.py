"""Tests of scripts: which script each letter has."""

from __future__ import annotations

import pytest

from model.scripts import letters_by_script, scripts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Kyoto 2026!", {"LATIN"}),
        ("旅行 vlog", {"CJK", "LATIN"}),
        ("ラーメン", {"CJK"}),
        ("борщ", {"CYRILLIC"}),
        ("1 🍜", set()),
        ("Hawaiʻi, Qurʼan", {"LATIN"}),
        ("coffee \u3164\uffa0\u115f\u1160", {"LATIN"}),
    ],
)
def test_scripts_are_those_of_the_letters(text: str, expected: set[str]) -> None:
    assert scripts(text) == expected


def test_letters_are_counted_by_script() -> None:
    assert letters_by_script("Kyoto 京都, 1 🍜") == {"LATIN": 5, "CJK": 2}


def test_run_of_combining_marks_is_normalised_a_character_at_a_time(normalised_lengths: list[int]) -> None:
    assert letters_by_script("a" + "\u0301" * 5000 + "\u0323" * 5000 + "ﬁ") == {"LATIN": 3}
    assert max(normalised_lengths) == 1
