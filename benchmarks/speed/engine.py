"""The engine against this machine's limit and against other ways to the same result, side by side in one run.

python -m benchmarks.speed.engine

Prompts of 100 tokens, cut from our own sample notes. Six minutes on an idle machine. Where PyTorch can use a GPU, all
of it runs there. LLAMA_PYTHON names an interpreter that has llama-cpp-python, to measure llama.cpp too: five minutes
more (benchmarks/peers/llama.py).
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel

from benchmarks import ROOT
from benchmarks.harness.inputs import PROMPT_TOKENS, Vectors, notes_of_one_length
from benchmarks.harness.report import NO_GPU, Row, row, write
from model.config import PACKAGED_BACKBONE
from model.generation import VECTOR_ONLY, GenerationRequest
from model.inference.engine import Engine
from model.inference.kv_cache import BlockTable
from model.inference.loading import device_for
from model.inference.runtime import LogitQuery, Span
from model.note import Note
from model.weights import packaged_gguf, resolve, silent
from service.settings import Settings

BATCHES = (1, 8, 32)
DECODE_BATCHES = (1, 32)
DECODE_STEPS = 24
ROUNDS = 5
"""Measured calls of which the median counts."""
CATEGORIES = 20
MANY_CATEGORIES = 500
CATEGORY_BATCH = 8
FIVE_HASHTAGS = GenerationRequest(hashtags=5)
GFLOP_PER_NOTE = 21.6
"""Operations of one note of 100 tokens: 106.2 million weights in matrix products, two operations each, and 0.4
for the attention."""
DEVICE = device_for("auto")
PRODUCT = (3200, 576, 1536) if DEVICE == "cpu" else (8192, 8192, 8192)
"""Rows, inner size and columns of the matrix product that is the machine's limit: on a CPU those of 32 notes in this
model, on a GPU enough to fill it."""
PRODUCTS_PER_CALL = 20
GFLOP_PER_PRODUCT = 2 * math.prod(PRODUCT) / 1e9
LLAMA_TYPES = ("BF16", "Q8_0", "Q4_0")

PREFILL_SHARE, PREFILL_RATIO = 0.6, 1.6
"""Targets for prefill: the share of the machine's limit, and the multiple of transformers' rate."""
JOB_RATIOS = {1: 1.4, 8: 2.0, 32: 2.3}
"""Targets for the whole job by batch: the multiple of three separate calls' rate."""
LLAMA_PREFILL_RATIO, LLAMA_JOB_RATIO = 2.5, 3.5
LLAMA_DECODE_RATIOS = {1: (0.9, "Q8_0"), 32: (1.5, "")}
"""Targets for decode by batch: the multiple of llama.cpp's rate, and which file type is compared with, "" for the
fastest."""
MIN_COSINE = 0.999

LlamaRates = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Units a second by file type, measurement and batch."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Units a second: the median of ROUNDS calls, the least and the most."""

    median: float
    least: float
    most: float

    @property
    def spread(self) -> str:
        return f"{self.least:.1f} to {self.most:.1f}"


@dataclass(frozen=True, slots=True)
class Figures:
    """GFLOP/s of matrix products by precision, rates of the engine and of the others by batch, and vectors (N, D)
    read in one batch, one by one, and by PyTorch in float32."""

    products: Mapping[str, float]
    engine_precision: str
    transformers_dtype: str
    transformers: Mapping[int, Rate]
    llama: LlamaRates
    prefill: Mapping[int, Rate]
    decode: Mapping[int, Rate]
    job: Mapping[int, Rate]
    separate_calls: Mapping[int, Rate]
    category_counts: Mapping[int, Rate]
    vectors: Vectors
    vectors_alone: Vectors
    reference_vectors: Vectors


def measure() -> Figures:
    """Measure everything on the packaged model; llama.cpp only with LLAMA_PYTHON."""
    engine = Engine.load(cache=Settings().cache_dir)
    notes = notes_of_one_length(engine, max(BATCHES))
    products = matrix_products()
    dtype = torch.bfloat16 if products["bfloat16"] > products["float32"] else torch.float32
    transformers_rates = measure_transformers(notes, engine, dtype)
    llama_rates = measure_llama(engine, notes)
    prefill = {batch: measure_prefill(engine, notes[:batch]) for batch in BATCHES}
    decode = {batch: measure_decode(engine, notes[:batch]) for batch in DECODE_BATCHES}
    categories = engine.categories[:CATEGORIES]
    together = replace(FIVE_HASHTAGS, categories=categories)
    separate = (VECTOR_ONLY, FIVE_HASHTAGS, GenerationRequest(categories=categories))
    job, separate_calls = {}, {}
    for batch in BATCHES:
        job[batch] = measure_rate(batch, generate, engine, notes[:batch], together)
        separate_calls[batch] = measure_rate(batch, generate, engine, notes[:batch], *separate)
    category_counts = measure_category_counts(engine, notes)
    reference = Engine.load(cache=Settings().cache_dir, device="cpu", runtime="torch", dtype="float32")
    return Figures(
        products=products,
        engine_precision=engine.runtime.precision,
        transformers_dtype=str(dtype),
        transformers=transformers_rates,
        llama=llama_rates,
        prefill=prefill,
        decode=decode,
        job=job,
        separate_calls=separate_calls,
        category_counts=category_counts,
        vectors=engine.embed(notes),
        vectors_alone=np.concatenate([engine.embed([note]) for note in notes]),
        reference_vectors=reference.embed(notes),
    )


def measure_rate(units: int, call: Callable[..., Any], *arguments: Any) -> Rate:
    """Units a second of a call that does `units` of them, after one call that warms up."""
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
    """Wait until a GPU has done what it was given: calls return before."""
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


def measure_transformers(notes: Sequence[Note], engine: Engine, dtype: torch.dtype) -> dict[int, Rate]:
    """Notes a second that transformers runs through the layers, in batches without padding; no output is read."""
    folder = resolve(PACKAGED_BACKBONE, Settings().cache_dir, silent)
    backbone = AutoModel.from_pretrained(folder, dtype=dtype).eval().to(DEVICE)
    rates = {}
    with torch.inference_mode():
        for batch in BATCHES:
            ids = torch.tensor([engine.prompt.note(note)[:PROMPT_TOKENS] for note in notes[:batch]], device=DEVICE)
            rates[batch] = measure_rate(batch, backbone, ids)
    return rates


def measure_llama(engine: Engine, notes: Sequence[Note]) -> LlamaRates:
    """Rates of llama.cpp; empty without LLAMA_PYTHON."""
    if not (python := os.environ.get("LLAMA_PYTHON")):
        return {}
    request = {
        "gguf": str(packaged_gguf()),
        "folder": str(Settings().cache_dir),
        "types": LLAMA_TYPES,
        "prompts": [engine.prompt.note(note)[:PROMPT_TOKENS] for note in notes],
        "threads": os.cpu_count(),
    }
    script = ROOT / "benchmarks" / "peers" / "llama.py"
    answer = subprocess.run([python, script], input=json.dumps(request), capture_output=True, text=True, check=True)
    rates: LlamaRates = json.loads(answer.stdout)
    return rates


def measure_prefill(engine: Engine, notes: Sequence[Note]) -> Rate:
    """Notes a second that become vectors, tokenising excluded."""
    requests = [engine.tokenize(note, VECTOR_ONLY) for note in notes]
    return measure_rate(len(notes), engine.run, requests)


def measure_decode(engine: Engine, notes: Sequence[Note]) -> Rate:
    """Tokens a second of single steps of sequences that each have a note in their cache."""
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
    """Run DECODE_STEPS steps, each giving the likeliest next token of every sequence. Afterwards the sequences are as
    long as before, as those of llama.cpp: each call attends to as many tokens."""
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


def measure_category_counts(engine: Engine, notes: Sequence[Note]) -> dict[int, Rate]:
    """Notes a second by the size of the closed set, all its names unknown to the checkpoint; the call that warms up
    reads the names alone."""
    words = sorted({word for note in notes for word in note.content.split() if word.isalpha() and len(word) > 3})
    names = [f"{words[i % len(words)]} {words[(7 * i + i // len(words)) % len(words)]}".title() for i in range(800)]
    rates = {}
    for count in (CATEGORIES, MANY_CATEGORIES):
        request = GenerationRequest(categories=tuple(dict.fromkeys(names))[:count])
        rates[count] = measure_rate(CATEGORY_BATCH, generate, engine, notes[:CATEGORY_BATCH], request)
    return rates


def rows(figures: Figures) -> list[Row]:
    """Return the rows of the result."""
    batches = " / ".join(map(str, BATCHES))
    transformers_rates = " / ".join(f"{figures.transformers[batch].median:.1f}" for batch in BATCHES)
    return [
        *(row("matrix product", f"{rate:.0f}", "GFLOP/s", against=name) for name, rate in figures.products.items()),
        row(f"transformers, prefill, batch {batches}", transformers_rates, "notes/s",
            against=figures.transformers_dtype),
        row("precision of the engine", figures.engine_precision),
        *(line for batch in BATCHES for line in prefill_rows(figures, batch)),
        *(line for batch in DECODE_BATCHES for line in decode_rows(figures, batch)),
        *(line for batch in BATCHES for line in job_rows(figures, batch)),
        category_row(figures),
        *vector_rows(figures),
    ]  # fmt: skip


def prefill_rows(figures: Figures, batch: int) -> list[Row]:
    rate = figures.prefill[batch]
    limit = figures.products[figures.engine_precision.split()[-1]] / GFLOP_PER_NOTE
    share, ratio = rate.median / limit, rate.median / figures.transformers[batch].median
    has_target = batch > 1
    what = f"prefill to vectors, batch {batch}"
    return [
        row(
            what, round(rate.median, 1), "notes/s", spread=rate.spread,
            against=f"{100 * share:.0f}% of the matrix product limit, {limit:.1f}; {ratio:.2f}x transformers",
            target=f"{PREFILL_SHARE:.0%} or more; {PREFILL_RATIO}x or more" if has_target else "",
            met=share >= PREFILL_SHARE and ratio >= PREFILL_RATIO if has_target else None,
        ),
        *llama_rows(what, "notes/s", rate, llama_rates(figures.llama, "prefill", batch), LLAMA_PREFILL_RATIO),
    ]  # fmt: skip


def decode_rows(figures: Figures, batch: int) -> list[Row]:
    rate = figures.decode[batch]
    what = f"decode, batch {batch}"
    ratio, file_type = LLAMA_DECODE_RATIOS[batch]
    return [
        row(what, round(rate.median), "tokens/s", spread=rate.spread),
        *llama_rows(what, "tokens/s", rate, llama_rates(figures.llama, "decode", batch, file_type), ratio),
    ]


def job_rows(figures: Figures, batch: int) -> list[Row]:
    """Rows of the whole job in one reading, against a reading for each part; and for the largest batch against
    llama.cpp, which writes 24 tokens greedily."""
    rate, separate = figures.job[batch], figures.separate_calls[batch].median
    ratio, target = rate.median / separate, JOB_RATIOS[batch]
    what = f"vector, 5 hashtags and a category of {CATEGORIES}, batch {batch}"
    whole = row(
        what, round(rate.median, 2), "notes/s", spread=rate.spread,
        against=f"three separate calls: {separate:.2f}, so {ratio:.2f}x",
        target=f"{target}x or more", met=ratio >= target,
    )  # fmt: skip
    if batch != max(BATCHES):
        return [whole]
    return [whole, *llama_rows(what, "notes/s", rate, llama_rates(figures.llama, "job", batch), LLAMA_JOB_RATIO)]


def llama_rates(rates: LlamaRates, measurement: str, batch: int, file_type: str = "") -> dict[str, float]:
    """llama.cpp's rates by file type, or the rate of one `file_type` alone."""
    return {
        name: measurements[measurement][str(batch)] for name, measurements in rates.items() if file_type in ("", name)
    }


def llama_rows(what: str, unit: str, rate: Rate, llama: Mapping[str, float], target: float) -> list[Row]:
    """A row that compares a rate with the best of llama.cpp's; none where llama.cpp was not measured."""
    if not llama:
        return []
    best = max(llama, key=llama.__getitem__)
    ratio = rate.median / llama[best]
    return [row(
        what, round(rate.median, 1), unit, against=f"llama.cpp {best}: {llama[best]:.1f}, so {ratio:.2f}x",
        target=f"{target}x llama.cpp or more", met=rate.median >= target * llama[best],
    )]  # fmt: skip


def category_row(figures: Figures) -> Row:
    few, many = (figures.category_counts[count].median for count in (CATEGORIES, MANY_CATEGORIES))
    return row(
        f"category of {MANY_CATEGORIES}, batch {CATEGORY_BATCH}", round(many, 2), "notes/s",
        against=f"category of {CATEGORIES}: {few:.2f}, so {few / many:.1f}x the cost",
        target="2x or less", met=few / many <= 2,
    )  # fmt: skip


def vector_rows(figures: Figures) -> list[Row]:
    cosines = (figures.vectors * figures.reference_vectors).sum(1)
    difference = np.abs(figures.vectors_alone - figures.vectors).max()
    return [
        row("cosine to PyTorch in float32, mean", f"{cosines.mean():.6f}", spread=f"minimum {cosines.min():.6f}",
            target=f"{MIN_COSINE} or more", met=bool(cosines.min() >= MIN_COSINE)),
        row("largest difference of a vector's component, alone or in a batch", f"{difference:.1e}"),
    ]  # fmt: skip


if __name__ == "__main__":
    on_cpu = DEVICE == "cpu"
    gpu = NO_GPU if on_cpu else torch.cuda.get_device_name()
    write("engine" if on_cpu else "engine-gpu", rows(measure()), gpu)
