"""Properties of WordIndex: what it finds is what comparing with every note finds, whatever came and went."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.hashtags import lexical_index as words
from model.hashtags.lexical_index import InvertedLexicalIndex, word_hashes
from model.note import Note

WORDS = ("soup", "lemon", "hike", "kyoto", "yarn")
TEXTS = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
IDS = st.sampled_from("abcdef")
STEPS = st.lists(st.one_of(st.tuples(IDS, TEXTS), IDS), min_size=4, max_size=24)


def index_of(*notes: Note) -> InvertedLexicalIndex:
    index = InvertedLexicalIndex()
    for note in notes:
        index.add(note)
    return index


def by_comparing_all(notes: Mapping[str, Note], asked: Note) -> list[tuple[str, float]]:
    """The formula, note by note; ties by id."""
    words = word_hashes(asked)
    having = {word: sum(word in word_hashes(note) for note in notes.values()) for word in words}
    squares = {word: math.log(1 + len(notes) / max(1, having[word])) ** 2 for word in words}
    length = sum(squares.values())
    scores = {}
    for note in notes.values():
        own = word_hashes(note)
        if shared := sum(squares[word] for word in words & own):
            scores[note.id] = shared / math.sqrt(length * max(length / len(words) * len(own), shared))
    return sorted(scores.items(), key=lambda hit: (-round(hit[1], 9), hit[0]))


@settings(deadline=None)
@given(STEPS, TEXTS)
def test_whatever_came_and_went_the_nearest_are_those_that_share_the_most_words(
    steps: list[tuple[str, str] | str], text: str
) -> None:
    """What is gone takes no part, and takes up little room."""
    index, living = InvertedLexicalIndex(), dict[str, Note]()
    for step in steps:
        if isinstance(step, str):
            index.remove(step)
            living.pop(step, None)
        else:
            note = Note(id=step[0], title=step[1])
            index.add(note)
            living.pop(note.id, None)
            if word_hashes(note):
                living[note.id] = note
    wanted = by_comparing_all(living, Note(title=text))[:3]
    found = index.nearest(Note(title=text), 3)
    assert [i for i, _ in found] == [i for i, _ in wanted]
    assert [score for _, score in found] == pytest.approx([score for _, score in wanted])
    assert all(0 < score <= 1 + 1e-9 for _, score in found)
    assert len(index) == len(living)
    assert len(index._ids) <= 2 * len(living) + 1


def test_an_equal_text_scores_1_and_a_note_is_not_near_itself() -> None:
    index = index_of(Note(id="a", title="Lemon soup"), Note(id="b", content="soup, LEMON!"), Note(id="c", title="soup"))
    found = index.nearest(Note(id="a", title="Lemon soup"), 9)
    assert [i for i, _ in found] == ["b", "c"]
    assert found[0][1] == pytest.approx(1.0)


def test_a_rarer_word_weighs_more() -> None:
    others = [Note(id=f"{i}", title="soup with bread") for i in range(9)]
    index = index_of(*others, Note(id="rare", title="saffron with bread"))
    assert index.nearest(Note(title="saffron soup"), 1)[0][0] == "rare"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("My new iPhone手机壳 2号", ["my", "new", "iphone", "手机", "机壳", "2", "号"]),
        ("हिन्दी में चाय", ["हनद", "म", "चय"]),
        ("ต้มยำกุ้ง", ["ตม", "มย", "ยา", "าก", "กง"]),
        ("Crème brûlée, CRÈME!", ["crème", "brûlée"]),
        ("東京タワー ok_go", ["東京", "京タ", "タワ", "ワー", "ok", "go"]),
    ],
)
def test_words_are_runs_of_letters_and_digits_and_pairs_where_there_are_no_spaces(text: str, words: list[str]) -> None:
    assert word_hashes(Note(content=text)) == frozenset(zlib.crc32(word.encode()) for word in words)


def test_hashtags_are_words_too() -> None:
    index = index_of(Note(id="tag", hashtags=("番茄牛腩",)), Note(id="other", title="泉州旅行"))
    assert [i for i, _ in index.nearest(Note(title="今天做番茄牛腩给你"), 2)] == ["tag"]


def test_of_a_long_text_the_rarest_words_are_looked_up_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_of(Note(id="rare", title="saffron"), *(Note(id=f"{i}", title="soup with bread") for i in range(9)))
    monkeypatch.setattr(words, "MAX_ROWS", 5)
    assert [i for i, _ in index.nearest(Note(title="soup bread saffron"), 9)] == ["rare"]
    assert len(word_hashes(Note(content="".join(f"word{i} " for i in range(10_000))))) < 400


def test_a_note_that_is_rewritten_over_and_over_does_not_make_its_words_common(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "COMMON_NOTES", 3)
    index = index_of(Note(id="other", title="saffron"), *(Note(id=f"{i}", title=f"soup{i}") for i in range(20)))
    for _ in range(9):
        index.add(Note(id="same", title="saffron"))
    assert [i for i, _ in index.nearest(Note(title="saffron"), 3)] == ["other", "same"]


def test_a_word_that_too_many_notes_have_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_of(*(Note(id=f"{i}", title=f"video number{i}") for i in range(9)))
    assert len(index.nearest(Note(title="video"), 9)) == 9
    monkeypatch.setattr(words, "COMMON_NOTES", 5)
    assert index.nearest(Note(title="video"), 9) == []
    assert [i for i, _ in index.nearest(Note(title="video number3"), 9)] == ["3"]


@pytest.mark.parametrize("text", ["", "!?", "\ud800", "👍 👍"])
def test_what_has_no_words_is_neither_kept_nor_found(text: str) -> None:
    index = index_of(Note(id="a", title=text), Note(id="b", title="soup"))
    assert len(index) == 1
    assert index.nearest(Note(title=text), 2) == []
    index.add(Note(id="b", title=""))
    assert index.nearest(Note(title="soup"), 2) == []


def test_notes_come_and_go_while_others_look() -> None:
    index = InvertedLexicalIndex()

    def write() -> None:
        for i in range(3000):
            index.add(Note(id=f"{i % 700}", title=f"soup {i % 40} {i}"))
            if i % 3 == 0:
                index.remove(f"{(i * 7) % 700}")

    def look() -> None:
        while not written.done():
            assert len(index.nearest(Note(title="soup 7"), 5)) <= 5

    with ThreadPoolExecutor(3) as threads:
        written = threads.submit(write)
        for looking in [threads.submit(look), threads.submit(look)]:
            looking.result()
        written.result()
    assert index.nearest(Note(title="2999"), 1)[0][0] == f"{2999 % 700}"
