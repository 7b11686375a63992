"""Tests of a rival with the regressions of our category head."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from model.baselines.headed_encoder import HeadedEncoder
from model.baselines.lexical import TfIdf
from model.baselines.loading import headed_encoder
from model.category_head import CategoryHead
from model.config import CheckpointError
from model.note import Note
from model.training.teacher import unit

DIMENSION = 16


class LengthEncoder:
    """Encoder whose vectors depend on the length of a title alone, so that only words tell the categories apart."""

    name = "lengths"

    def embed(self, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
        angles = np.array([len(note.title) for note in notes])[:, None] * np.arange(1, DIMENSION + 1)
        return unit(np.cos(angles) + 2)


def labelled(count: int, start: int = 0) -> list[Note]:
    words = (("Food", "bread butter"), ("Pets", "kitten puppy"), ("Law", "court judge"))
    return [
        Note(title=f"{word} {'x' * (start + n)}", category=category) for category, word in words for n in range(count)
    ]


def test_words_decide_where_vectors_cannot_and_the_validation_notes_say_so():
    headed = HeadedEncoder(LengthEncoder(), "lengths", labelled(12), labelled(8, 3))
    assert headed.name == "lengths, category head"
    names = ["Pets", "Law", "Food"]
    log_probs = headed.category_log_probs([Note(title="a judge"), Note(title="some butter")], names)
    assert log_probs.argmax(1).tolist() == [1, 2]
    assert np.exp(log_probs).sum(1) == pytest.approx(1)
    unfitted = HeadedEncoder(LengthEncoder(), "lengths", labelled(12), [Note(title="court", category="Elsewhere")])
    judge = unfitted.category_log_probs([Note(title="a judge")], names)
    assert log_probs[0, 1] > judge[0, 1], "exponents fitted to validation notes trust the words more than 1 does"


def test_both_regressions_count_the_same_without_validation_notes():
    known = labelled(12)
    head = CategoryHead.fit(LengthEncoder().embed(known), [note.category or "" for note in known], known)
    note = Note(title="xxxx")
    by_vector, by_words = head.log_probs(head.names, note, LengthEncoder().embed([note])[0])
    pooled = by_vector + by_words
    headed = HeadedEncoder(LengthEncoder(), "lengths", known, [])
    expected = pooled - np.logaddexp.reduce(pooled)
    np.testing.assert_allclose(headed.category_log_probs([note], head.names)[0], expected, atol=1e-9)


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ([Note(title="no category")], "no training note has a category"),
        ([Note(title="bread", category="Food")], "at least two categories, not of 1"),
    ],
)
def test_training_notes_without_two_categories_are_refused(known: list[Note], reason: str):
    with pytest.raises(CheckpointError, match=f"--category-head: .*{reason}"):
        headed_encoder(LengthEncoder(), known, [])


def test_system_without_vectors_is_refused():
    with pytest.raises(CheckpointError, match="--category-head applies to encoders only; tf-idf is not one"):
        headed_encoder(TfIdf(), labelled(2), [])
