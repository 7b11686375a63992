"""Tests of the sampler: batched logits equal those of each row alone, and draws follow the probabilities."""

from __future__ import annotations

import pytest
import torch
from transformers import Cache

from model.data.generated_notes import Assignment
from model.data.sampler import CACHE_STEP, Sampler, SteppedLayer
from model.inference.engine import Engine


@pytest.fixture
def sampler(tiny_engine: Engine) -> Sampler:
    return Sampler(tiny_engine.runtime.model)


def test_logits_with_shared_context_equal_each_row_alone(sampler: Sampler) -> None:
    cache = Cache(layer_class_to_replicate=SteppedLayer)
    context, rows = [5, 6, 7], [[8, 9], [10, 11, 12]]
    with torch.inference_mode():
        sampler._logits(torch.tensor([context]), torch.ones(1, 3, dtype=torch.int64), cache)
        cache.batch_repeat_interleave(2)
        mask = torch.tensor([[1, 1, 1, 0, 1, 1], [1] * 6])
        together = sampler._logits(torch.tensor([[0, 8, 9], [10, 11, 12]]), mask, cache)
        for row, logits in zip(rows, together, strict=True):
            alone = sampler.model.backbone(input_ids=torch.tensor([context + row])).logits[0, -1]
            assert logits == pytest.approx(alone, abs=1e-4)


def test_draws_follow_the_probabilities(sampler: Sampler) -> None:
    logits = torch.log(torch.tensor([[0.6, 0.3, 0.1, 1e-4]])).expand(4000, 4) * 0.9  # cancels the sampler's temperature
    shares = torch.bincount(sampler._draw(logits), minlength=4) / 4000
    assert shares == pytest.approx(torch.tensor([0.6, 0.3, 0.1, 0.0]), abs=0.03)


def test_texts_are_repeatable_and_bounded(sampler: Sampler) -> None:
    prompts = [Assignment("leek soup", "Food").prompt(), Assignment("a much longer topic than the other", "").prompt()]
    first = Sampler(sampler.model, seed=3).write("Notes:\n", prompts, 12)
    assert first == Sampler(sampler.model, seed=3).write("Notes:\n", prompts, 12)
    assert first != Sampler(sampler.model, seed=4).write("Notes:\n", prompts, 12)
    assert all(len(sampler.tokenizer(text).input_ids) <= 24 for text in first)
    assert not any("\n" in text for text in first)


def test_cache_beyond_a_step_keeps_all_states_in_order() -> None:
    layer = SteppedLayer()
    states = torch.arange(2 * 3 * (2 * CACHE_STEP + 5) * 4, dtype=torch.float32).view(2, 3, -1, 4)
    for part in states.split(3, dim=2):
        keys, values = layer.update(part, -part)
    assert torch.equal(keys, states)
    assert torch.equal(values, -states)


def test_cache_with_rows_removed_goes_on_with_the_others() -> None:
    layer = SteppedLayer()
    states = torch.arange(4 * 2 * 3, dtype=torch.float32).view(4, 1, 2, 3)
    layer.update(states, states)
    layer.batch_select_indices(torch.tensor([1, 3]))
    keys, _ = layer.update(-states[[1, 3]], -states[[1, 3]])
    assert torch.equal(keys, torch.cat([states[[1, 3]], -states[[1, 3]]], 2))
