"""Tests of candidate scoring: exact probabilities, for as few of the neighbours' hashtags as the answer needs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import pytest

from model.dedup_key import dedup_key
from model.generation import GenerationRequest, Hashtag, Neighbour, Neighbours
from model.hashtags.grounded_ranking import GroundedRanking
from model.hashtags.grounding import MIN_WRITTEN_PROBABILITY, HashtagFilter, candidates_from, rerank
from model.inference.engine import Engine
from model.note import Note
from tests.conftest import FOODS
from tests.model.inference.outputs import (
    assert_same_categories,
    close_to,
    decode_steps,
    generate,
    prefills,
    record_forwards,
    scores,
    texts,
)
from tests.model.inference.reference import hashtag_probability
from tests.model.inference.samples import FEW_NOTES, HASHTAGS, WORDS

CARRIED = Neighbours([Neighbour("n", 1.0, HASHTAGS)])


def random_neighbours(seed: int) -> Neighbours:
    """Neighbours with random weights, whose hashtags have one to three words and often share their first words."""
    rng = random.Random(seed)
    found = []
    for i in range(8):
        hashtags = tuple({" ".join(rng.choices(WORDS[:6], k=rng.randint(1, 3))) for _ in range(rng.randint(0, 3))})
        found.append(Neighbour(f"n{i}", rng.random(), hashtags))
    return Neighbours(found[:5], found[3:])


@cache
def plain_hashtags(engine: Engine, place: int, count: int) -> tuple[Hashtag, ...]:
    """Hashtags that the model writes for the note FEW_NOTES[place] when it has no neighbours to draw on."""
    (output,) = generate(engine, [FEW_NOTES[place]], GenerationRequest(count))
    return output.hashtags or ()


def reference_hashtags(engine: Engine, note: Note, count: int, neighbours: Neighbours) -> tuple[Hashtag, ...]:
    """Answer computed from a complete search and from all candidates, each scored in its own forward."""
    candidates = candidates_from(neighbours, HashtagFilter.of(note, frozenset()))
    exact = {key: hashtag_probability(engine, note, count, candidate.text) for key, candidate in candidates.items()}
    return rerank(
        plain_hashtags(engine, FEW_NOTES.index(note), count),
        candidates,
        exact,
        count,
        engine.prompt.config.written_weights[0],
    )


@pytest.mark.parametrize(("seed", "first_tokens"), [(0, 1), (1, 4), (2, 24)])
def test_grounded_hashtags_equal_those_of_all_candidates_and_the_whole_search(
    writer: Engine, monkeypatch: pytest.MonkeyPatch, seed: int, first_tokens: int
) -> None:
    monkeypatch.setattr("model.inference.candidate_scoring.FIRST_CANDIDATE_TOKENS", first_tokens)
    neighbours = random_neighbours(seed)
    request = GenerationRequest(3, FOODS, find_neighbours=lambda *_: neighbours)
    for note, output in zip(FEW_NOTES, generate(writer, FEW_NOTES, request), strict=True):
        expected = reference_hashtags(writer, note, 3, neighbours)
        assert texts(output.hashtags) == [hashtag.text for hashtag in expected]
        assert scores(output.hashtags) == close_to([hashtag.score for hashtag in expected])
        assert [hashtag.notes for hashtag in output.hashtags or ()] == [hashtag.notes for hashtag in expected]


def test_answer_is_ranked_once(writer: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ranked, calls = GroundedRanking.ranked, []

    def count_ranked(ranking: GroundedRanking, written: Sequence[Hashtag]) -> tuple[Hashtag, ...]:
        calls.append(ranking)
        return ranked(ranking, written)

    monkeypatch.setattr(GroundedRanking, "ranked", count_ranked)
    for min_score in (0.0, 1.0):
        request = GenerationRequest(3, min_hashtag_score=min_score, find_neighbours=lambda *_: CARRIED)
        (output,) = generate(writer, FEW_NOTES[:1], request)
        assert len(output.hashtags or output.hashtags_below_min) == 3
    assert len(calls) == 2


def test_candidates_that_nothing_written_can_pass_take_no_search(
    writer: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.hashtags.grounding.NEIGHBOUR_SMOOTHING", 0.0)  # so that only candidates are returned
    monkeypatch.setattr("model.hashtags.grounding.MIN_WRITTEN_PROBABILITY", 0.0)  # so that all scores differ
    with record_forwards(writer) as forwards:
        outputs = generate(writer, FEW_NOTES, GenerationRequest(3, FOODS, find_neighbours=lambda *_: CARRIED))
    plain = generate(writer, FEW_NOTES, GenerationRequest(3, FOODS))
    assert len(forwards) == 2  # one for the notes, one for all tasks and candidates
    assert decode_steps(forwards) == 0
    assert sum(output.usage.prompt_tokens for output in outputs) == sum(map(len, prefills(forwards)))
    assert_same_categories(outputs, plain)
    for note, output in zip(FEW_NOTES, outputs, strict=True):
        by_probability = sorted(((hashtag_probability(writer, note, 3, text), text) for text in HASHTAGS), reverse=True)
        expected = by_probability[:3]
        assert texts(output.hashtags) == [text for _, text in expected]
        assert scores(output.hashtags) == close_to([p ** writer.prompt.config.written_weights[0] for p, _ in expected])
        assert {hashtag.notes for hashtag in output.hashtags or ()} == {("n",)}


def test_candidates_that_the_model_has_not_met_are_not_scored(writer: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.hashtags.grounding.MIN_WRITTEN_PROBABILITY", 0.999)
    monkeypatch.setattr("model.inference.candidate_scoring.FIRST_CANDIDATE_TOKENS", 1)
    with record_forwards(writer) as forwards:
        request = GenerationRequest(3, find_neighbours=lambda *_: CARRIED)
        (output,) = generate(writer, FEW_NOTES[:1], request)
    assert len(forwards) == 2  # one for the note, one for its tasks and the first candidate
    assert set(texts(output.hashtags) or ()) < set(HASHTAGS)


def test_candidates_without_a_chance_are_not_scored(writer: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.hashtags.grounding.NEIGHBOUR_SMOOTHING", 0.0)
    monkeypatch.setattr("model.inference.candidate_scoring.FIRST_CANDIDATE_TOKENS", 1)
    heavy, light = Neighbour("a", 1.0, ("river",)), Neighbour("b", -9.0, ("stone bread", "cat lamp"))
    with record_forwards(writer) as forwards:
        request = GenerationRequest(1, find_neighbours=lambda *_: Neighbours([heavy, light]))
        (output,) = generate(writer, FEW_NOTES[:1], request)
    assert texts(output.hashtags) == ["river"]
    assert len(forwards) == 2


def test_open_candidates_share_the_forward_of_the_first_beams(writer: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.inference.candidate_scoring.FIRST_CANDIDATE_TOKENS", 1)
    with record_forwards(writer) as forwards_without:
        generate(writer, FEW_NOTES[:1], GenerationRequest(9))
    with record_forwards(writer) as forwards:
        (output,) = generate(writer, FEW_NOTES[:1], GenerationRequest(9, find_neighbours=lambda *_: CARRIED))
    assert len(forwards) == len(forwards_without) + 1
    assert {len(ids) == 1 for ids in forwards[2]} == {True, False}
    assert output.usage.prompt_tokens == sum(map(len, prefills(forwards)))
    assert output.usage.generated_tokens == decode_steps(forwards)


def test_best_hashtag_is_announced_before_the_search_ends(writer: Engine) -> None:
    forwards_before: list[int] = []
    heavy = Neighbours([Neighbour("n", 1.0, ("stone",))])
    with record_forwards(writer) as forwards:
        request = GenerationRequest(
            3, find_neighbours=lambda *_: heavy, on_hashtag=lambda _: forwards_before.append(len(forwards))
        )
        (output,) = generate(writer, FEW_NOTES[1:2], request)
    assert (texts(output.hashtags) or [])[0] == "stone"
    assert forwards_before[0] == 2 < len(forwards)
    assert len(forwards_before) == len(output.hashtags or ())


@pytest.mark.parametrize("respell", [str.upper, "{}s".format])
def test_far_neighbour_with_another_spelling_takes_no_hashtag_away(
    writer: Engine, monkeypatch: pytest.MonkeyPatch, respell: Callable[[str], str]
) -> None:
    alone = [plain_hashtags(writer, place, 3) for place in range(len(FEW_NOTES))]
    least = min(hashtag.score for hashtags in alone for hashtag in hashtags)
    monkeypatch.setattr(writer.prompt, "config", replace(writer.prompt.config, min_hashtag_score=0.99 * least))
    for note, hashtags in zip(FEW_NOTES, alone, strict=True):
        far = Neighbours([Neighbour("far", 0.2, tuple(respell(hashtag.text) for hashtag in hashtags))])
        (output,) = generate(writer, [note], GenerationRequest(3, find_neighbours=lambda *_, far=far: far))
        keys = [dedup_key(hashtag.text) for hashtag in hashtags]
        assert [dedup_key(hashtag.text) for hashtag in output.hashtags or ()] == keys


@pytest.mark.parametrize(("stored_notes", "weight"), [(0, 0.4), (10_000, 0.1)])
def test_size_of_the_community_decides_how_much_the_model_counts(
    writer: Engine, monkeypatch: pytest.MonkeyPatch, stored_notes: int, weight: float
) -> None:
    config = replace(writer.prompt.config, written_weights=(0.4, 0.1))
    monkeypatch.setattr(writer.prompt, "config", config)
    neighbours = Neighbours([Neighbour("n", 1.0, ("river",))], stored_notes=stored_notes)
    (output,) = generate(writer, FEW_NOTES[:1], GenerationRequest(1, find_neighbours=lambda *_: neighbours))
    probability = hashtag_probability(writer, FEW_NOTES[0], 1, "river")
    assert [(hashtag.text, hashtag.score) for hashtag in output.hashtags or ()] == [
        ("river", pytest.approx(max(probability, MIN_WRITTEN_PROBABILITY) ** weight, rel=1e-3))
    ]


@pytest.mark.parametrize(("stored_notes", "agreed"), [(0, 0.41), (10_000, 0.2)])
def test_models_view_counts_more_in_a_community_that_it_agrees_with(
    writer: Engine, monkeypatch: pytest.MonkeyPatch, stored_notes: int, agreed: float
) -> None:
    config = replace(writer.prompt.config, written_weights=(0.4, 0.1), agreed_written_weights=(0.41, 0.2))
    monkeypatch.setattr(writer.prompt, "config", config)
    probability = hashtag_probability(writer, FEW_NOTES[0], 1, "river")
    monkeypatch.setattr("model.hashtags.grounding.AGREEMENT", (probability / 100, probability / 10))
    neighbours = Neighbours([Neighbour("n", 1.0, ("river",))], stored_notes=stored_notes)
    (output,) = generate(writer, FEW_NOTES[:1], GenerationRequest(1, find_neighbours=lambda *_: neighbours))
    assert [(hashtag.text, hashtag.score) for hashtag in output.hashtags or ()] == [
        ("river", pytest.approx(max(probability, MIN_WRITTEN_PROBABILITY) ** agreed, rel=1e-3))
    ]


@pytest.mark.parametrize("budget", [0, 1, 4])
def test_candidates_beyond_the_budget_are_left_to_the_search(
    writer: Engine, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    monkeypatch.setattr("model.inference.candidate_scoring.CANDIDATE_TOKENS", budget)
    note, carried = FEW_NOTES[1], ("stone", "bread", "salt", "river")
    assert [len(ids) for ids in writer.prompt.hashtag_tokens(carried)] == [1] * 4
    neighbours = Neighbours([Neighbour(text, 1 - i / 100, (text,)) for i, text in enumerate(carried)])
    candidates = candidates_from(neighbours, HashtagFilter.of(note, frozenset()))
    exact = {text: hashtag_probability(writer, note, 3, text) for text in carried[:budget]}
    expected = rerank(
        plain_hashtags(writer, FEW_NOTES.index(note), 3), candidates, exact, 3, writer.prompt.config.written_weights[0]
    )
    (output,) = generate(writer, [note], GenerationRequest(3, find_neighbours=lambda *_: neighbours))
    assert texts(output.hashtags) == [hashtag.text for hashtag in expected]
    assert scores(output.hashtags) == close_to([hashtag.score for hashtag in expected])


def test_candidate_longer_than_written_hashtags_is_returned(writer: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.hashtags.grounding.NEIGHBOUR_SMOOTHING", 0.0)
    monkeypatch.setattr("model.inference.beam_search.TOKENS_PER_HASHTAG", 2)
    assert len(writer.prompt.hashtag_output(["train garden"])) == 1 + 2
    long = "train garden stone"
    neighbours = Neighbours([Neighbour("n", 1.0, (long,))])
    (output,) = generate(writer, FEW_NOTES[:1], GenerationRequest(1, find_neighbours=lambda *_: neighbours))
    assert texts(output.hashtags) == [long]
