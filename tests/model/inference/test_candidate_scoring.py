"""Hashtag scoring: exact probabilities of the hashtags that a note's neighbours carry."""

from __future__ import annotations

import pytest

from model.generation import GenerationRequest, Neighbour, Neighbours
from model.hashtags.grounding import WRITTEN_WEIGHT
from model.inference.engine import Engine
from tests.conftest import FOODS
from tests.model.inference.outputs import (
    assert_same_categories,
    close_to,
    generate,
    prefills,
    record_forwards,
    scores,
    texts,
)
from tests.model.inference.reference import hashtag_probability
from tests.model.inference.samples import FEW_NOTES, HASHTAGS


def test_candidates_take_one_forward_and_exact_probabilities(writer: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.hashtags.grounding.MIN_NEIGHBOUR_SHARE", 0.0)  # so that only candidates are returned
    neighbours = Neighbours([Neighbour("n", 1.0, HASHTAGS)])
    with record_forwards(writer) as forwards:
        outputs = generate(writer, FEW_NOTES, GenerationRequest(3, FOODS, find_neighbours=lambda *_: neighbours))
    with record_forwards(writer) as forwards_without:
        plain = generate(writer, FEW_NOTES, GenerationRequest(3, FOODS))
    assert len(forwards) == len(forwards_without) + 1
    (more,) = [forwards[1]] if len(prefills(forwards_without)) < len(prefills(forwards)) else [forwards[0]]
    prompt_tokens, plain_prompt_tokens = (sum(o.usage.prompt_tokens for o in batch) for batch in (outputs, plain))
    assert prompt_tokens == plain_prompt_tokens + sum(map(len, more))
    assert_same_categories(outputs, plain)
    for note, output in zip(FEW_NOTES, outputs, strict=True):
        by_probability = sorted(((hashtag_probability(writer, note, 3, text), text) for text in HASHTAGS), reverse=True)
        expected = by_probability[:3]
        assert texts(output.hashtags) == [text for _, text in expected]
        assert scores(output.hashtags) == close_to([p**WRITTEN_WEIGHT for p, _ in expected])
        assert {hashtag.notes for hashtag in output.hashtags or ()} == {("n",)}


def test_candidate_longer_than_written_hashtags_is_returned(writer: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.hashtags.grounding.MIN_NEIGHBOUR_SHARE", 0.0)
    monkeypatch.setattr("model.inference.beam_search.TOKENS_PER_HASHTAG", 2)
    assert len(writer.prompt.hashtag_output(["train garden"])) == 1 + 2
    long = "train garden stone"
    neighbours = Neighbours([Neighbour("n", 1.0, (long,))])
    (output,) = generate(writer, FEW_NOTES[:1], GenerationRequest(1, find_neighbours=lambda *_: neighbours))
    assert texts(output.hashtags) == [long]
