"""Tests of which sample notes the benchmark measures."""

from __future__ import annotations

from benchmarks.quality.sample_notes import UNSEEN_NAMES, measured_notes
from model.config import NoteLLMConfig
from model.data.community_tags import tags_by_category
from model.data.dataset import read_notes
from model.data.labelled_lines import labelled_notes
from model.data.pairs import split_of
from model.note import hashtag_key
from model.training.writing import category_synonyms
from model.weights import SHIPPED_CHECKPOINT
from service import SAMPLES


def test_only_supported_notes_of_the_test_split_are_measured() -> None:
    notes = measured_notes(lambda note: note.id.startswith("sample-en"))
    assert {split_of(note.id) for note in notes} == {"test"}
    assert len(notes) == 39
    assert sum(note.category in UNSEEN_NAMES for note in notes) == 22


def test_unseen_names_are_no_names_and_no_hashtags_of_training() -> None:
    notes = [*labelled_notes(), *read_notes(SAMPLES).values()]
    hashtags = {tag for note in notes for tag in note.hashtags}
    tags = {tag for names in tags_by_category().values() for tag in names}
    synonyms = {name for names in category_synonyms().values() for name in names}
    shown = hashtags | tags | synonyms | set(NoteLLMConfig.load(SHIPPED_CHECKPOINT).trained_categories)
    assert not {hashtag_key(name) for name in UNSEEN_NAMES.values()} & {hashtag_key(name) for name in shown}
