"""Tests of model/note.py: the stored form of hashtags, and the text of a note that enters the prompt."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.note import (
    MAX_HASHTAG_CHARS,
    Attribute,
    Note,
    hashtag_key,
    is_blank,
    normalise_hashtag,
    normalise_hashtags,
    replace_lone_surrogates,
)

ANY_TEXT = st.text(st.characters(), max_size=80)
"""Text with lone surrogates and control characters too."""


@given(ANY_TEXT)
def test_hashtag_normalised_twice_stays_the_same(text: str) -> None:
    once = normalise_hashtag(text)
    assert normalise_hashtag(once) == once


def test_hashtag_that_is_cut_within_a_flag_has_no_part_of_it() -> None:
    letters = "a" * (MAX_HASHTAG_CHARS - 3)
    scotland = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
    assert normalise_hashtag(letters + scotland) == letters + "\U0001f3f4"


@given(ANY_TEXT)
def test_normalised_hashtag_is_one_short_line_without_a_hash(text: str) -> None:
    hashtag = normalise_hashtag(text)
    assert len(hashtag) <= MAX_HASHTAG_CHARS
    assert "#" not in hashtag
    assert hashtag == " ".join(hashtag.split())
    assert not {unicodedata.category(char) for char in hashtag} & {"Cc", "Cs", "Zl", "Zp"}
    assert unicodedata.is_normalized("NFKC", hashtag)


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("#Paris", "Paris"),
        ("＃ｐａｒｉｓ", "paris"),
        ("  street \t\n food ", "street food"),
        ("a\x00b\u2028c", "a b c"),
        ("#", ""),
        ("", ""),
        ("咖啡", "咖啡"),
        ("👩‍👩‍👧 family", "👩‍👩‍👧 family"),
        ("a\ud800", "a\ufffd"),
        ("x" * 60, "x" * 50),
        ("x" * 49 + " y", "x" * 49),
        ("weight\u200b loss\ufeff", "weight loss"),
        ("\u202ecba", "cba"),
        ("e\u200b\u0301", "é"),
        ("\u200d می\u200cخواهم \u200c", "می\u200cخواهم"),
        ("\u200b \ufe0f", ""),
        (
            "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
            "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
        ),
        ("a\U000e0067b", "ab"),
        ("\u0601", "\u0601"),
    ],
)
def test_hashtag_as_written_has_one_stored_form(written: str, stored: str) -> None:
    assert normalise_hashtag(written) == stored


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("❤️", "❤"),
        ("İstanbul", "istanbul"),
        ("İSTANBUL", "İstanbul"),
        ("weight\u200bloss", "Weight Loss"),
        ("ταΐζω", "ταΐζω".upper()),
    ],
)
def test_spellings_that_look_alike_share_a_key(one: str, other: str) -> None:
    assert hashtag_key(one) == hashtag_key(other) != ""


@pytest.mark.parametrize("text", ["", " \n", "\u3164\u2800", "\u200b", "\ufeff\u2028", "\ufe0f", "\ufe0f\u20e3"])
def test_text_that_shows_nothing_is_blank(text: str) -> None:
    assert is_blank(text)
    assert not is_blank(f"{text}.")


@pytest.mark.parametrize(("one", "other"), [(1, True), (1, 1.0), (0, False)])
def test_notes_whose_attributes_differ_in_type_are_not_the_same(one: Attribute, other: Attribute) -> None:
    note = Note(title="a", attributes={"seats": one})
    assert note.is_same(Note(title="a", attributes={"seats": one}))
    assert not note.is_same(Note(title="a", attributes={"seats": other}))


def test_hashtags_equal_but_for_case_and_spacing_share_a_key() -> None:
    assert hashtag_key("Street Food") == hashtag_key("#streetfood")
    assert normalise_hashtags(["Street Food", "#", "streetfood", "Paris"]) == ("Street Food", "Paris")


@given(ANY_TEXT)
def test_text_with_surrogates_replaced_can_always_be_encoded(text: str) -> None:
    clean = replace_lone_surrogates(text)
    assert clean.encode().decode() == clean
    assert replace_lone_surrogates(clean) == clean


def test_surrogates_with_a_partner_are_not_replaced() -> None:
    assert replace_lone_surrogates("a\ud83db") == "a\ufffdb"
    assert replace_lone_surrogates("\ude00\ud83d") == "\ufffd\ufffd"
    assert replace_lone_surrogates("\ud83d\ude00") == "😀"
    assert replace_lone_surrogates("日本 😀 \u202e") == "日本 😀 \u202e"


def test_prompt_text_holds_only_the_fields_of_the_prompt() -> None:
    note = Note("title", "content", ("tag",))
    same = Note("title", "content", ("tag",), category="Food", id="7", author="ana", created_at=1.0)
    assert same.prompt_text == note.prompt_text == ("title", "content", ("tag",))
    assert Note("title", "content").prompt_text != note.prompt_text


def test_beginning_of_a_long_hashtag_alone_is_normalised(normalised_lengths: list[int]) -> None:
    assert normalise_hashtag("\u200b" * 5000 + "trail runs" + " " * 5000) == "trail runs"
    assert normalise_hashtag("a" + "\u0301" * 5000 + "\u0323" * 5000).startswith("á\u0301")
    assert max(normalised_lengths) <= 10 * MAX_HASHTAG_CHARS
