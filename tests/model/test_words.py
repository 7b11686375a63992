"""Tests of splitting notes into words."""

from __future__ import annotations

import zlib

import pytest

from model.note import Note, hashtag_key
from model.words import MAX_CHARS, phrases_of, word_hashes, words_and_characters, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("My new iPhone手机壳 2号", ["my", "new", "iphone", "手机", "机壳", "2", "号"]),
        ("हिन्दी में चाय", ["हनद", "म", "चय"]),
        ("ต้มยำกุ้ง", ["ตม", "มย", "ยา", "าก", "กง"]),
        ("Crème brûlée, CRÈME!", ["crème", "brûlée"]),
        ("Kaffee\u00adtasse, co\u200bffee, 咖\u200b啡", ["kaffeetasse", "coffee", "咖啡"]),
        ("東京タワー ok_go", ["東京", "京タ", "タワ", "ワー", "ok", "go"]),
    ],
)
def test_words_are_runs_of_letters_or_pairs_in_unspaced_scripts(text: str, words: list[str]) -> None:
    assert word_hashes(Note(content=text)) == frozenset(zlib.crc32(word.encode()) for word in words)


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("Road trip", {"road": ("road",), "trip": ("trip",), "roadtrip": ("road", "trip")}),
        ("a 火锅店", {"a": ("a",), "火锅": ("火锅",), "锅店": ("锅店",), "火锅店": ("火锅", "锅店")}),
        ("Café 火 au", {"café": ("café",), "au": ("au",)}),
        (
            "Hip-hop",
            {"hip": ("hip",), "hop": ("hop",), "hiphop": ("hip", "hop"), "hip-hop": ("hip", "hop")},
        ),
        ("tea - 茶-set", {"tea": ("tea",), "set": ("set",)}),
    ],
)
def test_phrases_are_what_follows_in_a_text_without_spaces(text: str, phrases: dict[str, tuple[str, ...]]) -> None:
    assert phrases_of(Note(content=text)) == phrases


def test_phrases_have_the_keys_of_hashtags_up_to_a_length() -> None:
    phrases = phrases_of(Note(title="Soup for a BIG city", content="红烧牛肉面好吃", hashtags=("lemon",)))
    assert {hashtag_key(hashtag) for hashtag in ("Soup for a", "big City", "红烧牛肉面好")} <= phrases.keys()
    assert (
        not {hashtag_key(hashtag) for hashtag in ("soup for a big", "红烧牛肉面好吃", "city 红烧", "lemon")}
        & phrases.keys()
    )


def test_phrase_with_a_hyphen_or_an_apostrophe_has_the_key_of_its_hashtag() -> None:
    phrases = phrases_of(Note(title="A lo-fi K-pop mix", content="Women's rock’n’roll"))
    hashtags = ("lo-fi", "k-pop", "k-pop mix", "women's", "rock’n’roll", "lofi", "kpop mix")
    assert {hashtag_key(hashtag) for hashtag in hashtags} <= phrases.keys()


def test_phrase_that_is_spelled_in_two_ways_has_the_more_words() -> None:
    for text in ("Road trip, a roadtrip", "Roadtrip, a road trip"):
        assert phrases_of(Note(title=text))["roadtrip"] == ("road", "trip")


def test_characters_count_too_where_a_script_has_no_spaces() -> None:
    words = words_and_characters(Note("红烧肉 soup, soup", hashtags=("肉",)))
    assert words == ["红", "烧", "肉", "红烧", "烧肉", "soup", "soup", "肉"]


def test_words_beyond_the_bound_are_left_out_except_hashtags() -> None:
    note = Note("soup", f"{'a' * (MAX_CHARS - 1)} bread", ("lemon",))
    assert words_of(note) == {"soup", "a" * (MAX_CHARS - 1), "lemon"}
    assert set(words_and_characters(note)) == words_of(note)
