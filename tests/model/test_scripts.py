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
    ],
)
def test_scripts_are_those_of_the_letters(text: str, expected: set[str]) -> None:
    assert scripts(text) == expected


def test_letters_are_counted_by_script() -> None:
    assert letters_by_script("Kyoto 京都, 1 🍜") == {"LATIN": 5, "CJK": 2}
