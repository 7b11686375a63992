"""The engine against this machine's limit and against other ways to the same result, side by side in one run.

python -m benchmarks.speed.engine

Prompts have 100 tokens and are cut from our own sample notes. Takes six minutes on an idle machine. If PyTorch can use
a GPU, everything runs there. LLAMA_PYTHON names an interpreter that has llama-cpp-python, to measure llama.cpp too:
five minutes more (benchmarks/peers/llama.py).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks import ROOT
from benchmarks.harness.engine_rates import (
    DEVICE,
    Rate,
    generate,
    matrix_products,
    measure_decode,
    measure_prefill,
    measure_rate,
    measure_transformers,
)
from benchmarks.harness.inputs import PROMPT_TOKENS, Vectors, notes_of_one_length
from benchmarks.harness.report import NO_GPU, Row, row, write
from benchmarks.harness.weights import MILLION_LAYER_WEIGHTS
from model.config import PACKAGED_BACKBONE
from model.generation import CATEGORY_SHORTLIST, VECTOR_ONLY, GenerationRequest
from model.inference.engine import Engine
from model.note import Note
from model.weights import packaged_gguf, resolve, silent
from service.settings import Settings

BATCHES = (1, 8, 32)
DECODE_BATCHES = (1, 32)
CATEGORIES = 20
MANY_CATEGORIES = 500
FEW, MANY, ALL = "few", "many", "all"
CATEGORY_BATCH = 8
FIVE_HASHTAGS = GenerationRequest(hashtags=5)
GFLOP_PER_NOTE = 2 * MILLION_LAYER_WEIGHTS * PROMPT_TOKENS / 1000 + 0.4
"""Operations of one note of PROMPT_TOKENS tokens: two for each weight of the layers and each token, and 0.4 for the
attention."""
LLAMA_TYPES = ("BF16", "Q8_0", "Q4_0")

PREFILL_SHARE, PREFILL_RATIO = 0.6, 1.6
"""Targets for prefill: the share of the machine's limit, and the multiple of transformers' rate."""
JOB_RATIOS = {1: 1.4, 8: 2.0, 32: 2.3}
"""Targets for the whole job by batch: the multiple of three separate calls' rate."""
LLAMA_PREFILL_RATIO, LLAMA_JOB_RATIO = 2.5, 3.5
LLAMA_DECODE_RATIOS = {1: (0.9, "Q8_0"), 32: (1.5, "")}
"""Targets for decode by batch: the multiple of llama.cpp's rate, and the file type to compare with, "" for the
fastest."""
MIN_COSINE = 0.999

LlamaRates = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Units a second by file type, measurement and batch."""


@dataclass(frozen=True, slots=True)
class Figures:
    """GFLOP/s of matrix products by precision, rates of the engine and of the others by batch, and vectors (N, D)
    computed in one batch, one by one, and by PyTorch in float32."""

    products: Mapping[str, float]
    engine_precision: str
    engine_format: str
    transformers_dtype: str
    transformers: Mapping[int, Rate]
    llama: LlamaRates
    prefill: Mapping[int, Rate]
    decode: Mapping[int, Rate]
    job: Mapping[int, Rate]
    separate_calls: Mapping[int, Rate]
    closed_sets: Mapping[str, Rate]
    vectors: Vectors
    vectors_alone: Vectors
    reference_vectors: Vectors


def measure() -> Figures:
    """Measure everything on the packaged model; llama.cpp only with LLAMA_PYTHON."""
    engine = Engine.load(cache=Settings().cache_dir)
    notes = notes_of_one_length(engine, max(BATCHES))
    products = matrix_products()
    dtype = torch.bfloat16 if products["bfloat16"] > products["float32"] else torch.float32
    folder = resolve(PACKAGED_BACKBONE, Settings().cache_dir, silent)
    transformers_rates = measure_transformers(folder, engine, notes, dtype, BATCHES, "sdpa")
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
    closed_sets = measure_closed_sets(engine, notes)
    reference = Engine.load(cache=Settings().cache_dir, device="cpu", runtime="torch", dtype="float32")
    return Figures(
        products=products,
        engine_precision=engine.runtime.precision,
        engine_format=engine.runtime.number_format,
        transformers_dtype=str(dtype),
        transformers=transformers_rates,
        llama=llama_rates,
        prefill=prefill,
        decode=decode,
        job=job,
        separate_calls=separate_calls,
        closed_sets=closed_sets,
        vectors=engine.embed(notes),
        vectors_alone=np.concatenate([engine.embed([note]) for note in notes]),
        reference_vectors=reference.embed(notes),
    )


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


def measure_closed_sets(engine: Engine, notes: Sequence[Note]) -> dict[str, Rate]:
    """Measure notes a second by closed set, with names unknown to the checkpoint: FEW names; MANY, of which a shortlist
    is read; and as many, ALL of which are read. The call that warms up also reads the names by themselves, once."""
    words = sorted({word for note in notes for word in note.content.split() if word.isalpha() and len(word) > 3})
    names = [f"{words[i % len(words)]} {words[(7 * i + i // len(words)) % len(words)]}".title() for i in range(800)]
    distinct = tuple(dict.fromkeys(names))
    requests = {
        FEW: GenerationRequest(categories=distinct[:CATEGORIES]),
        MANY: GenerationRequest(categories=distinct[:MANY_CATEGORIES]),
        ALL: GenerationRequest(categories=distinct[:MANY_CATEGORIES], all_categories=True),
    }
    return {
        name: measure_rate(CATEGORY_BATCH, generate, engine, notes[:CATEGORY_BATCH], request)
        for name, request in requests.items()
    }


def rows(figures: Figures) -> list[Row]:
    """Return the rows of the result."""
    batches = " / ".join(map(str, BATCHES))
    transformers_rates = " / ".join(f"{figures.transformers[batch].median:.1f}" for batch in BATCHES)
    return [
        *(row(f"matmul throughput, {name}", f"{rate:.0f}", "GFLOP/s") for name, rate in figures.products.items()),
        row(f"prefill with Hugging Face transformers, batch {batches}", transformers_rates, "notes/s",
            spread=figures.transformers_dtype),
        row("engine precision", figures.engine_precision),
        *(line for batch in BATCHES for line in prefill_rows(figures, batch)),
        *(line for batch in DECODE_BATCHES for line in decode_rows(figures, batch)),
        *(line for batch in BATCHES for line in job_rows(figures, batch)),
        *category_rows(figures),
        *vector_rows(figures),
    ]  # fmt: skip


def prefill_rows(figures: Figures, batch: int) -> list[Row]:
    rate = figures.prefill[batch]
    limit = figures.products[figures.engine_format] / GFLOP_PER_NOTE
    share, ratio = rate.median / limit, rate.median / figures.transformers[batch].median
    has_target = batch > 1
    what = f"prefill to vectors, batch {batch}"
    return [
        row(
            what, round(rate.median, 1), "notes/s", spread=rate.spread,
            against=f"{100 * share:.0f}% of the matmul limit, {limit:.1f} notes/s; {ratio:.2f}x transformers",
            target=f"≥ {PREFILL_SHARE:.0%}; ≥ {PREFILL_RATIO}x" if has_target else "",
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
    """Return the rows of the whole job in one request, against a request for each part and, for the largest batch,
    against llama.cpp, which decodes 24 tokens greedily."""
    rate, separate = figures.job[batch], figures.separate_calls[batch].median
    ratio, target = rate.median / separate, JOB_RATIOS[batch]
    what = f"vector, 5 hashtags and a category out of {CATEGORIES}, batch {batch}"
    whole = row(
        what, round(rate.median, 2), "notes/s", spread=rate.spread,
        against=f"three separate calls: {separate:.2f} notes/s; ratio {ratio:.2f}x",
        target=f"≥ {target}x", met=ratio >= target,
    )  # fmt: skip
    if batch != max(BATCHES):
        return [whole]
    return [whole, *llama_rows(what, "notes/s", rate, llama_rates(figures.llama, "job", batch), LLAMA_JOB_RATIO)]


def llama_rates(rates: LlamaRates, measurement: str, batch: int, file_type: str = "") -> dict[str, float]:
    """Return llama.cpp's rates by file type, or only that of `file_type`."""
    return {
        name: measurements[measurement][str(batch)] for name, measurements in rates.items() if file_type in ("", name)
    }


def llama_rows(what: str, unit: str, rate: Rate, llama: Mapping[str, float], target: float) -> list[Row]:
    """Return a row that compares a rate with the best of llama.cpp's; none if llama.cpp was not measured."""
    if not llama:
        return []
    best = max(llama, key=llama.__getitem__)
    ratio = rate.median / llama[best]
    return [row(
        what, round(rate.median, 1), unit, against=f"llama.cpp {best}: {llama[best]:.1f} {unit}; ratio {ratio:.2f}x",
        target=f"≥ {target}x", met=rate.median >= target * llama[best],
    )]  # fmt: skip


def category_rows(figures: Figures) -> list[Row]:
    few, many, every = (figures.closed_sets[name].median for name in (FEW, MANY, ALL))
    against = f"category out of {CATEGORIES}: {few:.2f} notes/s; cost ratio {{:.1f}}x"
    what = f"category out of {MANY_CATEGORIES}, batch {CATEGORY_BATCH}"
    return [
        row(f"{what}, shortlist of {CATEGORY_SHORTLIST} scored", round(many, 2), "notes/s",
            against=against.format(few / many), target="≤ 2x", met=few / many <= 2),
        row(f"{what}, all scored", round(every, 2), "notes/s", against=against.format(few / every),
            target="≤ 2x", met=few / every <= 2),
    ]  # fmt: skip


def vector_rows(figures: Figures) -> list[Row]:
    cosines = (figures.vectors * figures.reference_vectors).sum(1)
    difference = np.abs(figures.vectors_alone - figures.vectors).max()
    return [
        row("cosine similarity to vectors of PyTorch float32, mean", f"{cosines.mean():.6f}",
            spread=f"minimum {cosines.min():.6f}", target=f"≥ {MIN_COSINE}", met=bool(cosines.min() >= MIN_COSINE)),
        row("largest difference of a vector component, batch of one or of many", f"{difference:.1e}"),
    ]  # fmt: skip


if __name__ == "__main__":
    on_cpu = DEVICE == "cpu"
    gpu = NO_GPU if on_cpu else torch.cuda.get_device_name()
    write("engine" if on_cpu else "engine_gpu", rows(measure()), gpu)
