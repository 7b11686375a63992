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


@pytest.mark.parametrize("truth", [TRUTH, [0, 0, 1, 1, 2, 2]])
def test_log_odds_are_those_of_scikit_learn(truth: list[int]) -> None:
    """The reference uses our tokenizer; everything else in it is scikit-learn's."""
    vectorizer = TfidfVectorizer(analyzer=words_and_characters, sublinear_tf=True, min_df=2)
    features = vectorizer.fit_transform(RECIPES + TRIPS)
    reference = LogisticRegression(C=INVERSE_PENALTY).fit(features, truth)
    regression = WordRegression.fit(RECIPES + TRIPS, truth)
    for note in (*RECIPES, *TRIPS, UNSEEN):
        logits = regression.logits(note, sorted(set(truth)))
        expected = reference.predict_log_proba(vectorizer.transform([note]))[0]
        assert np.diff(logits) == pytest.approx(np.diff(expected), rel=2e-3, abs=2e-3)  # weights are rounded to 11 bits


def test_columns_are_returned_in_the_order_that_is_asked_for() -> None:
    regression = WordRegression.fit(RECIPES + TRIPS, TRUTH)
    assert regression.logits(UNSEEN, [1, 0]).tolist() == regression.logits(UNSEEN, [0, 1]).tolist()[::-1]


@pytest.mark.parametrize("note", [Note(), Note("elephant"), Note("🙂"), Note("\ud800")])
def test_note_without_known_words_is_of_no_category(note: Note) -> None:
    regression = WordRegression.fit([*RECIPES, *TRIPS, Note("Bread and salt")], [*TRUTH, 0])
    assert np.diff(regression.bias).item() != 0
    assert regression.logits(note, [0, 1]).tolist() == [0, 0]


def test_notes_that_share_no_word_teach_nothing() -> None:
    regression = WordRegression.fit([Note("soup"), Note("train")], [0, 1])
    assert regression.hashes.size == 0
    assert regression.logits(Note("soup"), [0, 1]).tolist() == [0, 0]


def test_single_characters_tell_a_category_in_chinese() -> None:
    notes = [Note("红烧肉"), Note("烤肉"), Note("火车"), Note("汽车")]
    regression = WordRegression.fit(notes, [0, 0, 1, 1])
    meat, train = regression.logits(Note("牛肉面"), [0, 1])
    assert meat > train + 0.5
