"""Notes and hashtags: the stored form."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.note import MAX_HASHTAG_CHARS, Note, hashtag_key, normalise_hashtag, normalise_hashtags
from model.note import replace_lone_surrogates as replaced

ANY_TEXT = st.text(st.characters(), max_size=80)
"""Lone surrogates and control characters too."""


@given(ANY_TEXT)
def test_normalising_a_hashtag_twice_changes_nothing_more(text: str) -> None:
    once = normalise_hashtag(text)
    assert normalise_hashtag(once) == once


@given(ANY_TEXT)
def test_a_normalised_hashtag_is_one_short_line_without_a_hash(text: str) -> None:
    hashtag = normalise_hashtag(text)
    assert len(hashtag) <= MAX_HASHTAG_CHARS
    assert "#" not in hashtag
    assert hashtag == " ".join(hashtag.split())
    assert not {unicodedata.category(c) for c in hashtag} & {"Cc", "Cs", "Zl", "Zp"}
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
    ],
)
def test_a_hashtag_has_one_stored_form(written: str, stored: str) -> None:
    assert normalise_hashtag(written) == stored


def test_case_and_spacing_do_not_make_hashtags_different() -> None:
    assert hashtag_key("Street Food") == hashtag_key("#streetfood")
    assert normalise_hashtags(["Street Food", "#", "streetfood", "Paris"]) == ("Street Food", "Paris")


@given(ANY_TEXT)
def test_text_without_lone_surrogates_can_always_be_encoded(text: str) -> None:
    clean = replaced(text)
    assert clean.encode().decode() == clean
    assert replaced(clean) == clean


def test_only_surrogates_without_a_partner_are_replaced() -> None:
    assert replaced("a\ud83db") == "a\ufffdb"
    assert replaced("\ude00\ud83d") == "\ufffd\ufffd"
    assert replaced("\ud83d\ude00") == "😀"
    assert replaced("日本 😀 \u202e") == "日本 😀 \u202e"


def test_only_the_fields_of_the_prompt_are_its_text() -> None:
    note = Note("title", "content", ("tag",))
    same = Note("title", "content", ("tag",), category="Food", id="7", author="ana", created_at=1.0)
    assert same.prompt_text == note.prompt_text == ("title", "content", ("tag",))
    assert Note("title", "content").prompt_text != note.prompt_text
