"""Tests of Chinese notes from templates: every category occurs, no text repeats, and no slot stays unfilled."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

from model.config import DEFAULT_CATEGORIES
from model.data import chinese_notes
from model.data.dataset import read_notes
from model.scripts import letters_by_script

NOTES = list(islice(chinese_notes.chinese_notes(), 2000))


def test_notes_are_chinese_complete_and_distinct() -> None:
    assert len({note.title + note.content for note in NOTES}) == len(NOTES)
    for note in NOTES:
        text = note.title + note.content + "".join(note.hashtags)
        assert not set(text) & set("{}")
        assert letters_by_script(text)["CJK"] > 10
        assert 2 <= len(note.hashtags) <= 3


def test_each_default_category_has_notes() -> None:
    counts = Counter(note.category for note in NOTES)
    assert counts.keys() == set(DEFAULT_CATEGORIES)
    assert min(counts.values()) > 50


def test_command_writes_the_same_notes_each_time(tmp_path: Path) -> None:
    for name in ("first", "second"):
        chinese_notes.main(["--out", str(tmp_path / name), "--notes", "30"])
    assert (tmp_path / "first").read_text() == (tmp_path / "second").read_text()
    assert [note.title for note in read_notes(tmp_path / "first").values()] == [note.title for note in NOTES[:30]]
