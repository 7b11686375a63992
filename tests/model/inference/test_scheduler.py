"""Scheduler: requests begin and end at any step, share a bounded cache, and do not change each other's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Never

import pytest

from model.generation import MAX_CATEGORY_TOKENS, GenerationRequest, Neighbour, Neighbours, Usage
from model.hashtags.grounding import MAX_CANDIDATES
from model.inference.engine import Engine
from model.inference.runtime import Span, SpanOutput
from model.inference.trie import Trie
from model.note import Note
from tests.conftest import FOODS
from tests.model.inference.models import fresh_engine
from tests.model.inference.outputs import assert_same_hashtags, assert_same_vectors, generate, generate_alone
from tests.model.inference.samples import FEW_NOTES, HASHTAGS, NOTES, WORDS

pytestmark = pytest.mark.slow


def test_request_begins_and_finishes_at_any_step(writer: Engine) -> None:
    """A vector takes one step while an earlier request goes on; an aborted request frees its blocks."""
    engine = fresh_engine(writer)
    long, aborted = (engine.add_request(engine.tokenize(note, GenerationRequest(4, FOODS))) for note in FEW_NOTES[:2])
    assert engine.step() == []
    vector = engine.add_request(engine.tokenize(FEW_NOTES[2]))
    engine.abort(aborted)
    ((running, output),) = engine.step()
    assert running is vector
    assert_same_vectors([output], generate(writer, FEW_NOTES[2:3]))
    finished = []
    while not finished:
        finished = engine.step()
    ((running, output),) = finished
    assert running is long
    assert_same_hashtags([output], generate(writer, FEW_NOTES[:1], GenerationRequest(4)))
    assert engine.step() == []
    assert engine.runtime.pool.free == engine.runtime.pool.count


def test_usage_of_a_running_request_grows_to_that_of_its_output(writer: Engine) -> None:
    engine = fresh_engine(writer)
    running = engine.add_request(engine.tokenize(FEW_NOTES[0], GenerationRequest(4)))
    used, finished = [engine.usage(running)], []
    while not finished:
        finished = engine.step()
        used.append(engine.usage(running))
    generated = [usage.generated_tokens for usage in used]
    assert generated == sorted(generated)
    assert used[0] == Usage()
    assert used[1].prompt_tokens == used[-1].prompt_tokens > 0
    assert used[-1] == finished[0][1].usage


def test_usage_of_a_running_request_separates_candidates_from_beams(
    writer: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A far neighbour's candidates are scored in the forward of the beams' first step, since they may not be enough."""
    monkeypatch.setattr("model.inference.candidate_scoring.FIRST_CANDIDATE_TOKENS", 1)
    engine = fresh_engine(writer)
    neighbours = Neighbours([Neighbour("n", 0.01, HASHTAGS)])
    tokenized = engine.tokenize(FEW_NOTES[0], GenerationRequest(4, find_neighbours=lambda *_: neighbours))
    running = engine.add_request(tokenized)
    used, finished = [], []
    while not finished:
        finished = engine.step()
        used.append(engine.usage(running))
    assert used[2].prompt_tokens > used[1].prompt_tokens
    assert used[2].generated_tokens > 0
    assert used[-1] == finished[0][1].usage


def test_failed_forward_leaves_no_request_and_no_blocks(writer: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fresh_engine(writer)
    engine.add_request(engine.tokenize(FEW_NOTES[0], GenerationRequest(2)))
    engine.step()
    engine.add_request(engine.tokenize(FEW_NOTES[1], GenerationRequest(2)))
    with monkeypatch.context() as patch:
        patch.setattr(engine.runtime, "forward", failing_forward)
        with pytest.raises(MemoryError):
            engine.step()
    assert engine.runtime.pool.free == engine.runtime.pool.count
    request = GenerationRequest(2)
    assert_same_hashtags(generate(engine, FEW_NOTES, request), generate(writer, FEW_NOTES, request))


@pytest.mark.parametrize("categories", [(), FOODS])
def test_request_that_fails_on_its_own_leaves_those_beside_it(
    writer: Engine, monkeypatch: pytest.MonkeyPatch, categories: tuple[str, ...]
) -> None:
    """Its computation fails before its first forward, where it has categories, or when it needs neighbours."""

    def fail(*_: object) -> Never:
        raise LookupError("poison")

    engine = fresh_engine(writer)
    monkeypatch.setattr(engine._category_scorer, "closed_set", fail)
    others = [engine.add_request(engine.tokenize(note, GenerationRequest(2))) for note in FEW_NOTES[:2]]
    poison = engine.tokenize(Note(title="cat"), GenerationRequest(2, categories, find_neighbours=fail))
    failing = engine.add_request(poison)
    finished: list[object] = []
    failed: list[tuple[object, Exception]] = []
    while len(finished) < len(others):
        finished += [running for running, _ in engine.step()]
        failed += engine.take_failed()
    assert set(finished) == set(others)
    assert [running for running, _ in failed] == [failing]
    assert engine.take_failed() == []
    assert engine.runtime.pool.free == engine.runtime.pool.count
    with pytest.raises(LookupError, match="poison"):
        engine.run([engine.tokenize(FEW_NOTES[2]), poison])
    assert engine.runtime.pool.free == engine.runtime.pool.count


def test_failed_forward_forgets_the_request_that_had_failed_on_its_own(
    writer: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fresh_engine(writer)
    with monkeypatch.context() as patch:
        patch.setattr(engine._category_scorer, "closed_set", failing_forward)
        engine.add_request(engine.tokenize(FEW_NOTES[0], GenerationRequest(2, FOODS)))
    engine.add_request(engine.tokenize(FEW_NOTES[1]))
    monkeypatch.setattr(engine.runtime, "forward", failing_forward)
    with pytest.raises(MemoryError):
        engine.step()
    assert engine.take_failed() == []


def failing_forward(spans: Sequence[Span]) -> list[SpanOutput]:
    raise MemoryError


@pytest.mark.parametrize("candidates", [0, MAX_CANDIDATES])
def test_requests_that_fit_never_run_out_of_blocks(writer: Engine, candidates: int) -> None:
    """Neighbours with many long hashtags take blocks too."""
    engine = fresh_engine(writer, blocks=60)
    hashtags = tuple(" ".join(WORDS[(i + j * (i % 3 + 1)) % 16] for j in range(20)) for i in range(candidates))
    neighbours = Neighbours([Neighbour("n", 1.0, hashtags)])
    request = GenerationRequest(4, FOODS)
    if candidates:
        request = GenerationRequest(1, FOODS, find_neighbours=lambda *_: neighbours)
    tokenized = engine.tokenize(FEW_NOTES[1], request)
    running = []
    while engine.can_add(tokenized):
        running.append(engine.add_request(tokenized))
    assert 1 <= len(running) < 6
    finished = []
    while len(finished) < len(running):
        finished += engine.step()
    assert engine.can_add(tokenized)
    assert engine.runtime.pool.free == 60


def test_longest_note_and_closed_set_fit_the_cache(writer: Engine) -> None:
    names = tuple(f"{i} {'cat ' * 12}" for i in range(500))
    outputs = writer.prompt.category_outputs(names)
    count = next(n for n in range(500, 0, -1) if len(Trie.build(outputs[:n]).inner) <= MAX_CATEGORY_TOKENS)
    assert count < len(names)
    note = Note(title="cat " * 5000, content="cat " * 5000, hashtags=("cat " * 8,) * 30)
    assert writer.can_add(writer.tokenize(note, GenerationRequest(10, names[:count])))


def test_note_does_not_wait_for_a_long_closed_set(writer: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fresh_engine(writer)
    note = engine.tokenize(Note(title="cat"))
    monkeypatch.setattr("model.inference.scheduler.PREFILL_TOKENS_PER_STEP", 2 * len(note.ids))
    long_closed_set = GenerationRequest(categories=tuple(f"cat {word}" for word in WORDS))
    long = engine.add_request(engine.tokenize(FEW_NOTES[0], long_closed_set))
    short = engine.add_request(note)
    assert {running for running, _ in engine.step()} == {long, short}


def test_cache_size_and_token_budget_change_no_hashtag(writer: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do the hashtag counts that other notes of the batch request."""
    notes = NOTES[:16]
    requests = [GenerationRequest(i % 5) for i in range(len(notes))]
    alone = generate_alone(writer, notes, requests)
    assert len({output.usage.generated_tokens for output in alone}) > 5
    for blocks, step_tokens in ((24, 1), (40, 200), (1024, 4096)):
        monkeypatch.setattr("model.inference.scheduler.PREFILL_TOKENS_PER_STEP", step_tokens)
        small = fresh_engine(writer, blocks)
        assert_same_hashtags(generate(small, notes, requests), alone)
        assert_same_hashtags(generate(small, notes[::-1], requests[::-1])[::-1], alone)
        assert small.runtime.pool.free == blocks
