"""Tests of TF-IDF and BM25 scores against values worked out by hand."""

import math

import numpy as np
import pytest

from model.baselines.lexical import Bm25, TfIdf
from model.data.dataset import DatasetError
from model.note import Note

NOTES = [
    Note(title="bread in paris", hashtags=("baking",)),
    Note(title="paris by night"),
    Note(title="bread bread bread", content="and butter"),
    Note(title="a horse"),
]


ALL = np.arange(len(NOTES))


@pytest.mark.parametrize("system", [TfIdf(), Bm25()])
def test_notes_without_words_are_refused(system: TfIdf | Bm25):
    with pytest.raises(DatasetError, match="none of 2 notes has a word of two letters or more"):
        system.related([Note(title="a"), Note(title="!?")])


def test_tf_idf_scores_are_cosines():
    scores = TfIdf().related(NOTES)(ALL)
    np.testing.assert_allclose(np.diag(scores), 1)
    np.testing.assert_allclose(scores, scores.T)
    assert scores[0, 3] == 0 < scores[0, 1]


def test_bm25_score_is_as_by_hand():
    lengths = [4, 3, 5, 1]  # words of two letters or more
    scores = Bm25(k1=1.2, b=0.75).related(NOTES)(np.array([1]))
    # The query "paris by night" shares one word with note 0, and that word is in two notes of four.
    idf = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5))
    norm = 1.2 * (1 - 0.75 + 0.75 * lengths[0] / (sum(lengths) / 4))
    assert scores[0, 0] == pytest.approx(idf * 1 * 2.2 / (1 + norm), rel=1e-5)
    assert scores[0, 2] == scores[0, 3] == 0
