"""Tests of WordRegression: which words it learns, and how it weighs them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from model.category_regressions import INVERSE_PENALTY, WordRegression
from model.note import Note
from model.words import words_and_characters

RECIPES = [Note("Lemon soup", "lemon, salt and water"), Note("Bread", "flour, salt and time"), Note("Lemon tart")]
TRIPS = [Note("Two days in Kyoto", "temples and a train"), Note("Night train", hashtags=("kyoto",)), Note("Days off")]
TRUTH = [0, 0, 0, 1, 1, 1]
UNSEEN = Note("A train with salt", "salt, salt, and an elephant")


def test_logits_are_those_of_scikit_learn() -> None:
    """The reference counts words in ours, and does all else in scikit-learn."""
    vectorizer = TfidfVectorizer(analyzer=words_and_characters, sublinear_tf=True, min_df=2)
    features = vectorizer.fit_transform(RECIPES + TRIPS)
    reference = LogisticRegression(C=INVERSE_PENALTY).fit(features, TRUTH)
    regression = WordRegression.fit(RECIPES + TRIPS, TRUTH)
    for note in (*RECIPES, *TRIPS, UNSEEN):
        recipe, trip = regression.logits(note, [0, 1])
        (log_odds,) = reference.decision_function(vectorizer.transform([note]))
        assert trip - recipe == pytest.approx(log_odds, rel=2e-3, abs=2e-3)  # weights have 11 bits


def test_columns_are_returned_in_the_order_that_is_asked_for() -> None:
    regression = WordRegression.fit(RECIPES + TRIPS, TRUTH)
    assert regression.logits(UNSEEN, [1, 0]).tolist() == regression.logits(UNSEEN, [0, 1]).tolist()[::-1]


@pytest.mark.parametrize("note", [Note(), Note("elephant"), Note("🙂")])
def test_note_without_known_words_leaves_the_bias(note: Note) -> None:
    regression = WordRegression.fit(RECIPES + TRIPS, TRUTH)
    assert regression.logits(note, [0, 1]) == pytest.approx(regression.bias)


def test_notes_that_share_no_word_teach_nothing() -> None:
    regression = WordRegression.fit([Note("soup"), Note("train")], [0, 1])
    assert regression.hashes.size == 0
    assert regression.logits(Note("soup"), [0, 1]) == pytest.approx(regression.bias)


def test_chinese_is_read_by_characters_and_their_pairs() -> None:
    words = words_and_characters(Note("红烧肉 soup", hashtags=("肉",)))
    assert words == ["红", "烧", "肉", "红烧", "烧肉", "soup", "肉"]
    notes = [Note("红烧肉"), Note("烤肉"), Note("火车"), Note("汽车")]
    regression = WordRegression.fit(notes, [0, 0, 1, 1])
    assert regression.hashes.size == 2
    by_meat = np.diff(regression.logits(Note("牛肉面"), [1, 0])).item()
    assert by_meat > 0.5
