"""Properties of WordIndex: what it finds is what comparing with every note finds, whatever came and went."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import words
from model.note import Note
from model.words import WordIndex, words_of

WORDS = ("soup", "lemon", "hike", "kyoto", "yarn")
TEXTS = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
IDS = st.sampled_from("abcdef")
STEPS = st.lists(st.one_of(st.tuples(IDS, TEXTS), IDS), min_size=4, max_size=24)


def index_of(*notes: Note) -> WordIndex:
    index = WordIndex()
    for note in notes:
        index.add(note)
    return index


def by_comparing_all(notes: dict[str, Note], rows: int, having: dict[int, int], note: Note) -> dict[str, float]:
    """The formula, word by word. `rows`, `having`: all notes, and those with a word, that were not forgotten yet."""
    asked = words_of(note)
    idf = {word: math.log(1 + rows / max(1, having.get(word, 0))) for word in asked}
    mean = sum(x**2 for x in idf.values()) / max(1, len(asked))
    scores = {}
    for other in notes.values():
        own = words_of(other)
        if shared := asked & own:
            scores[other.id] = sum(idf[word] ** 2 for word in shared) / (mean * math.sqrt(len(asked) * len(own)))
    return scores


@settings(deadline=None)
@given(STEPS, TEXTS)
def test_whatever_came_and_went_the_nearest_are_those_that_share_the_most_words(
    steps: list[tuple[str, str] | str], text: str
) -> None:
    index, living = WordIndex(), dict[str, Note]()
    for step in steps:
        if isinstance(step, str):
            index.remove(step)
            living.pop(step, None)
        else:
            note = Note(id=step[0], title=step[1])
            index.add(note)
            living.pop(note.id, None)
            if words_of(note):
                living[note.id] = note
    having = {word: len(rows) for word, rows in index._rows_with.items()}
    wanted = by_comparing_all(living, len(index._ids), having, Note(title=text))
    found = index.nearest(Note(title=text), 3)
    assert len(index) == len(living)
    assert len(index._ids) <= 2 * max(1, len(living))
    assert len(found) == min(3, len(wanted))
    assert [score for _, score in found] == pytest.approx(sorted(wanted.values(), reverse=True)[:3])
    assert {i: wanted[i] for i, _ in found} == pytest.approx(dict(found))


def test_an_equal_text_scores_1_and_a_note_is_not_near_itself() -> None:
    index = index_of(Note(id="a", title="Lemon soup"), Note(id="b", content="soup, LEMON!"), Note(id="c", title="soup"))
    found = index.nearest(Note(id="a", title="Lemon soup"), 9)
    assert [i for i, _ in found] == ["b", "c"]
    assert found[0][1] == pytest.approx(1.0)


def test_a_rarer_word_weighs_more() -> None:
    others = [Note(id=f"{i}", title="soup with bread") for i in range(9)]
    index = index_of(*others, Note(id="rare", title="saffron with bread"))
    assert index.nearest(Note(title="saffron soup"), 1)[0][0] == "rare"


def test_hashtags_are_words_too_and_chinese_needs_no_spaces() -> None:
    index = index_of(Note(id="tag", hashtags=("番茄牛腩",)), Note(id="other", title="泉州旅行"))
    assert [i for i, _ in index.nearest(Note(title="今天做番茄牛腩给你"), 2)] == ["tag"]
    assert index.nearest(Note(title="海"), 2) == []


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
    index = WordIndex()

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
