"""Tests of EngineSystem: in an evaluation, a checkpoint answers as in serving."""

import numpy as np
import pytest

from model.evaluation.system import EngineSystem
from model.generation import GenerationRequest
from model.inference.engine import Engine
from model.note import Note


def test_engine_system_scores_by_the_served_vectors(tiny_engine: Engine):
    notes = [Note(title=t) for t in ("one", "two", "a much longer title about bread")]
    served = np.array([tiny_engine.run([tiny_engine.tokenize(note)])[0].vector for note in notes])
    scores = EngineSystem(tiny_engine).related(notes)(np.array([2, 0]))
    np.testing.assert_allclose(scores, served[[2, 0]] @ served.T, atol=1e-5)


def test_known_policy_writes_only_hashtags_of_training_notes(tiny_engine: Engine):
    known = [Note(id="a", hashtags=("bread", "river walk")), Note("a title", id="b")]
    written = EngineSystem(tiny_engine, "known", known).hashtags([Note("one"), Note("two")], 2)
    assert [sorted(hashtags) for hashtags in written] == [["bread", "river walk"]] * 2


def test_engine_system_answers_as_it_serves(tiny_engine: Engine):
    notes = [Note(title=t) for t in ("one", "two", "a much longer title about bread")]
    system = EngineSystem(tiny_engine)
    names = ("Travel", "Food", "Film")
    log_probs = system.category_log_probs(notes, names)
    tags = system.hashtags(notes, 2)
    for note, row, written in zip(notes, log_probs, tags, strict=True):
        (output,) = tiny_engine.run([tiny_engine.tokenize(note, GenerationRequest(2, names))])
        served = {category.name: category.probability for category in output.categories or ()}
        assert np.exp(row) == pytest.approx([served[name] for name in names], abs=1e-5)
        assert written == tuple(hashtag.text for hashtag in output.hashtags or ())
    assert system.write_category(notes) == tiny_engine.write_category(notes)
    assert np.isfinite(log_probs).all()
