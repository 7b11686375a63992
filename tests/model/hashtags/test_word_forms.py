"""Tests of the rule by which two hashtags are forms of one word."""

from __future__ import annotations

import pytest

from model.generation import Hashtag
from model.hashtags.word_forms import are_forms_of_one_word, without_further_forms


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("metal", "metallic"),
        ("photography", "Photographer"),
        ("barbecue", "barbeque"),
        ("memorisation", "memoria"),
        ("фотография", "фотограф"),
    ],
)
def test_words_that_begin_alike_are_forms_of_one_word(one: str, other: str) -> None:
    assert are_forms_of_one_word(one, other)
    assert are_forms_of_one_word(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("soup", "soups"),  # four letters; `dedup_key` knows plurals
        ("planet", "plants"),
        ("photo", "photography"),  # five letters of eleven
        ("snow bridge", "snow bridges"),
        ("iphone15", "iphone16"),
        ("running", "running shoes"),
        ("路边小吃店推荐", "路边小吃店地图"),
        ("", ""),
    ],
)
def test_other_hashtags_are_no_forms_of_one_word(one: str, other: str) -> None:
    assert not are_forms_of_one_word(one, other)
    assert not are_forms_of_one_word(other, one)


def test_further_form_is_left_out_after_any_better_one_unless_it_is_exempt() -> None:
    metal, kitchen, metallic = (Hashtag(text, 0.5) for text in ("metal", "kitchen", "Metallic"))
    assert list(without_further_forms([metal, kitchen, metallic])) == [metal, kitchen]
    assert list(without_further_forms([kitchen, metallic, metal])) == [kitchen, metallic]
    assert list(without_further_forms([metal, kitchen, metallic], exempt={"metallic"})) == [metal, kitchen, metallic]
