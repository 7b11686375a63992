"""Running an engine, recording its forwards, and comparing its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from model.generation import VECTOR_ONLY, GenerationOutput, GenerationRequest, Hashtag
from model.inference.engine import Engine
from model.inference.runtime import Span, SpanOutput
from model.inference.trie import Trie
from model.note import Note

SpanIds = tuple[int, ...]


def generate(
    engine: Engine, notes: Sequence[Note], requests: GenerationRequest | Sequence[GenerationRequest] = VECTOR_ONLY
) -> list[GenerationOutput]:
    """Return the outputs of one batch, with one request for all notes or one for each."""
    if isinstance(requests, GenerationRequest):
        requests = [requests] * len(notes)
    return engine.run([engine.tokenize(note, request) for note, request in zip(notes, requests, strict=True)])


def generate_alone(
    engine: Engine, notes: Sequence[Note], requests: GenerationRequest | Sequence[GenerationRequest] = VECTOR_ONLY
) -> list[GenerationOutput]:
    """Return the outputs of the same requests, each in its own batch."""
    if isinstance(requests, GenerationRequest):
        requests = [requests] * len(notes)
    return [generate(engine, [note], request)[0] for note, request in zip(notes, requests, strict=True)]


def vectors(outputs: Sequence[GenerationOutput]) -> np.ndarray[Any, Any]:
    return np.stack([output.vector for output in outputs])


def texts(hashtags: tuple[Hashtag, ...] | None) -> list[str] | None:
    return None if hashtags is None else [hashtag.text for hashtag in hashtags]


def scores(hashtags: tuple[Hashtag, ...] | None) -> list[float]:
    return [hashtag.score for hashtag in hashtags or ()]


def probabilities(output: GenerationOutput) -> dict[str, float]:
    return {category.name: category.probability for category in output.categories or ()}


def close_to(expected: Any) -> Any:
    """Compare equal within the rounding of float32, even for tiny probabilities."""
    return pytest.approx(expected, rel=1e-4, abs=0)


def assert_same_vectors(outputs: Sequence[GenerationOutput], expected: Sequence[GenerationOutput]) -> None:
    assert (vectors(outputs) * vectors(expected)).sum(1).min() >= 0.9999


def assert_same_hashtags(outputs: Sequence[GenerationOutput], expected: Sequence[GenerationOutput]) -> None:
    for output, other in zip(outputs, expected, strict=True):
        assert texts(output.hashtags) == texts(other.hashtags)
        assert scores(output.hashtags) == close_to(scores(other.hashtags))
        assert output.hashtags_reason == other.hashtags_reason
        assert output.usage.generated_tokens == other.usage.generated_tokens


def assert_same_categories(outputs: Sequence[GenerationOutput], expected: Sequence[GenerationOutput]) -> None:
    for output, other in zip(outputs, expected, strict=True):
        assert probabilities(output) == pytest.approx(probabilities(other), abs=1e-4)


def top_tens(queries: np.ndarray[Any, Any], pool: np.ndarray[Any, Any]) -> list[list[int]]:
    """Return the rows of the ten nearest vectors of `pool` for each query."""
    return [list(map(int, row[:10])) for row in np.argsort(-queries @ pool.T, axis=1)]


@contextmanager
def record_forwards(engine: Engine) -> Iterator[list[list[SpanIds]]]:
    """Record the ids of each span of each forward inside the block."""
    forwards: list[list[SpanIds]] = []
    forward = engine.runtime.forward

    def recording_forward(spans: Sequence[Span]) -> list[SpanOutput]:
        forwards.append([span.ids for span in spans])
        return forward(spans)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.runtime, "forward", recording_forward)
        yield forwards


def prefills(forwards: Sequence[Sequence[SpanIds]]) -> list[list[int]]:
    """Return the ids of all spans of more than one token."""
    return [list(ids) for spans in forwards for ids in spans if len(ids) > 1]


def decode_steps(forwards: Sequence[Sequence[SpanIds]]) -> int:
    """Return the number of spans of one token."""
    return sum(len(ids) == 1 for spans in forwards for ids in spans)


def inner_tokens(trie: Trie) -> list[int]:
    return [trie.tokens[node] for node in trie.inner]
