"""Tests of HashtagTrie: it holds what was added and not removed, whatever the order."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from model.hashtags.vocabulary import HashtagTrie
from model.note import hashtag_key
from tests.model.hashtags.reference import letter_trie

HASHTAGS = st.text("abc", min_size=1, max_size=4)
NOTES = st.lists(st.lists(HASHTAGS, max_size=4), max_size=8)


def all_hashtags(trie: HashtagTrie, prefix: tuple[int, ...] = ()) -> set[str]:
    """Return all hashtags that begin with `prefix`, by following every continuation."""
    whole = {"".join(map(chr, prefix))} if trie.holds(prefix) else set()
    return whole.union(*(all_hashtags(trie, (*prefix, token)) for token in trie.after(prefix)))


@given(NOTES, NOTES)
def test_trie_holds_the_hashtags_of_notes_added_and_not_removed(
    staying: list[list[str]], leaving: list[list[str]]
) -> None:
    trie = letter_trie()
    for hashtags in [*leaving, *staying]:
        trie.add(hashtags)
    for hashtags in leaving:
        trie.remove(hashtags)
    expected = set(Counter(hashtag for hashtags in staying for hashtag in hashtags))
    assert all_hashtags(trie) == expected
    assert len(trie) == len(expected)


def test_unknown_prefix_has_no_continuation() -> None:
    trie = letter_trie()
    trie.add(["ab"])
    assert (trie.after([ord("b")]), trie.holds([ord("b")])) == ((), False)
    assert (trie.after([ord("a")]), trie.holds([ord("a")])) == ((ord("b"),), False)


def test_spellings_with_the_same_tokens_are_removed_one_by_one() -> None:
    trie = HashtagTrie(lambda hashtags: [list(map(ord, hashtag.lower())) for hashtag in hashtags])
    trie.add(["ab"])
    trie.add(["AB"])
    trie.remove(["ab"])
    assert all_hashtags(trie) == {"ab"}
    trie.remove(["AB"])
    assert all_hashtags(trie) == set()


@given(NOTES, NOTES)
def test_common_spelling_is_that_of_most_notes(staying: list[list[str]], leaving: list[list[str]]) -> None:
    trie = HashtagTrie(lambda hashtags: [list(map(ord, hashtag)) for hashtag in hashtags])
    for hashtags in [*leaving, *staying]:
        trie.add(map(written_at_random, hashtags))
    for hashtags in leaving:
        trie.remove(map(written_at_random, hashtags))
    counts = Counter(written_at_random(hashtag) for hashtags in staying for hashtag in hashtags)
    for spelling in [*counts, "C a"]:
        same = [other for other in counts if hashtag_key(other) == hashtag_key(spelling)]
        expected = max(same, key=lambda other: (counts[other], other), default=spelling)
        assert trie.common_spelling(spelling) == expected


def test_uses_are_of_all_spellings_under_the_most_frequent_one() -> None:
    trie = letter_trie()
    for hashtags in (["Road Trip"], ["road trip"], ["road trip", "soup"], ["gone"]):
        trie.add(hashtags)
    trie.remove(["gone"])
    assert trie.uses(["roadtrip", "soup", "gone", "never"]) == {"roadtrip": ("road trip", 3), "soup": ("soup", 1)}
    assert trie.uses(["roadtrip", "soup"], own=["Road trip", "soup"]) == {"roadtrip": ("road trip", 2)}


def written_at_random(hashtag: str) -> str:
    """Return `hashtag` without its last letter, which selects one of three spellings."""
    text, choice = hashtag[:-1] or "a", hashtag[-1]
    return {"a": text, "b": text.upper(), "c": " ".join(text)}[choice]
