"""Throughput of the engine, of transformers for comparison, and of plain matrix products, on a CPU or a GPU.

DEVICE is the GPU if PyTorch can use one.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from benchmarks.harness.inputs import PROMPT_TOKENS
from model.generation import VECTOR_ONLY, GenerationRequest
from model.inference.engine import Engine
from model.inference.kv_cache import BlockTable
from model.inference.loading import device_for
from model.inference.runtime import LogitQuery, Span
from model.note import Note

DECODE_STEPS = 24
ROUNDS = 5
"""Measured calls; their median is the result."""

DEVICE = device_for("auto")
PRODUCT = (3200, 576, 1536) if DEVICE == "cpu" else (8192, 8192, 8192)
"""Rows, inner size and columns of the matrix product that shows the machine's limit: on a CPU the shape that 32 notes
have in this model, on a GPU large enough to keep it busy."""
PRODUCTS_PER_CALL = 20
GFLOP_PER_PRODUCT = 2 * math.prod(PRODUCT) / 1e9


@dataclass(frozen=True, slots=True)
class Rate:
    """Units per second: the median, lowest and highest of ROUNDS calls."""

    median: float
    least: float
    most: float

    @property
    def spread(self) -> str:
        return f"range {self.least:.1f} to {self.most:.1f}"


def measure_rate(units: int, call: Callable[..., Any], *arguments: Any) -> Rate:
    """Measure the units per second of a call that processes `units` of them, after one call to warm up."""
    call(*arguments)
    rates = []
    for _ in range(ROUNDS):
        wait_for_device()
        started = time.perf_counter()
        call(*arguments)
        wait_for_device()
        rates.append(units / (time.perf_counter() - started))
    return Rate(statistics.median(rates), min(rates), max(rates))


def wait_for_device() -> None:
    """Wait until a GPU has finished its queued work: calls return before that."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def matrix_products() -> dict[str, float]:
    """GFLOP/s of a large matrix product by precision."""
    rows, inner, columns = PRODUCT
    a, b = torch.randn(rows, inner, device=DEVICE), torch.randn(inner, columns, device=DEVICE)
    a8, b8 = (torch.randint(-100, 100, matrix.shape, dtype=torch.int8, device=DEVICE) for matrix in (a, b))
    products = {
        "float32": (torch.mm, a, b),
        "bfloat16": (torch.mm, a.bfloat16(), b.bfloat16()),
        "int8": (torch._int_mm, a8, b8),  # PyTorch has no public name for it
    }
    gflop = PRODUCTS_PER_CALL * GFLOP_PER_PRODUCT
    return {name: measure_rate(1, multiply, *product).median * gflop for name, product in products.items()}


def multiply(product: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> None:
    for _ in range(PRODUCTS_PER_CALL):
        product(a, b)


def measure_transformers(
    folder: Path, engine: Engine, notes: Sequence[Note], dtype: torch.dtype, batches: Sequence[int], attention: str
) -> dict[int, Rate]:
    """Measure the notes per second that transformers runs through the layers of the backbone in `folder`, by batch
    size, without padding; no output is read. `attention`: "eager" or "sdpa"."""
    backbone = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval().to(DEVICE)
    rates = {}
    with torch.inference_mode():
        for batch in batches:
            ids = torch.tensor([engine.prompt.note(note)[:PROMPT_TOKENS] for note in notes[:batch]], device=DEVICE)
            rates[batch] = measure_rate(batch, backbone, ids)
    return rates


def measure_prefill(engine: Engine, notes: Sequence[Note]) -> Rate:
    """Measure the notes embedded per second, tokenising excluded."""
    requests = [engine.tokenize(note, VECTOR_ONLY) for note in notes]
    return measure_rate(len(notes), engine.run, requests)


def measure_decode(engine: Engine, notes: Sequence[Note]) -> Rate:
    """Measure the tokens per second of decode steps on sequences that each have a note in the KV cache."""
    tables = [BlockTable(engine.runtime.pool) for _ in notes]
    for table, note in zip(tables, notes, strict=True):
        ids = tuple(engine.prompt.note(note))
        table.grow(len(ids))
        engine.runtime.forward([Span(table, ids, read_out=len(ids) - 1)])
    rate = measure_rate(DECODE_STEPS * len(notes), decode, engine, tables)
    for table in tables:
        table.close()
    return rate


def decode(engine: Engine, tables: Sequence[BlockTable]) -> None:
    """Run DECODE_STEPS steps, each giving the likeliest next token of every sequence. Afterwards the sequences are cut
    to their old length, as in the benchmark of llama.cpp, so that each call attends to equally many tokens."""
    lengths = [table.length for table in tables]
    for _ in range(DECODE_STEPS):
        for table in tables:
            table.grow(1)
        engine.runtime.forward([Span(table, (1,), queries=(LogitQuery(0, 1),)) for table in tables])
    for table, length in zip(tables, lengths, strict=True):
        table.cut(length)


def generate(engine: Engine, notes: Sequence[Note], *requests: GenerationRequest) -> None:
    for request in requests:
        engine.generate(notes, request)
