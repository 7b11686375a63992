"""Reference decoders, which compute the engine's outputs by whole forwards without KV cache, batches or log-space
sums."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from model.dedup_key import dedup_key
from model.generation import GenerationOutput, GenerationRequest
from model.hashtags.grounding import HashtagFilter
from model.inference.beam_search import BEAMS_PER_HASHTAG, MAX_WIDTH, TOKENS_PER_HASHTAG
from model.inference.engine import TOKENS_PER_CATEGORY, Engine
from model.note import Note
from tests.conftest import FOODS
from tests.model.inference.models import token_of
from tests.model.inference.outputs import close_to, generate, probabilities, scores, texts
from tests.model.inference.samples import FEW_NOTES


@torch.inference_mode()
def hidden_states(engine: Engine, ids: Sequence[int], note_tokens: int | None = None) -> Tensor:
    """Return the hidden states (T, H) of one plain forward, without KV cache and padding. If the model has a decoder,
    that runs on the tokens after `note_tokens`, with the KV cache that the trunk has computed for these."""
    model = engine.runtime.model
    row = torch.tensor([list(ids)], device=model.device)
    mask = torch.ones_like(row)
    positions = mask.cumsum(1) - 1
    if model.decoder is None or note_tokens is None:
        hidden: Tensor = model(row, mask, positions)
        return hidden[0]
    note, after = slice(0, note_tokens), slice(note_tokens, None)
    cache = DynamicCache()
    trunk = model(row[:, note], mask[:, note], positions[:, note], cache)
    if note_tokens == len(ids):
        return trunk[0]
    return torch.cat([trunk, model(row[:, after], mask, positions[:, after], cache, decode=True)], 1)[0]


def category_log_probs(engine: Engine, note: Note, categories: tuple[str, ...]) -> Tensor:
    """Return the log probability of each category, (C,), with a separate forward for each."""
    prompt = engine.prompt
    note_ids = prompt.note(note)
    before = [*note_ids, *prompt.category_task()]
    sums = []
    for output in prompt.category_outputs(categories):
        hidden = hidden_states(engine, [*before, *output], len(note_ids))[len(before) - 1 : -1]
        log_probs = engine.runtime.model.logits(hidden).log_softmax(-1)
        sums.append(log_probs[range(len(output)), output].sum())
    return torch.stack(sums).cpu()


def category_probabilities(engine: Engine, note: Note, categories: tuple[str, ...]) -> dict[str, float]:
    """Return the probability of each category among `categories`."""
    log_probs = category_log_probs(engine, note, categories)
    return dict(zip(categories, log_probs.softmax(0).tolist(), strict=True))


def freely_written_category(engine: Engine, note: Note) -> list[int]:
    """Return the token ids of a greedily decoded category, with a forward over the whole sequence for each token."""
    prompt = engine.prompt
    note_ids = prompt.note(note)
    before = [*note_ids, *prompt.category_task()]
    written: list[int] = []
    while len(written) < TOKENS_PER_CATEGORY:
        hidden = hidden_states(engine, [*before, *written], len(note_ids))[-1]
        token = int(engine.runtime.model.logits(hidden).argmax())
        if token == prompt.end_id or prompt.decode([token]) == "\n":
            break
        written.append(token)
    return written


@cache
def end_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that complete the hashtag before them."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return [i for i, text in enumerate(texts) if re.match(r" *#|.*\n", text, re.DOTALL) or i == tokenizer.eos_token_id]


def searched_hashtags(engine: Engine, note: Note, count: int) -> tuple[list[tuple[str, float]], int]:
    """Return hashtags with their probabilities, and the number of beam tokens that the model read. The beam search is
    the engine's, in plain probabilities, with a forward over the whole sequence for each beam."""
    prompt = engine.prompt
    note_ids = prompt.note(note, count)
    before = [*note_ids, *prompt.hashtag_task(count)]
    ends = end_tokens(engine.runtime.model.tokenizer)
    own = {dedup_key(hashtag) for hashtag in note.hashtags}
    width = min(count * BEAMS_PER_HASHTAG + len(own), MAX_WIDTH)
    beams: list[tuple[float, list[int]]] = [(1.0, [])]
    finished: list[tuple[float, list[int]]] = []
    beam_tokens = 0
    for length in range(TOKENS_PER_HASHTAG + 1):
        extensions: list[tuple[float, list[int]]] = []
        for probability, ids in beams:
            hidden = hidden_states(engine, [*before, *ids], len(note_ids))[-1]
            next_token = engine.runtime.model.logits(hidden).double().softmax(-1)
            if length:
                beam_tokens += 1
                finished.append((probability * float(next_token[ends].sum()), ids))
            top = next_token.topk(width + len(ends))  # at least `width` of them are not end tokens
            extensions += [
                (probability * p, [*ids, token])
                for p, token in zip(top.values.tolist(), top.indices.tolist(), strict=True)
                if token not in ends
            ]
        beams = sorted(extensions, reverse=True)[:width]
        best = _merge_spellings(engine, finished, note)[:count]
        if len(best) == count and best[-1][1] >= beams[0][0]:
            break  # no unfinished beam is more probable
    return _merge_spellings(engine, finished, note)[:count], beam_tokens


def _merge_spellings(
    engine: Engine, finished: Sequence[tuple[float, list[int]]], note: Note
) -> list[tuple[str, float]]:
    """Return hashtags with their summed probabilities, best first, in their most probable spelling."""
    hashtags: dict[str, tuple[str, float]] = {}
    allowed = HashtagFilter.of(note, frozenset())
    for probability, ids in sorted(finished, reverse=True):
        for text, _ in engine.prompt.parse_hashtags(ids)[:1]:
            if allowed(text):
                spelling, sum_before = hashtags.get(dedup_key(text), (text, 0.0))
                hashtags[dedup_key(text)] = (spelling, sum_before + probability)
    return sorted(hashtags.values(), key=lambda hashtag: -hashtag[1])


def hashtag_probability(engine: Engine, note: Note, count: int, hashtag: str) -> float:
    """Return the probability that the model writes `hashtag` first, and then any end token."""
    return _probability(engine, note, count, engine.prompt.hashtag_output([hashtag])[:-1])


def all_hashtags(engine: Engine, note: Note, count: int, words: Sequence[str], max_words: int) -> dict[str, float]:
    """Return the probability of every hashtag of up to `max_words` of `words`, by its key."""
    by_key: dict[str, float] = defaultdict(float)
    for length in range(1, max_words + 1):
        for chosen in itertools.product(words, repeat=length):
            ids = [token_of(engine, word) for word in chosen]
            by_key[dedup_key("".join(chosen))] += _probability(engine, note, count, ids)
    return by_key


def _probability(engine: Engine, note: Note, count: int, ids: Sequence[int]) -> float:
    """Return the probability that the model writes `ids` first after the hashtag task, and then any end token."""
    note_ids = engine.prompt.note(note, count)
    before = [*note_ids, *engine.prompt.hashtag_task(count)]
    hidden = hidden_states(engine, [*before, *ids], len(note_ids))[len(before) - 1 :]
    rows = engine.runtime.model.logits(hidden).double().softmax(-1)
    ends = end_tokens(engine.runtime.model.tokenizer)
    return float(rows[range(len(ids)), list(ids)].prod() * rows[-1, ends].sum())


def assert_hashtags_match_reference(engine: Engine, note: Note, count: int, output: GenerationOutput) -> None:
    expected, beam_tokens = searched_hashtags(engine, note, count)
    assert texts(output.hashtags) == [text for text, _ in expected]
    assert scores(output.hashtags) == close_to([probability for _, probability in expected])
    assert output.usage.generated_tokens == beam_tokens


def assert_outputs_match_reference(engine: Engine) -> None:
    for note, output in zip(FEW_NOTES, generate(engine, FEW_NOTES, GenerationRequest(1, FOODS)), strict=True):
        vector = engine.runtime.model.embed(hidden_states(engine, engine.tokenize(note).ids)[-1:])[0]
        assert float(vector.cpu() @ torch.from_numpy(output.vector)) >= 0.9999
        assert probabilities(output) == pytest.approx(category_probabilities(engine, note, FOODS), abs=1e-4)
        assert_hashtags_match_reference(engine, note, 1, output)
