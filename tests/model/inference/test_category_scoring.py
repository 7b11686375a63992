"""Category scoring: exact probabilities of closed sets, and the prior of names that training has not shown."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.category_head import MIN_NOTES_PER_CATEGORY, CategoryHead
from model.category_regressions import VectorRegression
from model.config import NoteLLMConfig
from model.generation import CategoriesTooLong, GenerationRequest, Neighbour, Neighbours
from model.inference.category_scoring import PART_TOKENS
from model.inference.engine import Engine
from model.inference.trie import Trie
from model.note import Note
from model.platt_scaling import scale_top
from model.prompt import Prompt
from tests.conftest import FOODS
from tests.model.inference.models import fresh_engine
from tests.model.inference.outputs import (
    assert_same_categories,
    assert_same_hashtags,
    assert_same_vectors,
    generate,
    prefills,
    probabilities,
    record_forwards,
)
from tests.model.inference.reference import category_log_probs, category_probabilities
from tests.model.inference.samples import CLOSED_SETS, FEW_NOTES, HASHTAGS, NOTES
from tests.models import in_torch


def test_probabilities_equal_scoring_each_category_alone(tiny_engine: Engine) -> None:
    """The closed sets of one batch differ in length."""
    requests = [GenerationRequest(categories=categories) for categories in CLOSED_SETS]
    for note, output, request in zip(FEW_NOTES, generate(tiny_engine, FEW_NOTES, requests), requests, strict=True):
        if request.categories:
            expected = category_probabilities(tiny_engine, note, request.categories)
            assert probabilities(output) == pytest.approx(expected, abs=1e-4)
        else:
            assert output.categories is None


def test_whole_closed_set_is_returned_most_probable_first(tiny_engine: Engine) -> None:
    categories = tiny_engine.categories
    for output in generate(tiny_engine, FEW_NOTES, GenerationRequest(categories=categories)):
        in_order = [category.probability for category in output.categories or ()]
        assert set(probabilities(output)) == set(categories)
        assert len(in_order) == len(categories)
        assert in_order == sorted(in_order, reverse=True)
        assert sum(in_order) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("fixture", ["partly_trained", "partly_trained_activated"])
def test_unseen_names_are_scored_less_their_prior(fixture: str, request: pytest.FixtureRequest) -> None:
    partly_trained: Engine = request.getfixturevalue(fixture)
    for_foods = GenerationRequest(categories=FOODS)
    names = [Note(title=name) for name in FOODS]
    prior = torch.stack([category_log_probs(partly_trained, name, FOODS) for name in names]).mean(0)
    cosines = torch.from_numpy(partly_trained.embed(FEW_NOTES) @ partly_trained.embed(names).T)
    generate(partly_trained, FEW_NOTES[:1], for_foods)  # reads the names, which are then cached
    outputs = generate(partly_trained, FEW_NOTES, for_foods)
    for note, cosine, output in zip(FEW_NOTES, cosines, outputs, strict=True):
        weighted_cosine = NoteLLMConfig().name_cosine_weight * cosine
        scores = category_log_probs(partly_trained, note, FOODS) - prior + weighted_cosine
        expected = dict(zip(FOODS, scores.softmax(0).tolist(), strict=True))
        assert probabilities(output) == pytest.approx(expected, abs=1e-3)
        assert output.usage == generate(partly_trained, [note], for_foods)[0].usage


def test_trained_names_keep_their_probabilities(partly_trained: Engine, tiny_engine: Engine) -> None:
    request = GenerationRequest(categories=("Travel", "Food"))
    assert_same_categories(generate(partly_trained, FEW_NOTES, request), generate(tiny_engine, FEW_NOTES, request))


def test_prior_of_a_long_closed_set_is_bounded_work(partly_trained: Engine) -> None:
    """Four names are read with the tries, and all of them for their vectors; the next request reads none."""
    names = tuple(f"{first} {second}" for first in "abcdefghijklmnop" for second in "abcdefghijklmnop")
    request = GenerationRequest(categories=names, all_categories=True)
    with record_forwards(partly_trained) as forwards:
        generate(partly_trained, FEW_NOTES[:1], request)
    parts = Trie.build(partly_trained.prompt.category_outputs(names)).split(PART_TOKENS)
    longest_name = max(len(partly_trained.prompt.note(Note(title=name))) for name in names)
    assert sum(len(ids) > longest_name for ids in prefills(forwards)) == (4 + 1) * len(parts)
    with record_forwards(partly_trained) as forwards:
        generate(partly_trained, FEW_NOTES[:1], request)
    assert len(forwards) == len(parts) > 1


@pytest.mark.parametrize("fixture", ["tiny_engine", "partly_trained", "partly_trained_activated"])
@pytest.mark.parametrize("hashtags", [0, 2])
def test_closed_set_read_in_parts_is_scored_as_in_one_forward(
    fixture: str, hashtags: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = request.getfixturevalue(fixture).runtime
    generation = GenerationRequest(hashtags, LARGE)
    whole = generate(Engine(runtime), FEW_NOTES, generation)
    monkeypatch.setattr("model.inference.category_scoring.PART_TOKENS", 3)
    engine = Engine(runtime)
    assert len(engine._category_scorer.tries(LARGE)) > 2
    with record_forwards(engine) as forwards:
        in_parts = generate(engine, FEW_NOTES, generation)
    assert_same_categories(in_parts, whole)
    assert_same_hashtags(in_parts, whole)
    assert_same_vectors(in_parts, whole)
    used = sum(output.usage.prompt_tokens for output in in_parts)
    assert used == sum(map(len, prefills(forwards)))
    assert engine.runtime.pool.free == engine.runtime.pool.count


def test_no_forward_has_more_than_a_part_of_a_closed_set(
    partly_trained: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither do those that read the names for the prior, alone or for their vectors."""
    part_tokens = 20
    monkeypatch.setattr("model.inference.category_scoring.PART_TOKENS", part_tokens)
    engine = Engine(partly_trained.runtime)
    names = tuple(f"{first} {second}" for first in "abcdefghijklmnop" for second in "abcdefghijklmnop")
    with record_forwards(engine) as forwards:
        (output,) = generate(engine, FEW_NOTES[:1], GenerationRequest(categories=names, all_categories=True))
    most = engine.prompt.max_note_tokens() + len(engine.prompt.category_task()) + part_tokens
    assert max(sum(map(len, spans)) for spans in forwards) <= most < len(names)
    assert set(probabilities(output)) == set(names)


def test_requests_with_parts_of_closed_sets_never_run_out_of_blocks(
    partly_trained: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.inference.category_scoring.PART_TOKENS", 3)
    engine = fresh_engine(partly_trained, blocks=40)
    tokenized = engine.tokenize(FEW_NOTES[0], GenerationRequest(2, LARGE))
    running = []
    while engine.can_add(tokenized):
        running.append(engine.add_request(tokenized))
    assert len(running) > 1
    finished = []
    while len(finished) < len(running):
        finished += engine.step()
    assert engine.runtime.pool.free == 40


def test_prior_is_computed_once_for_concurrent_requests_and_the_first_one_counts_it(partly_trained: Engine) -> None:
    names = ("Trains", "Soups", "Gardens")
    engine = Engine(partly_trained.runtime)
    with record_forwards(engine) as forwards:
        together = generate(engine, FEW_NOTES, GenerationRequest(categories=names))
    name_prompts = [tuple(engine.prompt.note(Note(title=name))) for name in names]
    assert sum(ids in name_prompts for spans in forwards for ids in spans) == len(names)
    first, *others = (output.usage.prompt_tokens for output in together)
    assert first + sum(others) == sum(map(len, prefills(forwards)))
    later, *same = (output.usage.prompt_tokens for output in generate(engine, FEW_NOTES, GenerationRequest(0, names)))
    assert (first > later, others) == (True, same)
    assert_same_categories(together, generate(engine, FEW_NOTES, GenerationRequest(categories=names)))


def test_tries_and_prior_of_the_set_that_is_to_be_kept_outlive_those_of_others(
    partly_trained: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.inference.category_scoring.MAX_CLOSED_SETS", 2)
    engine = Engine(partly_trained.runtime)
    kept, *others = [("Trains", "Soups"), ("Gardens", "Soups"), ("Trains", "Gardens"), ("Soups", "Gardens")]
    engine.keep_closed_set(kept)
    kept_tries = engine._category_scorer.tries(kept)

    def forwards_for(names: tuple[str, ...]) -> int:
        with record_forwards(engine) as forwards:
            generate(engine, FEW_NOTES[:1], GenerationRequest(categories=names))
        return len(forwards)

    for names in (kept, *others):
        assert forwards_for(names) > 1
    assert forwards_for(kept) == 1
    assert engine._category_scorer.tries(kept) is kept_tries
    assert forwards_for(others[0]) > 1


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_prior_goes_on_where_a_request_that_ended_early_left_it(partly_trained: Engine, steps: int) -> None:
    request = GenerationRequest(categories=("Trains", "Soups", "Gardens"))
    expected = generate(Engine(partly_trained.runtime), FEW_NOTES[:1], request)
    engine = Engine(partly_trained.runtime)
    with record_forwards(engine) as before:
        aborted = engine.add_request(engine.tokenize(FEW_NOTES[0], request))
        for _ in range(steps):
            engine.step()
        engine.abort(aborted)
    with record_forwards(engine) as after:
        assert_same_categories(generate(engine, FEW_NOTES[:1], request), expected)
    names = {tuple(engine.prompt.note(Note(title=name))) for name in request.categories}
    with record_forwards(engine_anew := Engine(partly_trained.runtime)) as whole:
        generate(engine_anew, FEW_NOTES[:1], request)

    def names_read(forwards: list[list[tuple[int, ...]]]) -> int:
        spans = [tuple(ids) for spans in forwards for ids in spans]
        return sum(any(ids[: len(name)] == name for name in names) for ids in spans)

    assert names_read(before) > 0
    assert names_read([*before, *after]) == names_read(whole), "no name is read twice for one purpose"


def test_run_ends_beside_a_request_that_computes_the_same_prior(partly_trained: Engine) -> None:
    request = GenerationRequest(categories=("Trains", "Soups", "Gardens"))
    expected = generate(Engine(partly_trained.runtime), FEW_NOTES[:2], request)
    engine = Engine(partly_trained.runtime)
    running = engine.add_request(engine.tokenize(FEW_NOTES[0], request))
    engine.step()
    assert_same_categories(generate(engine, FEW_NOTES[1:2], request), expected[1:])
    finished = []
    while not finished:
        finished = engine.step()
    assert finished[0][0] is running
    assert_same_categories([finished[0][1]], expected[:1])


@pytest.fixture
def read_names(monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of names that are read from a closed set of three or more, lowered to 2."""
    monkeypatch.setattr("model.inference.category_scoring.MAX_WHOLE_SET", 2)
    monkeypatch.setattr("model.inference.category_scoring.CATEGORY_SHORTLIST", 2)
    return 2


LARGE = ("Trains", "Soups and stews", "Gardens", "Soups", "Tea houses")


@pytest.mark.parametrize("fixture", ["partly_trained", "partly_trained_activated"])
def test_large_closed_set_is_read_where_the_vector_makes_names_likely(
    fixture: str, read_names: int, request: pytest.FixtureRequest
) -> None:
    engine: Engine = request.getfixturevalue(fixture)
    whole = generate(engine, FEW_NOTES, GenerationRequest(categories=LARGE, all_categories=True))
    in_part = generate(engine, FEW_NOTES, GenerationRequest(categories=LARGE))
    cosines = engine.embed(FEW_NOTES) @ engine.embed([Note(title=name) for name in LARGE]).T
    for cosine, all_names, some in zip(cosines, whole, in_part, strict=True):
        nearest = [LARGE[i] for i in np.argsort(-cosine)[:read_names]]
        share = sum(probabilities(all_names)[name] for name in nearest)
        expected = {name: probabilities(all_names)[name] / share for name in nearest}
        assert set(probabilities(all_names)) == set(LARGE)
        assert probabilities(some) == pytest.approx(expected, abs=1e-3)
        assert some.usage.prompt_tokens < all_names.usage.prompt_tokens
    assert_same_vectors(in_part, whole)


@pytest.mark.parametrize("grounded", [False, True])
def test_large_closed_set_is_read_beside_hashtags_as_without_them(
    writer: Engine, read_names: int, grounded: bool
) -> None:
    engine = Engine(writer.runtime, random_head(LARGE, writer.dimension))
    neighbours = Neighbours([Neighbour("n", 1.0, HASHTAGS)])
    hashtags = GenerationRequest(2, find_neighbours=(lambda *_: neighbours) if grounded else None)
    free = engine.runtime.pool.free
    together = generate(engine, FEW_NOTES, replace(hashtags, categories=LARGE))
    assert_same_categories(together, generate(engine, FEW_NOTES, GenerationRequest(categories=LARGE)))
    assert_same_hashtags(together, generate(engine, FEW_NOTES, hashtags))
    assert_same_vectors(together, generate(engine, FEW_NOTES, hashtags))
    assert {len(probabilities(output)) for output in together} == {read_names}
    assert engine.runtime.pool.free == free


def test_large_closed_set_of_trained_names_is_read_whole_without_a_head(tiny_engine: Engine, read_names: int) -> None:
    (output,) = generate(tiny_engine, FEW_NOTES[:1], GenerationRequest(categories=FOODS))
    assert len(FOODS) > read_names
    assert set(probabilities(output)) == set(FOODS)


def test_large_closed_set_that_the_head_knows_is_scored_as_when_all_names_are_read(
    tiny_engine: Engine, read_names: int
) -> None:
    """The head chooses the names and is pooled, although it was fitted to too few notes of the chosen names alone."""
    rare = replace(random_head(LARGE, tiny_engine.dimension), counts=np.array([1, 1, 1, 1, 5 * MIN_NOTES_PER_CATEGORY]))
    assert not rare.covers(LARGE[:4])
    engine = Engine(tiny_engine.runtime, rare)
    whole = generate(engine, FEW_NOTES, GenerationRequest(categories=LARGE, all_categories=True))
    for output, all_names in zip(generate(engine, FEW_NOTES, GenerationRequest(categories=LARGE)), whole, strict=True):
        likeliest = [LARGE[i] for i in np.argsort(-rare.log_probs_by_vector(LARGE, output.vector))[:read_names]]
        share = sum(probabilities(all_names)[name] for name in likeliest)
        expected = {name: probabilities(all_names)[name] / share for name in likeliest}
        assert probabilities(output) == pytest.approx(expected, rel=1e-3)


def test_closed_set_at_the_bound_is_read_whole(
    partly_trained: Engine, read_names: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound, read in ((len(LARGE), len(LARGE)), (len(LARGE) - 1, read_names)):
        monkeypatch.setattr("model.inference.category_scoring.MAX_WHOLE_SET", bound)
        (output,) = generate(partly_trained, FEW_NOTES[:1], GenerationRequest(categories=LARGE))
        assert len(probabilities(output)) == read


def random_head(names: tuple[str, ...], dimension: int) -> CategoryHead:
    """Return a head for these names with random weights and enough notes for each."""
    rng = np.random.default_rng(0)
    counts = np.full(len(names), MIN_NOTES_PER_CATEGORY)
    weights = rng.normal(scale=4, size=(len(names), dimension)).astype(np.float32)
    regression = VectorRegression(weights, np.zeros(len(names), np.float32))
    return CategoryHead(names, counts, np.tile([0.3, 0.6], (len(names), 1)), regression)


def test_highest_probability_is_scaled_as_the_head_says(tiny_engine: Engine) -> None:
    head = random_head(FOODS, tiny_engine.dimension)
    scaled = replace(head, platt_weights=np.tile([0.5, -0.1], (len(FOODS), 1)))
    plain, after = (
        probabilities(generate(Engine(tiny_engine.runtime, one), FEW_NOTES[:1], GenerationRequest(categories=FOODS))[0])
        for one in (head, scaled)
    )
    expected = scale_top(np.array(list(plain.values())), np.array([0.5, -0.1]))
    assert list(after) == list(plain)
    assert list(after.values()) == pytest.approx(expected.tolist())


def test_no_other_request_waits_for_a_prior(partly_trained: Engine) -> None:
    engine = Engine(partly_trained.runtime)
    names = tuple(f"{first} {second}" for first in "abcdefgh" for second in "abcdefgh")
    request = GenerationRequest(categories=names, all_categories=True)
    first, second = (engine.add_request(engine.tokenize(note, request)) for note in FEW_NOTES[:2])
    vector = engine.add_request(engine.tokenize(FEW_NOTES[2]))
    assert [running for running, _ in engine.step()] == [vector]
    engine.abort(first)  # it was reading the names; the second request now takes over
    finished = []
    while not finished:
        finished = engine.step()
    assert finished[0][0] is second
    assert_same_categories([finished[0][1]], generate(partly_trained, FEW_NOTES[1:2], request))
    assert engine.runtime.pool.free == engine.runtime.pool.count


@pytest.mark.parametrize("engine", ["tiny_engine", "partly_trained"])
def test_order_of_a_closed_set_changes_no_probability(request: pytest.FixtureRequest, engine: str) -> None:
    loaded: Engine = request.getfixturevalue(engine)
    forth, back = (generate(loaded, FEW_NOTES, GenerationRequest(categories=names)) for names in (FOODS, FOODS[::-1]))
    assert_same_categories(forth, back)


def test_closed_set_of_one_is_certain(tiny_engine: Engine) -> None:
    (output,) = generate(tiny_engine, FEW_NOTES[:1], GenerationRequest(categories=("Only",)))
    assert probabilities(output) == {"Only": 1.0}


def test_closed_set_beyond_its_token_bound_is_refused(writer: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    request = GenerationRequest(categories=FOODS)
    tokens = len(Trie.build(writer.prompt.category_outputs(FOODS)).inner)
    monkeypatch.setattr("model.inference.category_scoring.MAX_CATEGORY_TOKENS", tokens)
    assert len(probabilities(generate(Engine(writer.runtime), FEW_NOTES[:1], request)[0])) == len(FOODS)
    monkeypatch.setattr("model.inference.category_scoring.MAX_CATEGORY_TOKENS", tokens - 1)
    with pytest.raises(CategoriesTooLong, match=f"more than {tokens - 1} tokens; shorten them"):
        Engine(writer.runtime).tokenize(FEW_NOTES[0], request)


def test_closed_set_beyond_its_token_bound_is_tokenised_only_in_part(
    writer: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenised: list[str] = []
    outputs_of = Prompt.category_outputs

    def record(prompt: Prompt, categories: Sequence[str]) -> list[list[int]]:
        tokenised.extend(categories)
        return outputs_of(prompt, categories)

    names = tuple(f"{number} {' '.join(NOTES[number % len(NOTES)].title.split()[:9])}" for number in range(1000))
    monkeypatch.setattr(Prompt, "category_outputs", record)
    monkeypatch.setattr("model.inference.category_scoring.MAX_CATEGORY_TOKENS", 50)
    with pytest.raises(CategoriesTooLong):
        Engine(writer.runtime).tokenize(FEW_NOTES[0], GenerationRequest(categories=names))
    assert 0 < len(tokenised) < len(names) / 2


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_temperature_changes_category_probabilities_alone(
    tiny_checkpoint: Path, tiny_engine: Engine, tmp_path: Path, temperature: float
) -> None:
    folder = tmp_path / "calibrated"
    shutil.copytree(tiny_checkpoint, folder)
    replace(NoteLLMConfig.load(folder), category_temperature=temperature).save(folder)
    calibrated = in_torch(folder, tmp_path)
    assert calibrated.space == tiny_engine.space
    request = GenerationRequest(2, FOODS)
    plain_outputs, calibrated_outputs = (generate(e, FEW_NOTES, request) for e in (tiny_engine, calibrated))
    for plain, tempered in zip(plain_outputs, calibrated_outputs, strict=True):
        powers = {name: p ** (1 / temperature) for name, p in probabilities(plain).items()}
        softmax = {name: power / sum(powers.values()) for name, power in powers.items()}
        assert probabilities(tempered) == pytest.approx(softmax, rel=1e-4)
        assert list(probabilities(tempered)) == list(probabilities(plain))
        assert (plain.categories[0].probability < tempered.categories[0].probability) == (temperature < 1)
        np.testing.assert_array_equal(tempered.vector, plain.vector)
        assert tempered.hashtags == plain.hashtags
    assert calibrated.write_category(FEW_NOTES) == tiny_engine.write_category(FEW_NOTES)
