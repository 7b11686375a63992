"""Tests of InvertedLexicalIndex: it finds what comparing with every note finds, whatever was added and removed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.generation import NamedHashtag
from model.hashtags import lexical_index
from model.hashtags.lexical_index import InvertedLexicalIndex
from model.note import Note
from model.words import word_hashes, words_of
from tests.model.hashtags.reference import NoteIndex, by_comparing_all, letter_trie

WORDS = ("soup", "lemon", "hike", "kyoto", "yarn")
TEXTS = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
IDS = st.sampled_from("abcdef")
WRITES = st.lists(st.one_of(st.tuples(IDS, TEXTS), IDS), min_size=4, max_size=24)
"""Sequences of writes: an id with a text adds a note, an id alone removes it."""


@settings(deadline=None)
@given(WRITES, TEXTS)
def test_nearest_after_any_writes_equals_comparing_all_notes(writes: list[tuple[str, str] | str], text: str) -> None:
    """Removed notes do not count."""
    index, living = NoteIndex(), dict[str, Note]()
    for write in writes:
        if isinstance(write, str):
            index.remove(write)
            living.pop(write, None)
        else:
            note = Note(id=write[0], title=write[1])
            index.add(note)
            living[note.id] = note
    expected = by_comparing_all(living, Note(title=text))[:3]
    hits = index.nearest(Note(title=text), 3)
    assert [note_id for note_id, _ in hits] == [note_id for note_id, _ in expected]
    assert [score for _, score in hits] == pytest.approx([score for _, score in expected])
    assert all(0 < score <= 1 + 1e-9 for _, score in hits)
    assert len(index.index) == sum(bool(word_hashes(note)) for note in living.values())


@pytest.mark.parametrize("words_of_query", [1, 4, 30])
def test_best_of_many_notes_of_any_length_equal_comparing_all_notes(words_of_query: int) -> None:
    """Exactly those notes are scored whose score bound reaches the best scores."""
    rng = random.Random(words_of_query)
    notes = {}
    for number in range(400):
        length = rng.choice((1, 1, 2, 3, 10, 40))
        title = " ".join(f"word{int(rng.paretovariate(0.6))}" for _ in range(length))
        notes[f"{number}"] = Note(id=f"{number}", title=title)
    index = NoteIndex(*notes.values(), segment_rows=150)
    for note_id in rng.sample(sorted(notes), 80):
        index.remove(note_id)
        del notes[note_id]
    for _ in range(20):
        query = Note(title=" ".join(f"word{int(rng.paretovariate(0.6))}" for _ in range(words_of_query)))
        expected = [score for _, score in by_comparing_all(notes, query)]
        for count in (1, 10, 100, 400):
            scores = sorted(index.scores(query, count).values(), reverse=True)
            assert scores[:count] == pytest.approx(expected[:count])


def test_equal_text_scores_1_and_the_note_itself_is_left_out() -> None:
    index = NoteIndex(
        Note(id="a", title="Lemon soup"), Note(id="b", content="soup, LEMON!"), Note(id="c", title="soup")
    )
    hits = index.nearest(Note(id="a", title="Lemon soup"), 9)
    assert [note_id for note_id, _ in hits] == ["b", "c"]
    assert hits[0][1] == pytest.approx(1.0)


def test_scores_include_the_ids_that_are_named() -> None:
    index = NoteIndex(*(Note(id=f"{i}", title="soup with bread" + " more" * (i > 0)) for i in range(9)))
    scores = index.scores(Note(title="soup with bread"), 1, ids=("3", "nobody"))
    assert set(scores) == {"0", "3"}
    assert scores["3"] == dict(index.nearest(Note(title="soup with bread"), 9))["3"]


def test_scores_of_named_ids_leave_out_the_note_itself_and_those_that_share_nothing() -> None:
    index = NoteIndex(*(Note(id=name, title=f"soup {name}") for name in "abc"), Note(id="other", title="chess"))
    index.remove("b")
    assert set(index.scores(Note(id="a", title="soup"), 0, ids=("a", "b", "c", "other"))) == {"c"}
    assert index.scores(Note(title="yarn"), 9, ids=("a",)) == {}
    assert index.scores(Note(title="!?"), 9, ids=("a",)) == {}


def test_rarest_of_shared_words_come_first() -> None:
    index = NoteIndex(
        *(Note(id=f"{i}", title="soup with bread") for i in range(3)), Note(id="rare", title="saffron soup")
    )
    [shared] = index.index.shared_words(Note(title="Saffron, soup"), [Note(content="a soup of SAFFRON and onions")])
    assert index.index.rarest(shared, 5) == ("saffron", "soup")
    assert index.index.rarest(shared, 1) == ("saffron",)
    assert index.index.rarest((), 5) == ()


def test_words_of_a_note_are_read_once_however_many_others_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    note, others, read = Note(title="saffron soup"), [Note(id=f"{i}", title="soup") for i in range(5)], list[Note]()

    def count_and_read(of: Note) -> frozenset[str]:
        read.append(of)
        return words_of(of)

    monkeypatch.setattr(lexical_index, "words_of", count_and_read)
    assert InvertedLexicalIndex.shared_words(note, others) == [{"soup"}] * 5
    assert read == [note, *others]


def test_named_hashtags_are_those_of_stored_notes_whose_words_follow_each_other() -> None:
    notes = [Note(id=f"{i}", title="a road", hashtags=("Road Trip",) if i < 2 else ()) for i in range(5)]
    index, vocabulary = NoteIndex(*notes, segment_rows=2), letter_trie()
    for note in notes:
        vocabulary.add(note.hashtags)

    def named(title: str) -> tuple[NamedHashtag, ...]:
        phrases = index.index.phrases_of(Note(title=title))
        return index.index.named_hashtags(phrases, vocabulary.uses(phrases))

    assert named("Our ROAD trip to Kyoto") == (NamedHashtag("Road Trip", carriers=2, having=2),)
    assert named("A trip by road") == ()


def test_removed_rows_and_the_note_itself_do_not_count_as_having_the_words_of_a_hashtag() -> None:
    index = NoteIndex(*(Note(id=f"{i}", title="lemon") for i in range(6)), segment_rows=2)
    for removed in ("1", "4"):
        index.remove(removed)
    phrases, uses = {"lemon": ("lemon",)}, {"lemon": ("lemon", 3)}
    (named,) = index.index.named_hashtags(phrases, uses)
    (without_own,) = index.index.named_hashtags(phrases, uses, own_row=5)
    assert (named.having, without_own.having) == (4, 3)


def test_rarer_word_weighs_more() -> None:
    others = [Note(id=f"{i}", title="soup with bread") for i in range(9)]
    index = NoteIndex(*others, Note(id="rare", title="saffron with bread"))
    assert index.nearest(Note(title="saffron soup"), 1)[0][0] == "rare"


def test_hashtags_are_searched_as_words() -> None:
    index = NoteIndex(Note(id="tag", hashtags=("番茄牛腩",)), Note(id="other", title="泉州旅行"))
    assert [note_id for note_id, _ in index.nearest(Note(title="今天做番茄牛腩给你"), 2)] == ["tag"]


def test_long_text_is_searched_by_its_rarest_words_only(monkeypatch: pytest.MonkeyPatch) -> None:
    index = NoteIndex(Note(id="rare", title="saffron"), *(Note(id=f"{i}", title="soup with bread") for i in range(9)))
    monkeypatch.setattr(lexical_index, "MAX_ROWS", 5)
    assert [note_id for note_id, _ in index.nearest(Note(title="soup bread saffron"), 9)] == ["rare"]
    assert len(word_hashes(Note(content="".join(f"word{i} " for i in range(10_000))))) < 400


def test_note_rewritten_often_does_not_make_its_words_common(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexical_index, "COMMON_NOTES", 3)
    index = NoteIndex(Note(id="other", title="saffron"), *(Note(id=f"{i}", title=f"soup{i}") for i in range(20)))
    for _ in range(9):
        index.add(Note(id="same", title="saffron"))
    assert [note_id for note_id, _ in index.nearest(Note(title="saffron"), 3)] == ["other", "same"]


def test_word_that_too_many_notes_have_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    index = NoteIndex(*(Note(id=f"{i}", title=f"video number{i}") for i in range(9)))
    assert len(index.nearest(Note(title="video"), 9)) == 9
    monkeypatch.setattr(lexical_index, "COMMON_NOTES", 5)
    assert index.nearest(Note(title="video"), 9) == []
    assert [note_id for note_id, _ in index.nearest(Note(title="video number3"), 9)] == ["3"]


@pytest.mark.parametrize("text", ["", "!?", "\ud800", "👍 👍"])
def test_note_without_words_neither_counts_nor_is_found(text: str) -> None:
    index = NoteIndex(Note(id="a", title=text), Note(id="b", title="soup"))
    assert len(index.index) == 1
    assert index.nearest(Note(title=text), 2) == []
    index.add(Note(id="b", title=""))
    assert index.nearest(Note(title="soup"), 2) == []
