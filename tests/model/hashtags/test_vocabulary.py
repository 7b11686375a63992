"""HashtagTrie: at any time what was added and not removed, whatever the order."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from model.hashtags.vocabulary import HashtagTrie

HASHTAGS = st.text("abc", min_size=1, max_size=4)
NOTES = st.lists(st.lists(HASHTAGS, max_size=4), max_size=8)


def letters() -> HashtagTrie:
    return HashtagTrie(lambda hashtags: [list(map(ord, hashtag)) for hashtag in hashtags])


def found(trie: HashtagTrie, beginning: tuple[int, ...] = ()) -> set[str]:
    """All hashtags, by following every way."""
    whole = {"".join(map(chr, beginning))} if trie.holds(beginning) else set()
    return whole.union(*(found(trie, (*beginning, token)) for token in trie.after(beginning)))


@given(NOTES, NOTES)
def test_it_holds_the_hashtags_of_the_notes_that_are_there(staying: list[list[str]], leaving: list[list[str]]) -> None:
    trie = letters()
    for hashtags in [*leaving, *staying]:
        trie.add(hashtags)
    for hashtags in leaving:
        trie.remove(hashtags)
    expected = set(Counter(hashtag for hashtags in staying for hashtag in hashtags))
    assert found(trie) == expected
    assert len(trie) == len(expected)


def test_an_unknown_beginning_leads_nowhere() -> None:
    trie = letters()
    trie.add(["ab"])
    assert (trie.after([ord("b")]), trie.holds([ord("b")])) == ((), False)
    assert (trie.after([ord("a")]), trie.holds([ord("a")])) == ((ord("b"),), False)


def test_two_spellings_of_the_same_tokens_go_one_by_one() -> None:
    trie = HashtagTrie(lambda hashtags: [list(map(ord, hashtag.lower())) for hashtag in hashtags])
    trie.add(["ab"])
    trie.add(["AB"])
    trie.remove(["ab"])
    assert found(trie) == {"ab"}
    trie.remove(["AB"])
    assert found(trie) == set()
