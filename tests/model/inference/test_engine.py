"""Engine: the prefills that a note costs, and answers that do not depend on the batch or on what else was asked for."""

from __future__ import annotations

import itertools
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from string import ascii_letters
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen3Config,
)

from model.config import DEFAULT_PROMPT, NoteLLMConfig
from model.generation import (
    MAX_CATEGORY_TOKENS,
    VECTOR_ONLY,
    CategoriesTooLong,
    GenerationOutput,
    GenerationRequest,
    Hashtag,
    Neighbour,
    Neighbours,
    Vocabulary,
)
from model.hashtags.grounding import MAX_CANDIDATES, WRITTEN_WEIGHT, HashtagFilter, dedup_key
from model.inference.engine import (
    BEAMS_PER_HASHTAG,
    NAME_COSINE_WEIGHT,
    TOKENS_PER_CATEGORY,
    TOKENS_PER_HASHTAG,
    Engine,
    Trie,
)
from model.inference.runtime import Span, SpanOutput
from model.inference.torch_runtime import TorchRuntime
from model.note import Note, hashtag_key
from model.notellm import NoteLLM
from tests.conftest import COMMON, FAMILIES, FOODS, MIXED_LAYERS, in_torch

TAGS = ("coffee", "coffee bread", "river!", "train garden", ".song")
WORDS = [
    "coffee",
    "river",
    "cat",
    "train",
    "garden",
    "lamp",
    "paint",
    "salt",
    "winter",
    "song",
    "bread",
    "mirror",
    "cloud",
    "boat",
    "pepper",
    "stone",
]
NOTES = [
    Note(
        title=" ".join(WORDS[i % 7 : i % 7 + i % 4]),
        content=" ".join(WORDS[(i * 5 + j * (i + 1)) % 16] for j in range((i * i) % 97)),
        hashtags=tuple(WORDS[i % 11 : i % 11 + i % 3]),
    )
    for i in range(30)
]
"""From nothing at all to a content that is cut."""
FEW = [NOTES[i] for i in (0, 7, 2, 19, 11)]

ENDS = [" #", "#", "<|im_end|>", "\n"]
"""Tokens that end a hashtag, as words are written here."""

CLOSED_SETS = [FOODS, ("Music", "Film"), (), ("Only",), ("Travel by Train", "Travel", *FOODS[:3], "旅行", "🍜")]

SHORT_WINDOWS: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**COMMON, use_sliding_window=True, sliding_window=16, layer_types=MIXED_LAYERS),
    "gemma3": Gemma3TextConfig(**COMMON, sliding_window=16, layer_types=MIXED_LAYERS),
    "mistral": MistralConfig(**COMMON, sliding_window=16),
}


@pytest.fixture(scope="module")
def tokenizer(backbone_folder: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(backbone_folder)
    return loaded


def random_engine(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, version: str = DEFAULT_PROMPT
) -> Engine:
    """A random model of any family with the real tokenizer, float32."""
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 2
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model = NoteLLM(NoteLLMConfig(name="random", dimension=32, prompt_version=version), backbone, tokenizer)
    return Engine(TorchRuntime(model.eval().requires_grad_(False)))


def writes_only(engine: Engine, texts: Sequence[str], weights: Tensor, others: float = -torch.inf) -> Engine:
    """Make the engine's model write only tokens of `texts`, each with its row of `weights` (len(texts), H); `others`
    is the logit of any other."""
    ids = [token_of(engine, text) for text in texts]
    output = nn.Linear(weights.shape[1], len(engine.runtime.model.tokenizer))
    nn.init.zeros_(output.weight)
    nn.init.constant_(output.bias, others)
    output.weight.data[ids] = weights
    output.bias.data[ids] = 0
    engine.runtime.model.backbone.set_output_embeddings(output.requires_grad_(False))
    return engine


def token_of(engine: Engine, text: str) -> int:
    (token,) = engine.runtime.model.tokenizer(text, add_special_tokens=False).input_ids
    assert isinstance(token, int)
    return token


def random_rows(count: int, seed: int = 1) -> Tensor:
    """Weights (count, 64) whose logits are random and near enough to each other that none is as good as certain."""
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(seed)) / 4


def make_writer(tokenizer: PreTrainedTokenizerBase, version: str) -> Engine:
    """A random model that writes few words and many '#', so that its rows end at different steps and ways."""
    texts = [*ENDS, ".", *(f" {word}" for word in WORDS)]
    engine = random_engine(LlamaConfig(**COMMON), tokenizer, version)
    return writes_only(engine, texts, random_rows(len(texts)), others=-30)  # categories consist of others


def by_table(tokenizer: PreTrainedTokenizerBase, after: Mapping[str, Mapping[str, float]]) -> Engine:
    """A model whose next token depends on the last one alone: `after[last]` are the probabilities of the next ones,
    and `after[""]` those of a hashtag's first token. What is not told has the probability 0."""
    engine = random_engine(LlamaConfig(**COMMON), tokenizer)
    for layer in engine.runtime.model.backbone.base_model.layers:  # each hands on its input
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    embedding = engine.runtime.model.backbone.get_input_embeddings().weight
    nn.init.zeros_(embedding)
    texts = sorted({text for nexts in after.values() for text in nexts})
    weights = torch.full((len(texts), 64), -1e3)
    for place, (last, nexts) in enumerate(after.items()):
        assert sum(nexts.values()) == pytest.approx(1)
        embedding.data[token_of(engine, last) if last else engine.prompt.hashtag_task(1)[-1], place] = 1e3
        for text, probability in nexts.items():
            weights[texts.index(text), place] = math.log(probability)
    return writes_only(engine, texts, weights / 8)  # the final norm makes 8 of the one feature that is not 0


@pytest.fixture(scope="module")
def note_first(tokenizer: PreTrainedTokenizerBase) -> Engine:
    return make_writer(tokenizer, "note-first/1")


@pytest.fixture(scope="module")
def short(tokenizer: PreTrainedTokenizerBase) -> Engine:
    return make_writer(tokenizer, "note-first/2")


@pytest.fixture(scope="module")
def task_first(tokenizer: PreTrainedTokenizerBase) -> Engine:
    return make_writer(tokenizer, "task-first/1")


@pytest.fixture(params=["note_first", "short", "task_first"])
def writer(request: pytest.FixtureRequest) -> Engine:
    """One of each prompt version."""
    made: Engine = request.getfixturevalue(request.param)
    return made


def read(
    engine: Engine, notes: Sequence[Note], wanted: GenerationRequest | Sequence[GenerationRequest] = VECTOR_ONLY
) -> list[GenerationOutput]:
    each = [wanted] * len(notes) if isinstance(wanted, GenerationRequest) else wanted
    return engine.run([engine.tokenize(note, w) for note, w in zip(notes, each, strict=True)])


def vectors(readings: Sequence[GenerationOutput]) -> np.ndarray[Any, Any]:
    return np.stack([reading.vector for reading in readings])


def alone(engine: Engine, notes: Sequence[Note], wanted: GenerationRequest = VECTOR_ONLY) -> list[GenerationOutput]:
    return [read(engine, [note], wanted)[0] for note in notes]


def assert_same_vectors(some: Sequence[GenerationOutput], others: Sequence[GenerationOutput]) -> None:
    assert (vectors(some) * vectors(others)).sum(1).min() >= 0.9999


def assert_same_hashtags(some: Sequence[GenerationOutput], others: Sequence[GenerationOutput]) -> None:
    for one, other in zip(some, others, strict=True):
        assert texts(one.hashtags) == texts(other.hashtags)
        assert scores(one.hashtags) == near(scores(other.hashtags))
        assert one.hashtags_reason == other.hashtags_reason
        assert one.usage.generated_tokens == other.usage.generated_tokens


def near(expected: Any) -> Any:
    """Within the rounding of float32, also where a probability is tiny."""
    return pytest.approx(expected, rel=1e-4, abs=0)


def assert_same_categories(some: Sequence[GenerationOutput], others: Sequence[GenerationOutput]) -> None:
    for one, other in zip(some, others, strict=True):
        assert probabilities(one) == pytest.approx(probabilities(other), abs=1e-4)


def texts(hashtags: tuple[Hashtag, ...] | None) -> list[str] | None:
    return None if hashtags is None else [hashtag.text for hashtag in hashtags]


def scores(hashtags: tuple[Hashtag, ...] | None) -> list[float]:
    return [hashtag.score for hashtag in hashtags or ()]


def probabilities(reading: GenerationOutput) -> dict[str, float]:
    return {category.name: category.probability for category in reading.categories or ()}


def top_tens(vectors: np.ndarray[Any, Any], among: np.ndarray[Any, Any]) -> list[list[int]]:
    return [list(map(int, row[:10])) for row in np.argsort(-vectors @ among.T, axis=1)]


@contextmanager
def passes(engine: Engine) -> Iterator[list[list[tuple[int, ...]]]]:
    """Of every forward while this is open, the ids that each sequence was given."""
    seen: list[list[tuple[int, ...]]] = []
    forward = engine.runtime.forward

    def look(spans: Sequence[Span]) -> list[SpanOutput]:
        seen.append([span.ids for span in spans])
        return forward(spans)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.runtime, "forward", look)
        yield seen


def prefills(seen: Sequence[Sequence[tuple[int, ...]]]) -> list[list[int]]:
    """What was given at once, of more than a token."""
    return [list(ids) for step in seen for ids in step if len(ids) > 1]


def inner_tokens(trie: Trie) -> list[int]:
    return [trie.tokens[node] for node in trie.inner]


def single_steps(seen: Sequence[Sequence[tuple[int, ...]]]) -> int:
    return sum(len(ids) == 1 for step in seen for ids in step)


@torch.inference_mode()
def hidden_of(engine: Engine, ids: Sequence[int]) -> Tensor:
    """(T, H), from one plain forward: no cache, no padding."""
    row = torch.tensor([list(ids)])
    mask = torch.ones_like(row)
    hidden: Tensor = engine.runtime.model(row, mask, mask.cumsum(1) - 1)
    return hidden[0]


def category_log_probs_by_recomputing(engine: Engine, note: Note, categories: tuple[str, ...]) -> Tensor:
    """Each category's whole sequence through a forward of its own. (C,)"""
    prompt = engine.prompt
    before = [*prompt.note(note), *prompt.category_task()]
    sums = []
    for output in prompt.category_outputs(categories):
        hidden = hidden_of(engine, [*before, *output])[len(before) - 1 : -1]
        log_probs = engine.runtime.model.logits(hidden).log_softmax(-1)
        sums.append(log_probs[range(len(output)), output].sum())
    return torch.stack(sums)


def category_by_recomputing(engine: Engine, note: Note, categories: tuple[str, ...]) -> dict[str, float]:
    log_probs = category_log_probs_by_recomputing(engine, note, categories)
    return dict(zip(categories, log_probs.softmax(0).tolist(), strict=True))


def freely_by_recomputing(engine: Engine, note: Note) -> list[int]:
    """Ids of a freely written category, with the whole sequence computed again for each token."""
    prompt = engine.prompt
    before = [*prompt.note(note), *prompt.category_task()]
    written: list[int] = []
    while len(written) < TOKENS_PER_CATEGORY:
        token = int(engine.runtime.model.logits(hidden_of(engine, [*before, *written])[-1]).argmax())
        if token == prompt.end_id or prompt.decode([token]) == "\n":
            break
        written.append(token)
    return written


@cache
def ends_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that say that a hashtag was whole before them."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return [i for i, text in enumerate(texts) if re.match(r" *#|.*\n", text, re.DOTALL) or i == tokenizer.eos_token_id]


def hashtags_by_recomputing(engine: Engine, note: Note, count: int) -> tuple[list[tuple[str, float]], int]:
    """The same beam search with the whole sequence computed again for each beginning, in plain probabilities: the
    hashtags, and how many tokens of beginnings the model was given."""
    prompt = engine.prompt
    before = [*prompt.note(note, count), *prompt.hashtag_task(count)]
    ends = ends_of(engine.runtime.model.tokenizer)
    beams = count * BEAMS_PER_HASHTAG
    beginnings: list[tuple[float, list[int]]] = [(1.0, [])]
    whole: list[tuple[float, list[int]]] = []
    given = 0
    for length in range(TOKENS_PER_HASHTAG + 1):
        longer: list[tuple[float, list[int]]] = []
        for probability, ids in beginnings:
            after = engine.runtime.model.logits(hidden_of(engine, [*before, *ids])[-1]).double().softmax(-1)
            if length:
                given += 1
                whole.append((probability * float(after[ends].sum()), ids))
            likely = after.topk(beams + len(ends))  # so many are no ends, at the least
            longer += [
                (probability * p, [*ids, token])
                for p, token in zip(likely.values.tolist(), likely.indices.tolist(), strict=True)
                if token not in ends
            ]
        beginnings = sorted(longer, reverse=True)[:beams]
        best = merged(engine, whole, note)[:count]
        if len(best) == count and best[-1][1] >= beginnings[0][0]:
            break  # what is still to be found is no more probable
    return merged(engine, whole, note)[:count], given


def hashtag_by_recomputing(engine: Engine, note: Note, count: int, hashtag: str) -> float:
    """The probability that the model writes it first, and then any end."""
    prompt = engine.prompt
    before = [*prompt.note(note, count), *prompt.hashtag_task(count)]
    ids = prompt.hashtag_output([hashtag])[:-1]
    rows = engine.runtime.model.logits(hidden_of(engine, [*before, *ids])[len(before) - 1 :]).double().softmax(-1)
    return float(rows[range(len(ids)), ids].prod() * rows[-1, ends_of(engine.runtime.model.tokenizer)].sum())


def known(engine: Engine, hashtags: Sequence[str]) -> Vocabulary:
    vocabulary = engine.vocabulary()
    vocabulary.add(hashtags)
    return vocabulary


def merged(engine: Engine, whole: Sequence[tuple[float, list[int]]], note: Note) -> list[tuple[str, float]]:
    """Hashtags with their probabilities, best first, spelled as they are most probably."""
    hashtags: dict[str, tuple[str, float]] = {}
    allowed = HashtagFilter.of(note, frozenset())
    for probability, ids in sorted(whole, reverse=True):
        for first, _ in [each for each in engine.prompt.parse_hashtags(ids)[:1] if allowed(each[0])]:
            spelled, so_far = hashtags.get(dedup_key(first), (first, 0.0))
            hashtags[dedup_key(first)] = (spelled, so_far + probability)
    return sorted(hashtags.values(), key=lambda pair: -pair[1])


def check_hashtags_against_recomputing(engine: Engine, note: Note, count: int, reading: GenerationOutput) -> None:
    expected, given = hashtags_by_recomputing(engine, note, count)
    assert texts(reading.hashtags) == [text for text, _ in expected]
    assert scores(reading.hashtags) == near([probability for _, probability in expected])
    assert reading.usage.generated_tokens == given


def all_hashtags(engine: Engine, note: Note, count: int, words: Sequence[str], most: int) -> dict[str, float]:
    """The probability of every hashtag of up to `most` of `words`, by its key."""
    prompt, tokenizer = engine.prompt, engine.prompt.tokenizer
    before = [*prompt.note(note, count), *prompt.hashtag_task(count)]
    found: dict[str, float] = defaultdict(float)
    for length in range(1, most + 1):
        for chosen in itertools.product(words, repeat=length):
            ids = [token_of(engine, word) for word in chosen]
            rows = (
                engine.runtime.model.logits(hidden_of(engine, [*before, *ids])[len(before) - 1 :]).double().softmax(-1)
            )
            probability = rows[range(length), ids].prod() * rows[-1, ends_of(tokenizer)].sum()
            found[dedup_key("".join(chosen))] += float(probability)
    return found


def test_an_empty_batch_has_no_readings(tiny_engine: Engine) -> None:
    assert tiny_engine.run([]) == []


def test_a_vector_has_unit_length_and_the_dimension_that_is_told(tiny_engine: Engine) -> None:
    found = vectors(read(tiny_engine, NOTES))
    assert found.shape == (30, tiny_engine.dimension)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_what_was_not_asked_for_is_not_read(tiny_engine: Engine) -> None:
    for reading in read(tiny_engine, FEW):
        assert (reading.hashtags, reading.hashtags_reason, reading.categories) == (None, None, None)
        assert reading.usage.generated_tokens == 0
        assert reading.first_token_seconds is None


def test_a_vector_does_not_depend_on_its_batch(tiny_engine: Engine) -> None:
    together, apart = read(tiny_engine, NOTES), alone(tiny_engine, NOTES)
    assert_same_vectors(together, apart)
    index = vectors(apart)
    assert top_tens(vectors(together), index) == top_tens(index, index)


def test_notes_that_differ_have_vectors_that_differ(tiny_engine: Engine) -> None:
    """Else batch invariance would say nothing."""
    found = vectors(read(tiny_engine, NOTES))
    assert (found @ found.T - np.eye(len(NOTES))).max() < 0.9999


def test_the_order_of_a_batch_changes_nothing(tiny_engine: Engine) -> None:
    assert_same_vectors(read(tiny_engine, NOTES[::-1])[::-1], read(tiny_engine, NOTES))


def test_padding_on_the_left_equals_padding_on_the_right(tiny_engine: Engine) -> None:
    """Training pads on the right."""
    model = tiny_engine.runtime.model
    rows = [model.prompt.note(note) for note in NOTES]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.inference_mode():
        hidden = model(ids, mask, (mask.cumsum(1) - 1).clamp(min=0))
        right = model.embed(hidden[torch.arange(len(rows)), mask.sum(1) - 1]).numpy()
    assert (vectors(read(tiny_engine, NOTES)) * right).sum(1).min() >= 0.9999


def test_a_note_passes_through_the_model_once_whatever_is_asked_of_it(note_first: Engine) -> None:
    prompt = note_first.prompt
    with passes(note_first) as seen:
        readings = read(note_first, FEW, GenerationRequest(3, FOODS))
    trie = Trie.build(prompt.category_outputs(FOODS))
    tasks = [*prompt.hashtag_task(3), *prompt.category_task(), *inner_tokens(trie)]
    assert [list(ids) for ids in seen[0]] == [[*prompt.note(note), *tasks] for note in FEW]
    # Then only what the model may write, token by token.
    assert len(prefills(seen)) == len(FEW)
    assert single_steps(seen) == sum(reading.usage.generated_tokens for reading in readings)


def test_with_the_task_first_a_note_passes_through_the_model_again_for_hashtags_alone(task_first: Engine) -> None:
    prompt = task_first.prompt
    wanted = [
        GenerationRequest(3),
        GenerationRequest(),
        GenerationRequest(0, FOODS),
        GenerationRequest(1, FOODS),
        GenerationRequest(),
    ]
    trie = Trie.build(prompt.category_outputs(FOODS))
    with passes(task_first) as seen:
        read(task_first, FEW, wanted)
    expected = []
    for note, want in zip(FEW, wanted, strict=True):
        branch = [*prompt.category_task(), *inner_tokens(trie)] if want.categories else []
        expected.append([*prompt.note(note), *branch])
        if want.hashtags:
            expected.append([*prompt.note(note, want.hashtags), *prompt.hashtag_task(want.hashtags)])
    assert [list(ids) for ids in seen[0]] == expected
    assert prefills(seen) == expected
    with passes(task_first) as seen:
        read(task_first, FEW, GenerationRequest(0, FOODS))
    assert len(seen) == 1


def test_usage_is_what_passed_through_the_model(writer: Engine) -> None:
    wanted = [
        GenerationRequest(3, FOODS),
        GenerationRequest(2),
        GenerationRequest(0, CLOSED_SETS[1]),
        GenerationRequest(),
        GenerationRequest(1, CLOSED_SETS[4]),
    ]
    with passes(writer) as seen:
        readings = read(writer, FEW, wanted)
    prompt = writer.prompt
    for note, reading, want in zip(FEW, readings, wanted, strict=True):
        expected = len(prompt.note(note))
        if want.hashtags:
            expected += len(prompt.hashtag_task(want.hashtags))
            expected += 0 if prompt.one_prefill else len(prompt.note(note, want.hashtags))
        if want.categories:
            outputs = prompt.category_outputs(want.categories)
            expected += len(prompt.category_task()) + len(Trie.build(outputs).inner)
        assert reading.usage.prompt_tokens == expected
    assert sum(reading.usage.prompt_tokens for reading in readings) == sum(map(len, prefills(seen)))
    assert sum(reading.usage.generated_tokens for reading in readings) == single_steps(seen)


def test_three_calls_cost_the_note_three_times(writer: Engine) -> None:
    asked = [GenerationRequest(), GenerationRequest(hashtags=2), GenerationRequest(categories=FOODS)]
    apart = [read(writer, FEW, wanted) for wanted in asked]
    together = read(writer, FEW, GenerationRequest(2, FOODS))
    for note, whole, *parts in zip(FEW, together, *apart, strict=True):
        note_tokens = len(writer.tokenize(note).ids)
        assert sum(part.usage.prompt_tokens for part in parts) == whole.usage.prompt_tokens + 2 * note_tokens


def check_three_in_one(engine: Engine) -> None:
    together = read(engine, FEW, GenerationRequest(2, FOODS))
    assert_same_vectors(together, read(engine, FEW))
    assert_same_hashtags(together, read(engine, FEW, GenerationRequest(hashtags=2)))
    assert_same_categories(together, read(engine, FEW, GenerationRequest(categories=FOODS)))


def check_batch_invariance(engine: Engine) -> None:
    together, apart = read(engine, FEW, GenerationRequest(2, FOODS)), alone(engine, FEW, GenerationRequest(2, FOODS))
    assert_same_vectors(together, apart)
    assert_same_hashtags(together, apart)
    assert_same_categories(together, apart)


def check_against_recomputing(engine: Engine) -> None:
    for note, reading in zip(FEW, read(engine, FEW, GenerationRequest(1, FOODS)), strict=True):
        vector = engine.runtime.model.embed(hidden_of(engine, engine.tokenize(note).ids)[-1:])[0]
        assert float(vector @ torch.from_numpy(reading.vector)) >= 0.9999
        assert probabilities(reading) == pytest.approx(category_by_recomputing(engine, note, FOODS), abs=1e-4)
        check_hashtags_against_recomputing(engine, note, 1, reading)


@pytest.mark.parametrize("engine", ["tiny_engine", "note_first", "task_first"])
def test_what_is_read_together_equals_what_is_read_apart(engine: str, request: pytest.FixtureRequest) -> None:
    check_three_in_one(request.getfixturevalue(engine))


@pytest.mark.parametrize("engine", ["tiny_engine", "note_first", "task_first"])
def test_nothing_that_is_read_depends_on_the_batch(engine: str, request: pytest.FixtureRequest) -> None:
    check_batch_invariance(request.getfixturevalue(engine))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_the_same_in_one_pass_and_in_any_batch(
    family: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    engine = random_engine(FAMILIES[family], tokenizer)
    check_three_in_one(engine)
    check_batch_invariance(engine)
    check_against_recomputing(engine)


@pytest.mark.parametrize("family", SHORT_WINDOWS)
def test_a_window_shorter_than_the_note_changes_nothing(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = random_engine(SHORT_WINDOWS[family], tokenizer)
    check_three_in_one(engine)
    check_batch_invariance(engine)
    check_against_recomputing(engine)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_family(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = random_engine(FAMILIES[family], tokenizer)
    ids = engine.tokenize(FEW[1]).ids
    with torch.inference_mode():
        expected = engine.runtime.model.backbone(input_ids=torch.tensor([ids])).logits[0]
        torch.testing.assert_close(engine.runtime.model.logits(hidden_of(engine, ids)), expected, atol=1e-4, rtol=1e-4)


def test_every_prompt_version_reads_what_computing_everything_again_reads(writer: Engine) -> None:
    check_against_recomputing(writer)


def test_category_probabilities_equal_scoring_each_category_alone(tiny_engine: Engine) -> None:
    """Also with other closed sets in the batch, of other lengths."""
    wanted = [GenerationRequest(categories=categories) for categories in CLOSED_SETS]
    for note, reading, want in zip(FEW, read(tiny_engine, FEW, wanted), wanted, strict=True):
        if want.categories:
            expected = category_by_recomputing(tiny_engine, note, want.categories)
            assert probabilities(reading) == pytest.approx(expected, abs=1e-4)
        else:
            assert reading.categories is None


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
def test_plain_attention_as_in_training_reads_the_same(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = random_engine((SHORT_WINDOWS | {"llama": FAMILIES["llama"]})[family], tokenizer)
    engine.runtime.model.backbone.set_attn_implementation("eager")
    check_against_recomputing(engine)


def test_the_whole_closed_set_is_answered_most_probable_first(tiny_engine: Engine) -> None:
    categories = tiny_engine.categories
    for reading in read(tiny_engine, FEW, GenerationRequest(categories=categories)):
        found = [category.probability for category in reading.categories or ()]
        assert set(probabilities(reading)) == set(categories)
        assert len(found) == len(categories)
        assert found == sorted(found, reverse=True)
        assert sum(found) == pytest.approx(1, abs=1e-5)


@pytest.fixture
def trained(tiny_checkpoint: Path, tmp_path: Path) -> Engine:
    """Its training has shown Food and Travel."""
    folder = tmp_path / "trained"
    shutil.copytree(tiny_checkpoint, folder)
    replace(NoteLLMConfig.load(folder), trained_categories=("Food", "Travel")).save(folder)
    return in_torch(folder, tmp_path)


def test_of_names_that_training_has_not_shown_what_they_say_alone_is_taken_off(trained: Engine) -> None:
    names = [Note(title=name) for name in FOODS]
    prior = torch.stack([category_log_probs_by_recomputing(trained, name, FOODS) for name in names]).mean(0)
    cosines = torch.from_numpy(trained.embed(FEW) @ trained.embed(names).T)
    for note, cosine, reading in zip(
        FEW, cosines, read(trained, FEW, GenerationRequest(categories=FOODS)), strict=True
    ):
        scores = category_log_probs_by_recomputing(trained, note, FOODS) - prior + NAME_COSINE_WEIGHT * cosine
        expected = dict(zip(FOODS, scores.softmax(0).tolist(), strict=True))
        assert probabilities(reading) == pytest.approx(expected, abs=1e-3)
        assert reading.usage == read(trained, [note], GenerationRequest(categories=FOODS))[0].usage


def test_names_that_training_has_shown_keep_their_probabilities(trained: Engine, tiny_engine: Engine) -> None:
    wanted = GenerationRequest(categories=("Travel", "Food"))
    assert_same_categories(read(trained, FEW, wanted), read(tiny_engine, FEW, wanted))


def test_what_names_say_alone_is_bounded_work_for_a_long_list(trained: Engine) -> None:
    """The names' vectors, and four of them through the trie."""
    names = tuple(f"{first} {second}" for first in "abcdefghijklmnop" for second in "abcdefghijklmnop")
    with passes(trained) as seen:
        read(trained, FEW[:1], GenerationRequest(categories=names))
    nodes = len(Trie.build(trained.prompt.category_outputs(names)).inner)
    assert sum(len(ids) > nodes for ids in prefills(seen)) == 4 + 1
    with passes(trained) as seen:
        read(trained, FEW[:1], GenerationRequest(categories=names))
    assert len(seen) == 1


def test_names_are_read_once_for_all_that_ask_for_them_at_the_same_time(trained: Engine) -> None:
    names = ("Trains", "Soups", "Gardens")
    of = Engine(trained.runtime)
    with passes(of) as seen:
        together = read(of, FEW, GenerationRequest(categories=names))
    alone = [tuple(of.prompt.note(Note(title=name))) for name in names]
    assert sum(ids in alone for step in seen for ids in step) == len(names)
    assert_same_categories(together, read(of, FEW, GenerationRequest(categories=names)))


def test_no_other_reading_waits_for_the_names_of_a_closed_set(trained: Engine) -> None:
    of = Engine(trained.runtime)
    names = tuple(f"{first} {second}" for first in "abcdefgh" for second in "abcdefgh")
    first, second = (of.add_request(of.tokenize(note, GenerationRequest(categories=names))) for note in FEW[:2])
    vector = of.add_request(of.tokenize(FEW[2]))
    assert [ended for ended, _ in of.step()] == [vector]
    of.abort(first)  # who read the names; the other takes it over
    ended = []
    while not ended:
        ended = of.step()
    assert ended[0][0] is second
    assert_same_categories([ended[0][1]], read(trained, FEW[1:2], GenerationRequest(categories=names)))
    assert of.runtime.pool.free == of.runtime.pool.count


@pytest.mark.parametrize("engine", ["tiny_engine", "trained"])
def test_the_order_of_a_closed_set_changes_nothing(request: pytest.FixtureRequest, engine: str) -> None:
    of: Engine = request.getfixturevalue(engine)
    forth, back = (read(of, FEW, GenerationRequest(categories=names)) for names in (FOODS, FOODS[::-1]))
    assert_same_categories(forth, back)


def test_a_closed_set_of_one_is_certain(tiny_engine: Engine) -> None:
    assert probabilities(read(tiny_engine, FEW[:1], GenerationRequest(categories=("Only",)))[0]) == {"Only": 1.0}


def test_a_closed_set_is_read_up_to_the_bound_on_its_tokens(writer: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = GenerationRequest(categories=FOODS)
    tokens = len(Trie.build(writer.prompt.category_outputs(FOODS)).inner)
    monkeypatch.setattr("model.inference.engine.MAX_CATEGORY_TOKENS", tokens)
    assert len(probabilities(read(Engine(writer.runtime), FEW[:1], wanted)[0])) == len(FOODS)
    monkeypatch.setattr("model.inference.engine.MAX_CATEGORY_TOKENS", tokens - 1)
    with pytest.raises(CategoriesTooLong, match=f"{tokens} tokens; shorten them to {tokens - 1}"):
        Engine(writer.runtime).tokenize(FEW[0], wanted)


def test_the_longest_note_with_the_longest_closed_set_has_room_in_the_cache(writer: Engine) -> None:
    names = tuple(f"{i} {'cat ' * 12}" for i in range(500))
    outputs = writer.prompt.category_outputs(names)
    count = next(n for n in range(500, 0, -1) if len(Trie.build(outputs[:n]).inner) <= MAX_CATEGORY_TOKENS)
    assert count < len(names)
    note = Note(title="cat " * 5000, content="cat " * 5000, hashtags=("cat " * 8,) * 30)
    assert writer.can_add(writer.tokenize(note, GenerationRequest(10, names[:count])))


def test_a_trie_holds_each_shared_beginning_once() -> None:
    trie = Trie.build([[1, 2, 9], [1, 3, 9], [1, 9], [4, 2, 9]])
    assert trie.tokens == (1, 2, 9, 3, 9, 9, 4, 2, 9)
    assert trie.parents == (-1, 0, 1, 0, 3, 0, -1, 6, 7)
    assert trie.paths == ((0, 1, 2), (0, 3, 4), (0, 5), (6, 7, 8))
    assert trie.inner == (0, 1, 3, 6, 7)


@pytest.mark.parametrize("count", [1, 3])
def test_searching_through_the_cache_equals_computing_everything_again(writer: Engine, count: int) -> None:
    readings = read(writer, NOTES[::2], GenerationRequest(count))
    for note, reading in zip(NOTES[::2], readings, strict=True):
        check_hashtags_against_recomputing(writer, note, count, reading)
    lengths = {reading.usage.generated_tokens for reading in readings}
    assert len(lengths) > 2, "every search ends at the same step: the test shows too little"


@pytest.mark.parametrize(("blocks", "step_tokens"), [(24, 1), (40, 200), (1024, 4096)])
def test_neither_other_counts_nor_how_much_runs_at_once_change_hashtags(
    writer: Engine, monkeypatch: pytest.MonkeyPatch, blocks: int, step_tokens: int
) -> None:
    notes = NOTES[:16]
    counts = [GenerationRequest(i % 5) for i in range(len(notes))]
    apart = [read(writer, [note], count)[0] for note, count in zip(notes, counts, strict=True)]
    assert len({reading.usage.generated_tokens for reading in apart}) > 5
    monkeypatch.setattr("model.inference.engine.STEP_TOKENS", step_tokens)
    small = Engine(TorchRuntime(writer.runtime.model, blocks))
    assert_same_hashtags(read(small, notes, counts), apart)
    assert_same_hashtags(read(small, notes[::-1], counts[::-1])[::-1], apart)
    assert small.runtime.pool.free == blocks


def test_a_reading_begins_and_leaves_at_any_step(writer: Engine) -> None:
    """A vector is there after one step, while hashtags that began before it go on; what is dropped frees its blocks."""
    of = Engine(TorchRuntime(writer.runtime.model))
    long, dropped = (of.add_request(of.tokenize(note, GenerationRequest(4, FOODS))) for note in FEW[:2])
    assert of.step() == []
    vector = of.add_request(of.tokenize(FEW[2]))
    of.abort(dropped)
    ((ended, reading),) = of.step()
    assert ended is vector
    assert_same_vectors([reading], read(writer, FEW[2:3]))
    readings = []
    while not readings:
        readings = of.step()
    ((ended, reading),) = readings
    assert ended is long
    assert_same_hashtags([reading], read(writer, FEW[:1], GenerationRequest(4)))
    assert of.step() == []
    assert of.runtime.pool.free == of.runtime.pool.count


def test_after_a_failure_nothing_is_left_and_the_next_reading_works(
    writer: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = Engine(TorchRuntime(writer.runtime.model))
    of.add_request(of.tokenize(FEW[0], GenerationRequest(2)))
    of.step()
    of.add_request(of.tokenize(FEW[1], GenerationRequest(2)))
    with monkeypatch.context() as patch:
        patch.setattr(of.runtime, "forward", failing)
        with pytest.raises(MemoryError):
            of.step()
    assert of.runtime.pool.free == of.runtime.pool.count
    assert_same_hashtags(read(of, FEW, GenerationRequest(2)), read(writer, FEW, GenerationRequest(2)))


def failing(spans: Sequence[Span]) -> list[SpanOutput]:
    raise MemoryError


@pytest.mark.parametrize("carried", [0, MAX_CANDIDATES])
def test_as_many_readings_as_fit_never_run_out_of_blocks(writer: Engine, carried: int) -> None:
    """Also where near notes carry many long hashtags."""
    of = Engine(TorchRuntime(writer.runtime.model, blocks=60))
    tags = tuple(" ".join(WORDS[(i + j * (i % 3 + 1)) % 16] for j in range(20)) for i in range(carried))
    near_notes = Neighbours([Neighbour("n", 1.0, tags)])
    prepared = of.tokenize(
        FEW[1],
        GenerationRequest(1, FOODS, find_neighbours=lambda *_: near_notes) if carried else GenerationRequest(4, FOODS),
    )
    begun = []
    while of.can_add(prepared):
        begun.append(of.add_request(prepared))
    assert 1 <= len(begun) < 6
    ended = []
    while len(ended) < len(begun):
        ended += of.step()
    assert of.can_add(prepared)
    assert of.runtime.pool.free == 60


def test_hashtags_do_not_depend_on_what_the_notes_before_asked_for(writer: Engine) -> None:
    wanted = [
        GenerationRequest(3),
        GenerationRequest(1, FOODS),
        GenerationRequest(),
        GenerationRequest(3, FOODS),
        GenerationRequest(1),
    ]
    for order in itertools.islice(itertools.permutations(range(len(FEW))), 0, None, 29):
        readings = read(writer, [FEW[i] for i in order], [wanted[i] for i in order])
        apart = [read(writer, [FEW[i]], GenerationRequest(wanted[i].hashtags))[0] for i in order]
        assert_same_hashtags(readings, apart)


@pytest.mark.parametrize("engine", ["tiny_engine", "note_first", "short", "task_first"])
def test_hashtags_are_bounded_in_count_and_in_tokens(engine: str, request: pytest.FixtureRequest) -> None:
    counts = [GenerationRequest(1 + i % 3) for i in range(len(FEW))]
    for want, reading in zip(counts, read(request.getfixturevalue(engine), FEW, counts), strict=True):
        assert len(reading.hashtags or ()) <= want.hashtags
        assert reading.usage.generated_tokens <= want.hashtags * BEAMS_PER_HASHTAG * TOKENS_PER_HASHTAG
        assert (reading.first_token_seconds or 0) > 0


@pytest.mark.parametrize("engine", ["tiny_engine", "note_first", "short", "task_first"])
def test_hashtags_differ_and_the_most_probable_comes_first(engine: str, request: pytest.FixtureRequest) -> None:
    for reading in read(request.getfixturevalue(engine), NOTES, GenerationRequest(5)):
        found = scores(reading.hashtags)
        assert found
        assert len({hashtag_key(text) for text in texts(reading.hashtags) or ()}) == len(found)
        assert found == sorted(found, reverse=True)
        assert all(0 < score <= 1 for score in found)
        assert sum(found) <= 1 + 1e-5


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ([" coffee", " river", " cat", " lamp"], 3),
        ([" coffee", " Coffee", " river", "s"], 100),  # more than there are, so that the search stops at the bound
    ],
)
def test_enough_beams_find_what_trying_every_hashtag_finds(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, words: list[str], count: int
) -> None:
    monkeypatch.setattr("model.inference.engine.TOKENS_PER_HASHTAG", 3)
    monkeypatch.setattr("model.inference.engine.BEAMS_PER_HASHTAG", -(-(len(words) ** 3) // count))
    engine = random_engine(LlamaConfig(**COMMON), tokenizer)
    engine = writes_only(engine, [*words, *ENDS], random_rows(len(words) + len(ENDS)))
    for note, reading in zip(FEW[:3], read(engine, FEW[:3], GenerationRequest(count)), strict=True):
        everything = all_hashtags(engine, note, count, words, 3)
        best = sorted(everything.items(), key=lambda pair: -pair[1])[:count]
        assert [dedup_key(hashtag.text) for hashtag in reading.hashtags or ()] == [key for key, _ in best]
        assert scores(reading.hashtags) == near([probability for _, probability in best])


def test_a_score_is_the_probability_of_the_hashtag_and_of_any_end_after_it(tokenizer: PreTrainedTokenizerBase) -> None:
    after = {
        "": {" coffee": 0.6, " river": 0.4},
        " coffee": {" #": 0.4, "#": 0.2, "##": 0.1, "<|im_end|>": 0.1, "\n": 0.1, "\n\n": 0.1},
        " river": {" #": 0.3, "\n": 0.1, " cat": 0.6},
        " cat": {"<|im_end|>": 1.0},
    }
    for reading in read(by_table(tokenizer, after), FEW, GenerationRequest(3)):
        assert texts(reading.hashtags) == ["coffee", "river cat", "river"]
        assert scores(reading.hashtags) == near([0.6, 0.24, 0.16])


def test_of_known_hashtags_the_most_probable_are_told_with_their_exact_probability(writer: Engine) -> None:
    count = len(TAGS) - 1
    for note, reading in zip(
        FEW, read(writer, FEW, GenerationRequest(count, vocabulary=known(writer, TAGS))), strict=True
    ):
        expected = sorted(((hashtag_by_recomputing(writer, note, count, tag), tag) for tag in TAGS), reverse=True)[
            :count
        ]
        assert texts(reading.hashtags) == [tag for _, tag in expected]
        assert scores(reading.hashtags) == near([probability for probability, _ in expected])


def test_a_hashtag_of_more_tokens_than_are_written_is_told_where_near_notes_carry_it(
    writer: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.hashtags.grounding.MIN_NEIGHBOUR_SHARE", 0.0)
    monkeypatch.setattr("model.inference.engine.TOKENS_PER_HASHTAG", 2)
    long, note = "train garden", FEW[0]
    assert len(writer.prompt.hashtag_output([long])) == 1 + 2
    long += " stone"
    neighbours = Neighbours([Neighbour("n", 1.0, (long,))])
    assert texts(read(writer, [note], GenerationRequest(1, find_neighbours=lambda *_: neighbours))[0].hashtags) == [
        long
    ]


def test_a_note_does_not_wait_for_a_long_closed_set(writer: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    of = Engine(TorchRuntime(writer.runtime.model))
    note = of.tokenize(Note(title="cat"))
    monkeypatch.setattr("model.inference.engine.STEP_TOKENS", 2 * len(note.ids))
    long = of.add_request(of.tokenize(FEW[0], GenerationRequest(categories=tuple(f"cat {word}" for word in WORDS))))
    short = of.add_request(note)
    assert {work for work, _ in of.step()} == {long, short}


def test_of_an_empty_vocabulary_nothing_is_told_and_the_reason_is(writer: Engine) -> None:
    (reading,) = read(writer, FEW[:1], GenerationRequest(2, vocabulary=writer.vocabulary()))
    assert (reading.hashtags, reading.hashtags_reason) == ((), "no hashtag is known yet")


def test_a_hashtag_that_goes_while_it_is_searched_for_is_not_told(writer: Engine) -> None:
    of = Engine(TorchRuntime(writer.runtime.model))
    vocabulary = known(of, TAGS)
    of.add_request(of.tokenize(FEW[0], GenerationRequest(len(TAGS), vocabulary=vocabulary)))
    assert of.step() == []
    vocabulary.remove(TAGS[1:])
    while not (ended := of.step()):
        pass
    assert texts(ended[0][1].hashtags) == [TAGS[0]]


def test_what_near_notes_carry_is_weighed_with_its_exact_probability(
    writer: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one forward more, beside those that the search needs."""
    monkeypatch.setattr("model.hashtags.grounding.MIN_NEIGHBOUR_SHARE", 0.0)  # so that nothing else is told
    wanted = GenerationRequest(3, FOODS, find_neighbours=lambda *_: Neighbours([Neighbour("n", 1.0, TAGS)]))
    with passes(writer) as seen:
        readings = read(writer, FEW, wanted)
    with passes(writer) as without:
        plain = read(writer, FEW, GenerationRequest(3, FOODS))
    assert len(seen) == len(without) + 1
    (more,) = [seen[1]] if len(prefills(without)) < len(prefills(seen)) else [seen[0]]
    assert sum(r.usage.prompt_tokens for r in readings) == sum(r.usage.prompt_tokens for r in plain) + sum(
        map(len, more)
    )
    assert_same_categories(readings, plain)
    for note, reading in zip(FEW, readings, strict=True):
        expected = sorted(((hashtag_by_recomputing(writer, note, 3, tag), tag) for tag in TAGS), reverse=True)[:3]
        assert texts(reading.hashtags) == [tag for _, tag in expected]
        assert scores(reading.hashtags) == near([p**WRITTEN_WEIGHT for p, _ in expected])
        assert {hashtag.notes for hashtag in reading.hashtags or ()} == {("n",)}


def test_hashtags_by_another_policy_do_not_depend_on_the_batch(writer: Engine) -> None:
    policies = [
        GenerationRequest(2),
        GenerationRequest(3, vocabulary=known(writer, TAGS)),
        GenerationRequest(2, find_neighbours=lambda *_: Neighbours([Neighbour("n", 1.0, TAGS)])),
    ]
    notes, wanted = FEW * 3, [policy for policy in policies for _ in FEW]
    apart = [read(writer, [note], each)[0] for note, each in zip(notes, wanted, strict=True)]
    assert_same_hashtags(read(writer, notes, wanted), apart)
    assert writer.runtime.pool.free == writer.runtime.pool.count


@pytest.mark.parametrize("grounded", [False, True])
def test_each_hashtag_is_told_once_it_is_settled_in_the_order_of_the_answer(writer: Engine, grounded: bool) -> None:
    nearest = (lambda *_: Neighbours([Neighbour("n", 1.0, TAGS)])) if grounded else None
    for note in FEW:
        told: list[Hashtag] = []
        (reading,) = read(writer, [note], GenerationRequest(4, find_neighbours=nearest, on_hashtag=told.append))
        assert [hashtag.text for hashtag in told] == texts(reading.hashtags)
        assert all(t.score <= s + 1e-9 for t, s in zip(told, scores(reading.hashtags), strict=True))  # spellings add up
    of, told = Engine(TorchRuntime(writer.runtime.model)), []
    of.add_request(of.tokenize(FEW[0], GenerationRequest(4, on_hashtag=told.append)))
    before_the_end = 0
    while not of.step():
        before_the_end = max(before_the_end, len(told))
    assert before_the_end > 0


def test_a_blocked_hashtag_gives_its_place_to_the_next(tokenizer: PreTrainedTokenizerBase) -> None:
    after = {
        "": {" coffee": 0.5, " river": 0.3, " cat": 0.2},
        **{word: {" #": 1.0} for word in (" coffee", " river", " cat")},
    }
    for reading in read(by_table(tokenizer, after), FEW, GenerationRequest(2, blocked=frozenset({"coffee"}))):
        assert texts(reading.hashtags) == ["river", "cat"]


def test_two_spellings_of_a_hashtag_count_together(tokenizer: PreTrainedTokenizerBase) -> None:
    ended = {" #": 1.0}
    after = {
        "": {" Coffee": 0.25, " coffee": 0.35, " river": 0.4},
        **dict.fromkeys((" Coffee", " coffee", " river"), ended),
    }
    for reading in read(by_table(tokenizer, after), FEW, GenerationRequest(2)):
        assert texts(reading.hashtags) == ["coffee", "river"]  # as it is more often spelled
        assert scores(reading.hashtags) == near([0.6, 0.4])


@pytest.mark.parametrize("others", [(" coffee", " Coffee"), ("!", "?")], ids=["spellings of one", "no hashtags"])
def test_a_search_goes_on_until_it_has_as_many_different_hashtags_as_were_asked_for(
    tokenizer: PreTrainedTokenizerBase, others: tuple[str, str]
) -> None:
    ended = {" #": 1.0}
    after = {
        "": {others[0]: 0.4, others[1]: 0.31, " New": 0.29},
        **dict.fromkeys(others, ended),
        " New": {" York": 1.0},
        " York": ended,
    }
    for reading in read(by_table(tokenizer, after), FEW, GenerationRequest(2)):
        assert {h.text: h.score for h in reading.hashtags or ()}.get("New York") == near(0.29)


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_hashtag_of_as_many_tokens_as_the_bound_is_found_and_no_longer_one(
    tokenizer: PreTrainedTokenizerBase, beyond: int
) -> None:
    letters = ascii_letters[: TOKENS_PER_HASHTAG + beyond]
    after = {last: {letter: 1.0} for last, letter in zip(["", *letters], letters, strict=False)}
    for reading in read(by_table(tokenizer, after | {letters[-1]: {" #": 1.0}}), FEW, GenerationRequest(1)):
        assert texts(reading.hashtags) == ([] if beyond else [letters])
        assert bool(reading.hashtags_reason) == bool(beyond)


def test_a_model_that_never_ends_is_stopped_at_the_bound(tokenizer: PreTrainedTokenizerBase) -> None:
    engine = writes_only(random_engine(LlamaConfig(**COMMON), tokenizer), [" coffee", " river"], opposite(64))
    for reading in read(engine, FEW, GenerationRequest(2)):
        assert reading.hashtags == ()
        assert reading.hashtags_reason
        assert reading.usage.generated_tokens == 2 * BEAMS_PER_HASHTAG * TOKENS_PER_HASHTAG


def test_output_that_is_no_hashtag_gives_none_and_the_reason(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["!", "?", *ENDS]
    engine = writes_only(random_engine(LlamaConfig(**COMMON), tokenizer), texts, random_rows(len(texts)))
    for reading in read(engine, FEW, GenerationRequest(2)):
        assert reading.hashtags == ()
        assert reading.hashtags_reason


def test_a_model_that_ends_at_once_wrote_no_hashtag(tokenizer: PreTrainedTokenizerBase) -> None:
    engine = writes_only(random_engine(LlamaConfig(**COMMON), tokenizer), ["<|im_end|>", "\n"], opposite(64))
    for reading in read(engine, FEW, GenerationRequest(2)):
        assert reading.hashtags == ()
        assert reading.hashtags_reason


def test_a_hashtag_that_is_nearly_never_written_has_a_score_that_says_so(tokenizer: PreTrainedTokenizerBase) -> None:
    after = {"": {"<|im_end|>": 1 - 1e-6, " coffee": 1e-6}, " coffee": {"<|im_end|>": 1.0}}
    for reading in read(by_table(tokenizer, after), FEW, GenerationRequest(2)):
        assert texts(reading.hashtags) == ["coffee"]
        assert scores(reading.hashtags) == near([1e-6])


def opposite(width: int) -> Tensor:
    """Two rows of which one always wins, whatever the hidden state."""
    row = torch.randn(width, generator=torch.Generator().manual_seed(2))
    return torch.stack([row, -row])


@pytest.mark.parametrize("step_tokens", [1, 300, 100_000])
def test_a_category_is_written_freely_as_greedy_decoding_by_hand_writes_it(
    writer: Engine, monkeypatch: pytest.MonkeyPatch, step_tokens: int
) -> None:
    monkeypatch.setattr("model.inference.engine.STEP_TOKENS", step_tokens)
    notes = NOTES[:16]
    by_hand = [freely_by_recomputing(writer, note) for note in notes]
    assert len({len(ids) for ids in by_hand}) > 3, "every row ends at the same step: the test shows too little"
    assert writer.write_category(notes) == [writer.prompt.decode(ids).strip() for ids in by_hand]


def test_of_no_notes_no_category_is_written(tiny_engine: Engine) -> None:
    assert tiny_engine.write_category([]) == []


def test_a_category_that_never_ends_is_stopped_at_the_bound(tokenizer: PreTrainedTokenizerBase) -> None:
    engine = writes_only(random_engine(LlamaConfig(**COMMON), tokenizer), [" coffee", " river"], opposite(64))
    for text in engine.write_category(FEW):
        assert len(text.split()) == TOKENS_PER_CATEGORY
        assert set(text.split()) <= {"coffee", "river"}


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_temperature_of_a_checkpoint_changes_the_probabilities_of_categories_alone(
    tiny_checkpoint: Path, tiny_engine: Engine, tmp_path: Path, temperature: float
) -> None:
    folder = tmp_path / "calibrated"
    shutil.copytree(tiny_checkpoint, folder)
    replace(NoteLLMConfig.load(folder), category_temperature=temperature).save(folder)
    calibrated = in_torch(folder, tmp_path)
    assert calibrated.space == tiny_engine.space
    wanted = GenerationRequest(2, FOODS)
    for plain, tempered in zip(read(tiny_engine, FEW, wanted), read(calibrated, FEW, wanted), strict=True):
        powers = {name: p ** (1 / temperature) for name, p in probabilities(plain).items()}
        softmax = {name: power / sum(powers.values()) for name, power in powers.items()}
        assert probabilities(tempered) == pytest.approx(softmax, rel=1e-4)
        assert list(probabilities(tempered)) == list(probabilities(plain))
        assert (plain.categories[0].probability < tempered.categories[0].probability) == (temperature < 1)
        np.testing.assert_array_equal(tempered.vector, plain.vector)
        assert tempered.hashtags == plain.hashtags
    assert calibrated.write_category(FEW) == tiny_engine.write_category(FEW)


def test_a_prepared_note_knows_what_its_prompts_cost(writer: Engine) -> None:
    prepared = writer.tokenize(FEW[1], GenerationRequest(3, FOODS))
    with passes(writer) as seen:
        writer.run([writer.tokenize(FEW[1], GenerationRequest(3))])
    assert sum(map(len, prefills(seen))) == prepared.tokens + len(writer.prompt.hashtag_task(3))


def test_loading_names_the_model_as_its_checkpoint_does(tiny_engine: Engine) -> None:
    assert (tiny_engine.name, tiny_engine.space) == ("tiny", tiny_engine.runtime.model.space)
    assert tiny_engine.categories == NoteLLMConfig().categories
    assert tiny_engine.runtime.model.backbone.dtype == torch.float32


def test_the_real_backbone_reads_the_same_alone_and_in_a_batch(backbone_folder: Path, tmp_path: Path) -> None:
    engine = in_torch(backbone_folder, tmp_path)
    assert engine.dimension == 576
    notes = [Note(" ".join(WORDS[i : i + i % 3]), " ".join(WORDS[: 2 * i])) for i in range(8)]
    together, apart = read(engine, notes), alone(engine, notes)
    assert_same_vectors(together, apart)
    index = vectors(apart)
    assert top_tens(vectors(together), index) == top_tens(index, index)
