"""Tests of our labelled lines, read as notes for fitting a category head."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from model.config import DEFAULT_CATEGORIES
from model.data.dataset import read_notes
from model.data.labelled_lines import labelled_notes, main
from model.data.pairs import split_of


def test_lines_that_say_nothing_are_examples_of_each_category_alike(tmp_path: Path) -> None:
    main([str(tmp_path / "lines.jsonl")])
    examples = read_notes(tmp_path / "lines.jsonl").values()
    empty = {note.title for note in labelled_notes() if note.category is None and not note.hashtags}
    counts = Counter(note.category for note in examples if note.title in empty)
    assert counts == dict.fromkeys(DEFAULT_CATEGORIES, len(empty))


def test_lines_belong_to_the_train_split(tmp_path: Path) -> None:
    main([str(tmp_path / "lines.jsonl")])
    assert {split_of(note_id) for note_id in read_notes(tmp_path / "lines.jsonl")} == {"train"}


def test_lines_with_a_category_are_examples_of_it_alone(tmp_path: Path) -> None:
    main([str(tmp_path / "lines.jsonl")])
    examples = {(note.title, note.content, note.category) for note in read_notes(tmp_path / "lines.jsonl").values()}
    labelled = [note for note in labelled_notes() if note.category is not None]
    assert len(labelled) > 200
    for note in labelled:
        same_text = [found for found in examples if found[:2] == (note.title, note.content)]
        assert same_text == [(note.title, note.content, note.category)]
