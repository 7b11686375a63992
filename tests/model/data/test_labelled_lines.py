"""Tests of our labelled lines, read as notes for fitting a category head."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from benchmarks.quality.judgement import judged_notes
from model.config import DEFAULT_CATEGORIES
from model.data.dataset import read_notes
from model.data.labelled_lines import LANGUAGES, labelled_notes, main
from model.data.pairs import split_of
from model.note import Note
from service import SAMPLES


def says_nothing(note: Note) -> bool:
    return note.category is None and not note.hashtags


def test_lines_that_say_nothing_are_examples_of_each_category_alike(tmp_path: Path) -> None:
    main([str(tmp_path / "lines.jsonl")])
    examples = read_notes(tmp_path / "lines.jsonl").values()
    empty = {note.title for note in labelled_notes() if says_nothing(note) and split_of(note.id) == "train"}
    counts = Counter(note.category for note in examples if note.title in empty)
    assert counts == dict.fromkeys(DEFAULT_CATEGORIES, len(empty))


@pytest.mark.parametrize("language", LANGUAGES)
def test_labelled_lines_are_whole_and_kept_apart_from_measured_notes(language: str) -> None:
    notes = list(labelled_notes(language))
    titles = {note.title for note in notes}
    assert len(titles) == len(notes)
    assert not titles & {note.title for note in read_notes(SAMPLES).values()}
    assert not titles & {note.title for note in judged_notes()}
    for note in notes:
        assert note.category is None or note.category in DEFAULT_CATEGORIES
        assert len(note.hashtags) <= 5
        assert all(tag == tag.lower() for tag in note.hashtags)
    assert sum(not note.hashtags for note in notes) > 90


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_tenth_line_of_a_file_is_held_out(language: str) -> None:
    for name in (*DEFAULT_CATEGORIES, "no_category"):
        lines = [note for note in labelled_notes(language) if note.id.startswith(f"{name.lower()}-")]
        splits = [split_of(note.id) for note in lines]
        assert splits == ["train" if number % 10 else "validation" for number in range(1, len(lines) + 1)]
        assert "validation" in splits


def test_lines_that_say_nothing_are_all_examples_of_the_train_split(tmp_path: Path) -> None:
    main([str(tmp_path / "lines.jsonl")])
    empty = {note.title for note in labelled_notes() if says_nothing(note)}
    examples = read_notes(tmp_path / "lines.jsonl").values()
    assert {split_of(note.id) for note in examples if note.title in empty} == {"train"}


def test_lines_with_a_category_are_examples_of_it_alone(tmp_path: Path) -> None:
    main([str(tmp_path / "lines.jsonl")])
    categories = defaultdict(list)
    for note in read_notes(tmp_path / "lines.jsonl").values():
        categories[note.title, note.content].append(note.category)
    labelled = [note for note in labelled_notes() if note.category is not None]
    assert len(labelled) > 200
    for note in labelled:
        assert categories[note.title, note.content] == [note.category]
