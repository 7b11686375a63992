"""Tests of which sample notes the benchmark measures."""

from __future__ import annotations

from benchmarks.quality.sample_notes import UNSEEN_NAMES, measured_notes
from model.data.pairs import split_of


def test_only_supported_notes_of_the_test_split_are_measured() -> None:
    notes = measured_notes(lambda note: note.id.startswith("sample-en"))
    assert {split_of(note.id) for note in notes} == {"test"}
    assert len(notes) == 39
    assert sum(note.category in UNSEEN_NAMES for note in notes) == 22
