"""Engine: what a note costs, and outputs that depend neither on the batch nor on what else was requested."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, PreTrainedTokenizerBase

from model.generation import GenerationRequest
from model.inference import torch_runtime
from model.inference.engine import TOKENS_PER_CATEGORY, Engine
from model.inference.trie import Trie
from model.note import Note
from tests.conftest import FOODS
from tests.model.inference.models import SHORT_WINDOWS, opposite_rows, random_engine, writes_only
from tests.model.inference.outputs import (
    assert_same_categories,
    assert_same_hashtags,
    assert_same_vectors,
    decode_steps,
    generate,
    generate_alone,
    inner_tokens,
    prefills,
    record_forwards,
    top_tens,
    vectors,
)
from tests.model.inference.reference import assert_outputs_match_reference, freely_written_category, hidden_states
from tests.model.inference.samples import CLOSED_SETS, FEW_NOTES, NOTES, WORDS
from tests.models import COMMON, FAMILIES, in_torch

pytestmark = pytest.mark.slow


def assert_three_in_one(engine: Engine) -> None:
    """Assert that one request for everything gives the outputs of a separate request for each part."""
    outputs = generate(engine, FEW_NOTES, GenerationRequest(2, FOODS))
    assert_same_vectors(outputs, generate(engine, FEW_NOTES))
    assert_same_hashtags(outputs, generate(engine, FEW_NOTES, GenerationRequest(hashtags=2)))
    assert_same_categories(outputs, generate(engine, FEW_NOTES, GenerationRequest(categories=FOODS)))


def assert_batch_invariance(engine: Engine) -> None:
    request = GenerationRequest(2, FOODS)
    together, alone = generate(engine, FEW_NOTES, request), generate_alone(engine, FEW_NOTES, request)
    assert_same_vectors(together, alone)
    assert_same_hashtags(together, alone)
    assert_same_categories(together, alone)


def test_run_empty_batch_returns_nothing(tiny_engine: Engine) -> None:
    assert tiny_engine.run([]) == []


def test_vector_has_unit_length_and_the_engine_dimension(tiny_engine: Engine) -> None:
    rows = vectors(generate(tiny_engine, NOTES))
    assert rows.shape == (30, tiny_engine.dimension)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


def test_vector_request_reads_nothing_else(tiny_engine: Engine) -> None:
    for output in generate(tiny_engine, FEW_NOTES):
        assert (output.hashtags, output.hashtags_reason, output.categories) == (None, None, None)
        assert output.usage.generated_tokens == 0
        assert output.first_token_seconds is None


def test_vector_does_not_depend_on_its_batch(tiny_engine: Engine) -> None:
    together, alone = generate(tiny_engine, NOTES), generate_alone(tiny_engine, NOTES)
    assert_same_vectors(together, alone)
    pool = vectors(alone)
    assert top_tens(vectors(together), pool) == top_tens(pool, pool)


def test_different_notes_have_different_vectors(tiny_engine: Engine) -> None:
    """Otherwise the tests of batch invariance would prove nothing."""
    rows = vectors(generate(tiny_engine, NOTES))
    assert (rows @ rows.T - np.eye(len(NOTES))).max() < 0.9999


def test_batch_order_does_not_change_vectors(tiny_engine: Engine) -> None:
    assert_same_vectors(generate(tiny_engine, NOTES[::-1])[::-1], generate(tiny_engine, NOTES))


def test_vectors_equal_those_of_right_padded_training(tiny_engine: Engine) -> None:
    model = tiny_engine.runtime.model
    rows = [model.prompt.note(note) for note in NOTES]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)
    with torch.inference_mode():
        hidden = model(ids, mask, (mask.cumsum(1) - 1).clamp(min=0))
        padded = model.embed(hidden[torch.arange(len(rows)), mask.sum(1) - 1]).cpu().numpy()
    assert (vectors(generate(tiny_engine, NOTES)) * padded).sum(1).min() >= 0.9999


def test_note_first_prompt_prefills_each_note_once(note_first: Engine) -> None:
    prompt = note_first.prompt
    with record_forwards(note_first) as forwards:
        outputs = generate(note_first, FEW_NOTES, GenerationRequest(3, FOODS))
    trie = Trie.build(prompt.category_outputs(FOODS))
    tasks = [*prompt.hashtag_task(3), *prompt.category_task(), *inner_tokens(trie)]
    assert [list(ids) for ids in forwards[0]] == [[*prompt.note(note), *tasks] for note in FEW_NOTES]
    assert len(prefills(forwards)) == len(FEW_NOTES)
    assert decode_steps(forwards) == sum(output.usage.generated_tokens for output in outputs)


def test_task_first_prompt_prefills_again_for_hashtags(task_first: Engine) -> None:
    prompt = task_first.prompt
    requests = [
        GenerationRequest(3),
        GenerationRequest(),
        GenerationRequest(0, FOODS),
        GenerationRequest(1, FOODS),
        GenerationRequest(),
    ]
    trie = Trie.build(prompt.category_outputs(FOODS))
    with record_forwards(task_first) as forwards:
        generate(task_first, FEW_NOTES, requests)
    expected = []
    for note, request in zip(FEW_NOTES, requests, strict=True):
        branch = [*prompt.category_task(), *inner_tokens(trie)] if request.categories else []
        expected.append([*prompt.note(note), *branch])
        if request.hashtags:
            expected.append([*prompt.note(note, request.hashtags), *prompt.hashtag_task(request.hashtags)])
    assert [list(ids) for ids in forwards[0]] == expected
    assert prefills(forwards) == expected
    with record_forwards(task_first) as forwards:
        generate(task_first, FEW_NOTES, GenerationRequest(0, FOODS))
    assert len(forwards) == 1


def test_usage_counts_the_tokens_of_all_forwards(writer: Engine) -> None:
    requests = [
        GenerationRequest(3, FOODS),
        GenerationRequest(2),
        GenerationRequest(0, CLOSED_SETS[1]),
        GenerationRequest(),
        GenerationRequest(1, CLOSED_SETS[4]),
    ]
    with record_forwards(writer) as forwards:
        outputs = generate(writer, FEW_NOTES, requests)
    prompt = writer.prompt
    for note, output, request in zip(FEW_NOTES, outputs, requests, strict=True):
        expected = len(prompt.note(note))
        if request.hashtags:
            expected += len(prompt.hashtag_task(request.hashtags))
            expected += 0 if prompt.one_prefill else len(prompt.note(note, request.hashtags))
        if request.categories:
            category_outputs = prompt.category_outputs(request.categories)
            expected += len(prompt.category_task()) + len(Trie.build(category_outputs).inner)
        assert output.usage.prompt_tokens == expected
    assert sum(output.usage.prompt_tokens for output in outputs) == sum(map(len, prefills(forwards)))
    assert sum(output.usage.generated_tokens for output in outputs) == decode_steps(forwards)


def test_three_requests_cost_the_note_three_times(writer: Engine) -> None:
    requests = [GenerationRequest(), GenerationRequest(hashtags=2), GenerationRequest(categories=FOODS)]
    apart = [generate(writer, FEW_NOTES, request) for request in requests]
    together = generate(writer, FEW_NOTES, GenerationRequest(2, FOODS))
    for note, whole, *parts in zip(FEW_NOTES, together, *apart, strict=True):
        note_tokens = len(writer.tokenize(note).ids)
        assert sum(part.usage.prompt_tokens for part in parts) == whole.usage.prompt_tokens + 2 * note_tokens


def test_tokenized_request_counts_its_prompt_tokens(writer: Engine) -> None:
    tokenized = writer.tokenize(FEW_NOTES[1], GenerationRequest(3, FOODS))
    with record_forwards(writer) as forwards:
        writer.run([writer.tokenize(FEW_NOTES[1], GenerationRequest(3))])
    assert sum(map(len, prefills(forwards))) == tokenized.tokens + len(writer.prompt.hashtag_task(3))


@pytest.mark.parametrize("engine", ["tiny_engine", "note_first", "task_first"])
def test_one_request_reads_what_three_requests_read(engine: str, request: pytest.FixtureRequest) -> None:
    assert_three_in_one(request.getfixturevalue(engine))


@pytest.mark.parametrize("engine", ["tiny_engine", "note_first", "task_first"])
def test_outputs_do_not_depend_on_the_batch(engine: str, request: pytest.FixtureRequest) -> None:
    assert_batch_invariance(request.getfixturevalue(engine))


@pytest.mark.parametrize("family", FAMILIES)
def test_family_outputs_match_reference_in_any_batch(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = random_engine(FAMILIES[family], tokenizer)
    assert_three_in_one(engine)
    assert_batch_invariance(engine)
    assert_outputs_match_reference(engine)


@pytest.mark.parametrize("family", SHORT_WINDOWS)
def test_window_shorter_than_the_note_matches_reference(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = random_engine(SHORT_WINDOWS[family], tokenizer)
    assert_three_in_one(engine)
    assert_batch_invariance(engine)
    assert_outputs_match_reference(engine)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_spans_in_groups_of_like_size_give_the_outputs_of_one_group(
    family: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = random_engine((FAMILIES | SHORT_WINDOWS)[family], tokenizer)
    request = GenerationRequest(2, FOODS)
    in_one_group = generate(engine, FEW_NOTES, request)
    monkeypatch.setattr(torch_runtime, "MAX_UNSPLIT_CELLS", 0)
    in_several = generate(engine, FEW_NOTES, request)
    assert_same_vectors(in_one_group, in_several)
    assert_same_hashtags(in_one_group, in_several)
    assert_same_categories(in_one_group, in_several)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = random_engine(FAMILIES[family], tokenizer)
    model, ids = engine.runtime.model, engine.tokenize(FEW_NOTES[1]).ids
    with torch.inference_mode():
        expected = model.backbone(input_ids=torch.tensor([ids], device=model.device)).logits[0]
        logits = model.logits(hidden_states(engine, ids))
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_each_prompt_version_matches_reference(writer: Engine) -> None:
    assert_outputs_match_reference(writer)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
def test_eager_attention_as_in_training_matches_reference(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    config = (SHORT_WINDOWS | {"llama": FAMILIES["llama"]})[family]
    engine = random_engine(config, tokenizer)
    engine.runtime.model.backbone.set_attn_implementation("eager")
    assert_outputs_match_reference(engine)
    assert config._attn_implementation != "eager"  # other tests share the configuration


def test_real_backbone_vectors_do_not_depend_on_the_batch(backbone_folder: Path, tmp_path: Path) -> None:
    engine = in_torch(backbone_folder, tmp_path)
    assert engine.dimension == 576
    notes = [Note(" ".join(WORDS[i : i + i % 3]), " ".join(WORDS[: 2 * i])) for i in range(8)]
    together, alone = generate(engine, notes), generate_alone(engine, notes)
    assert_same_vectors(together, alone)
    pool = vectors(alone)
    assert top_tens(vectors(together), pool) == top_tens(pool, pool)


@pytest.mark.parametrize("step_tokens", [1, 300, 100_000])
def test_freely_written_category_equals_greedy_reference(
    writer: Engine, monkeypatch: pytest.MonkeyPatch, step_tokens: int
) -> None:
    monkeypatch.setattr("model.inference.scheduler.PREFILL_TOKENS_PER_STEP", step_tokens)
    notes = NOTES[:16]
    expected = [freely_written_category(writer, note) for note in notes]
    assert len({len(ids) for ids in expected}) > 3, "every category ends at the same step: the test shows too little"
    assert writer.write_category(notes) == [writer.prompt.decode(ids).strip() for ids in expected]


def test_write_category_without_notes_returns_nothing(tiny_engine: Engine) -> None:
    assert tiny_engine.write_category([]) == []


def test_endless_category_stops_at_the_token_bound(tokenizer: PreTrainedTokenizerBase) -> None:
    engine = writes_only(random_engine(LlamaConfig(**COMMON), tokenizer), [" coffee", " river"], opposite_rows())
    for text in engine.write_category(FEW_NOTES):
        assert len(text.split()) == TOKENS_PER_CATEGORY
        assert set(text.split()) <= {"coffee", "river"}
