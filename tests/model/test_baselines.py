"""The rivals rank by what they are said to rank by."""

import math

import numpy as np
import pytest

from model.baselines import Bm25, SentenceEncoder, TfIdf, plain_text
from model.note import Note

NOTES = [
    Note(title="bread in paris", hashtags=("baking",)),
    Note(title="paris by night"),
    Note(title="bread bread bread", content="and butter"),
    Note(title="a horse"),
]
ALL = np.arange(len(NOTES))


def test_a_rival_reads_title_content_and_hashtags():
    assert plain_text(Note(title="t", content="c", hashtags=("a b", "d"))) == "t c #a b #d"


def test_tf_idf_scores_are_cosines_and_nothing_shared_is_zero():
    scores = TfIdf().related(NOTES)(ALL)
    np.testing.assert_allclose(np.diag(scores), 1)
    np.testing.assert_allclose(scores, scores.T)
    assert scores[0, 3] == 0 < scores[0, 1]


def test_bm25_is_the_hand_computed_score():
    lengths = [4, 3, 5, 1]  # words of two letters or more
    scores = Bm25(k1=1.2, b=0.75).related(NOTES)(np.array([1]))
    # The query "paris by night" shares one word with note 0, and that word is in two notes of four.
    idf = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5))
    norm = 1.2 * (1 - 0.75 + 0.75 * lengths[0] / (sum(lengths) / 4))
    assert scores[0, 0] == pytest.approx(idf * 1 * 2.2 / (1 + norm), rel=1e-5)
    assert scores[0, 2] == scores[0, 3] == 0


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


def test_vectors_of_the_encoder_are_of_unit_length_and_know_what_is_alike(encoder: SentenceEncoder):
    vectors = encoder.embed(NOTES)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    scores = encoder.related([Note(title="a dog"), Note(title="a puppy"), Note(title="tax law")])(np.array([0]))
    assert scores[0, 1] > scores[0, 2]


def test_a_vector_does_not_depend_on_its_batch(encoder: SentenceEncoder):
    np.testing.assert_allclose(encoder.embed(NOTES, batch=1), encoder.embed(NOTES, batch=4), atol=1e-5)


def test_a_saved_encoder_is_the_same_encoder(encoder: SentenceEncoder, tmp_path):
    encoder.save(tmp_path)
    np.testing.assert_allclose(SentenceEncoder(tmp_path).embed(NOTES), encoder.embed(NOTES), atol=1e-6)
