"""LiveTexts: words and hashtags of the notes in an index, and their snapshot."""

from __future__ import annotations

from model.hashtags.lexical_index import InvertedLexicalIndex
from model.note import Note
from service.index.texts import LiveTexts
from tests.service.conftest import letters
from tests.service.index.reference import row

QUERY = Note(title="saffron soup")


def new_texts() -> LiveTexts:
    return LiveTexts(letters(), InvertedLexicalIndex())


def ids(texts: LiveTexts, now: float = 0.0) -> list[str]:
    return [note_id for note_id, _ in texts.by_words(QUERY, 10, now)]


def filled() -> LiveTexts:
    texts = new_texts()
    texts.upsert(
        [
            row("bare", 0, title="saffron"),
            row("tagged", 1, title="saffron soup", hashtags=("soup",)),
            row("short lived", 2, title="soup", expires_at=10.0),
            row("removed", 3, title="saffron soup", hashtags=("gone",)),
        ]
    )
    texts.remove(["removed"])
    return texts


def test_words_of_all_notes_are_found_with_hashtags_or_without() -> None:
    assert ids(filled()) == ["tagged", "bare", "short lived"]
    assert [near.id for near in filled().with_hashtags(filled().by_words(QUERY, 10, 0.0))] == ["tagged"]


def test_expired_note_is_not_found_by_its_words() -> None:
    assert ids(filled(), now=10.0) == ["tagged", "bare"]


def test_restored_texts_equal_those_of_the_snapshot() -> None:
    texts, restored = filled(), new_texts()
    parts = {part.name: part.make() for part in texts.snapshot_parts()}
    restored.restore(parts.__getitem__)
    for now in (0.0, 10.0):
        assert restored.by_words(QUERY, 10, now) == texts.by_words(QUERY, 10, now)
    assert (restored.of("tagged"), restored.of("bare"), restored.of("removed")) == (("soup",), (), ())
    restored.upsert([row("bare", 0, title="bread")])
    assert ids(restored) == ["tagged", "short lived"]
