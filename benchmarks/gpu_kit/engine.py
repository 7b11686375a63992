"""Engine step: rates of prefill, decode and the whole job, beside transformers' own attention on the same card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import DynamicCache

from benchmarks.gpu_kit.options import Options
from benchmarks.harness.engine_rates import (
    DECODE_STEPS,
    DEVICE,
    Rate,
    generate,
    matrix_products,
    measure_decode,
    measure_prefill,
    measure_rate,
    measure_transformers,
)
from benchmarks.harness.inputs import notes_of_one_length
from benchmarks.harness.report import Row, row
from model.generation import VECTOR_ONLY, GenerationRequest
from model.inference.engine import Engine
from model.inference.torch_runtime import TorchRuntime, using_attention
from model.note import Note
from model.weights import SHIPPED_CHECKPOINT, CheckpointFiles

ATTENTIONS = ("eager", "sdpa")
"""transformers' implementations of attention that are compared with the engine's."""
HASHTAGS, CATEGORIES = 5, 20
MIN_COSINE = 0.999


@dataclass(frozen=True, slots=True)
class Sizes:
    """Batch sizes in notes: `batches` for prefill and the whole job, `decode_batches` for decode."""

    batches: Sequence[int]
    decode_batches: Sequence[int]


FULL, SMALL = Sizes((1, 8, 32), (1, 32)), Sizes((1, 2), (2,))


def rows(options: Options) -> Iterator[Row]:
    """Yield the rows of the engine's table, each as soon as it is measured."""
    sizes = SMALL if options.rehearsal else FULL
    engine = load(options, "auto")
    notes = notes_of_one_length(engine, max(sizes.batches))
    yield row("engine precision", engine.runtime.precision)
    if not options.rehearsal:
        for name, rate in matrix_products().items():
            yield row(f"matmul throughput, {name}", f"{rate:.0f}", "GFLOP/s")
    yield from prefill_rows(options, engine, notes, sizes.batches)
    for batch in sizes.decode_batches:
        yield decode_row(engine, notes[:batch])
    for batch in sizes.batches:
        yield job_row(engine, notes[:batch])
    yield from vector_rows(engine, load(options, "float32"), notes)


def load(options: Options, dtype: str) -> Engine:
    """Load the checkpoint in PyTorch."""
    checkpoint = str(options.checkpoint or SHIPPED_CHECKPOINT)
    return Engine.load(checkpoint, cache=options.cache, device=DEVICE, runtime="torch", dtype=dtype)


def prefill_rows(options: Options, engine: Engine, notes: Sequence[Note], batches: Sequence[int]) -> Iterator[Row]:
    """Yield the rates of embedding notes, and those of the backbone alone in transformers."""
    folder = CheckpointFiles.of(str(options.checkpoint or SHIPPED_CHECKPOINT), options.cache).weights
    dtype = torch_runtime(engine).model.backbone.dtype
    peers = {name: measure_transformers(folder, engine, notes, dtype, batches, name) for name in ATTENTIONS}
    for batch in batches:
        rate = measure_prefill(engine, notes[:batch])
        yield compared(
            f"prefill to vectors, batch {batch}", "notes/s", rate, {name: peers[name][batch] for name in peers}
        )


def decode_row(engine: Engine, notes: Sequence[Note]) -> Row:
    """Return the rate of decode steps, and that of transformers over the same weights with its own KV cache."""
    rate = measure_decode(engine, notes)
    peers = {name: measure_transformers_decode(engine, notes, name) for name in ATTENTIONS}
    return compared(f"decode, batch {len(notes)}", "tokens/s", rate, peers)


@torch.inference_mode()
def measure_transformers_decode(engine: Engine, notes: Sequence[Note], attention: str) -> Rate:
    """Measure the tokens a second of decode steps with transformers' attention and KV cache, each step giving the
    likeliest next token."""
    model = torch_runtime(engine).model
    shortest = min(len(engine.prompt.note(note)) for note in notes)
    ids = torch.tensor([engine.prompt.note(note)[:shortest] for note in notes], device=DEVICE)
    mask = torch.ones(len(notes), shortest + DECODE_STEPS, dtype=torch.int64, device=DEVICE)
    positions = mask.cumsum(1) - 1
    cache = DynamicCache()

    def decode() -> None:
        for end in range(shortest + 1, shortest + DECODE_STEPS + 1):
            hidden = model(ids[:, :1], mask[:, :end], positions[:, end - 1 : end], cache, decode=True)
            model.logits(hidden[:, -1]).log_softmax(-1).topk(1)
        cache.crop(-DECODE_STEPS)  # a negative number drops as many tokens from the end

    with using_attention(model, attention):
        model(ids, mask[:, :shortest], positions[:, :shortest], cache)
        return measure_rate(DECODE_STEPS * len(notes), decode)


def job_row(engine: Engine, notes: Sequence[Note]) -> Row:
    """Return the rate of the whole job in one request, against a request for each part."""
    categories = engine.categories[:CATEGORIES]
    together = GenerationRequest(HASHTAGS, categories)
    separate = (VECTOR_ONLY, GenerationRequest(HASHTAGS), replace(VECTOR_ONLY, categories=categories))
    rate = measure_rate(len(notes), generate, engine, notes, together)
    apart = measure_rate(len(notes), generate, engine, notes, *separate)
    what = f"vector, {HASHTAGS} hashtags and a category out of {len(categories)}, batch {len(notes)}"
    return compared(what, "notes/s", rate, {"three separate calls": apart})


def vector_rows(engine: Engine, reference: Engine, notes: Sequence[Note]) -> Iterator[Row]:
    """Yield how far the vectors are from those in float32, and from those of notes embedded one by one."""
    vectors, exact = engine.embed(notes), reference.embed(notes)
    alone = np.concatenate([engine.embed([note]) for note in notes])
    cosines = (vectors * exact).sum(1)
    yield row(
        "cosine similarity to vectors in float32, mean", f"{cosines.mean():.6f}", spread=f"minimum {cosines.min():.6f}",
        target=f"≥ {MIN_COSINE}", met=bool(cosines.min() >= MIN_COSINE),
    )  # fmt: skip
    yield row(
        "largest difference of a vector component, batch of one or of many", f"{np.abs(alone - vectors).max():.1e}",
        spread=f"minimum cosine similarity {(alone * vectors).sum(1).min():.6f}",
    )  # fmt: skip


def compared(what: str, unit: str, rate: Rate, peers: dict[str, Rate]) -> Row:
    """Return the row of a rate beside those of others."""
    against = "; ".join(
        f"{name}: {peer.median:.1f} {unit}; ratio {rate.median / peer.median:.2f}x" for name, peer in peers.items()
    )
    return row(what, round(rate.median, 1), unit, spread=rate.spread, against=against)


def torch_runtime(engine: Engine) -> TorchRuntime:
    """Return the runtime that `load` chose."""
    assert isinstance(engine.runtime, TorchRuntime)
    return engine.runtime
