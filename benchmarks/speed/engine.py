"""The engine against this machine's limit and against other ways to the same, side by side in one run.

.venv/bin/python benchmarks/speed/engine.py

Prompts of 100 tokens, of our own sample notes. Six minutes; nothing else should run. LLAMA_PYTHON names an interpreter
that has llama-cpp-python, if llama.cpp is to be measured too: five minutes more (benchmarks/peers/llama.py). Where there
is a GPU that PyTorch can use, all of it runs there.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel

from benchmarks.harness.report import ROOT, row, write
from model.config import PACKAGED_BACKBONE
from model.data.dataset import read_notes
from model.generation import VECTOR_ONLY, GenerationRequest
from model.inference.engine import Engine
from model.inference.kv_cache import BlockTable
from model.inference.loading import device_for
from model.inference.runtime import LogitQuery, Span
from model.note import Note
from model.weights import packaged_gguf, resolve, silent
from service.settings import Settings

TOKENS = 100
BATCHES = (1, 8, 32)
ROUNDS = 5
CATEGORIES = 20
GFLOP_OF_A_NOTE = 21.6
"""Of 100 tokens: 106.2 million weights in products, two operations each, and 0.4 for the attention."""
JOB = GenerationRequest(hashtags=5)
TIMES = 20
"""Products in one call of `repeated`."""
DEVICE = device_for("auto")
PRODUCT = (3200, 576, 1536) if DEVICE == "cpu" else (8192, 8192, 8192)
"""Rows, inner size and columns of one: on a CPU those of 32 notes in this model, on a GPU enough to fill it."""
GFLOP = 2 * math.prod(PRODUCT) / 1e9
LLAMA_TYPES = ("BF16", "Q8_0", "Q4_0")


@dataclass
class Others:
    """Units a second by batch: prefill of `transformers`, and by type and job those of `llama_cpp`, if it was there."""

    transformers: dict[int, float]
    llama_cpp: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def against(self, job: str, batch: int, rate: float, least: float, kind: str = "") -> tuple[str, str, bool | None]:
        """Our rate beside the best of llama.cpp, or that of one `kind`: `against`, `reach`, `held` of a row."""
        rates = {name: jobs[job][str(batch)] for name, jobs in self.llama_cpp.items() if kind in ("", name)}
        if not rates:
            return "", "", None
        best = max(rates, key=rates.__getitem__)
        told = f"llama.cpp {best}: {rates[best]:.1f}, so {rate / rates[best]:.2f}x"
        return told, f"{least}x llama.cpp or more", rate >= least * rates[best]


def median(per_call: int, work: Callable[..., Any], *arguments: Any) -> tuple[float, str]:
    """Units a second, the median of ROUNDS calls after one that warms up; and the least and the most."""
    work(*arguments)
    rates = []
    for _ in range(ROUNDS):
        _all_done()
        started = time.perf_counter()
        work(*arguments)
        _all_done()
        rates.append(per_call / (time.perf_counter() - started))
    return statistics.median(rates), f"{min(rates):.1f} to {max(rates):.1f}"


def _all_done() -> None:
    """A GPU works on behind its caller's back."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def notes_of(engine: Engine, count: int) -> list[Note]:
    """Notes whose prompts have TOKENS tokens, cut from our sample notes' texts."""
    texts = [note.content for note in read_notes(ROOT / "service" / "sample_notes.jsonl").values()]
    words = " ".join(text for text in texts if text.isascii()).split()
    notes, at = [], 0
    while len(notes) < count:
        end = at + 1
        while len(engine.prompt.note(Note(content=" ".join(words[at:end])))) < TOKENS:
            end += 1
        notes.append(Note(content=" ".join(words[at:end])))
        at = (at + 17) % (len(words) - 2 * TOKENS)
    return notes


def limits() -> dict[str, float]:
    """GFLOP/s of a large product of matrices, by precision."""
    rows, inner, columns = PRODUCT
    a, b = torch.randn(rows, inner, device=DEVICE), torch.randn(inner, columns, device=DEVICE)
    a8, b8 = (torch.randint(-100, 100, matrix.shape, dtype=torch.int8, device=DEVICE) for matrix in (a, b))
    products = {
        "float32": (torch.mm, a, b),
        "bfloat16": (torch.mm, a.bfloat16(), b.bfloat16()),
        "int8": (torch._int_mm, a8, b8),
    }
    return {name: median(1, repeated, *product)[0] * TIMES * GFLOP for name, product in products.items()}


def repeated(multiply: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> None:
    for _ in range(TIMES):
        multiply(a, b)


def prefill(engine: Engine, notes: Sequence[Note], limit: float, others: Others) -> list[dict[str, Any]]:
    rows = []
    for batch in BATCHES:
        prepared = [engine.tokenize(note, VECTOR_ONLY) for note in notes[:batch]]
        rate, spread = median(batch, engine.run, prepared)
        share, ratio = rate / limit, rate / others.transformers[batch]
        wanted = batch > 1
        what = f"prefill to vectors, batch {batch}"
        rows.append(row(
            what, round(rate, 1), "notes/s", spread=spread,
            against=f"{100 * share:.0f}% of what products of matrices allow, {limit:.1f}; {ratio:.2f}x transformers",
            reach="60% or more; 1.6x or more" if wanted else "",
            held=share >= 0.6 and ratio >= 1.6 if wanted else None,
        ))  # fmt: skip
        rows += llama_rows(what, rate, others.against("prefill", batch, rate, 2.5))
    return rows


def llama_rows(what: str, rate: float, beside: tuple[str, str, bool | None]) -> list[dict[str, Any]]:
    """A row of what was measured before, beside llama.cpp, where that was there."""
    against, reach, held = beside
    return [row(what, round(rate, 1), "a second", against=against, reach=reach, held=held)] if against else []


def transformers_prefill(notes: Sequence[Note], engine: Engine, kind: torch.dtype) -> dict[int, float]:
    """Notes a second: one batch of prompts of one length through the layers; nothing is read from their states."""
    folder = resolve(PACKAGED_BACKBONE, Settings().cache_dir, silent)
    backbone = AutoModel.from_pretrained(folder, dtype=kind).eval().to(DEVICE)
    rates = {}
    with torch.inference_mode():
        for batch in BATCHES:
            ids = torch.tensor([engine.prompt.note(note)[:TOKENS] for note in notes[:batch]], device=DEVICE)
            rates[batch], _ = median(batch, backbone, ids)
    return rates


def llama_cpp(engine: Engine, notes: Sequence[Note]) -> dict[str, dict[str, dict[str, float]]]:
    """Nothing without LLAMA_PYTHON."""
    if not (python := os.environ.get("LLAMA_PYTHON")):
        return {}
    asked = {
        "gguf": str(packaged_gguf()),
        "folder": str(Settings().cache_dir),
        "types": LLAMA_TYPES,
        "prompts": [engine.prompt.note(note)[:TOKENS] for note in notes],
        "threads": os.cpu_count(),
    }
    script = ROOT / "benchmarks" / "peers" / "llama.py"
    told = subprocess.run([python, script], input=json.dumps(asked), capture_output=True, text=True, check=True)
    rates: dict[str, dict[str, dict[str, float]]] = json.loads(told.stdout)
    return rates


def decode(engine: Engine, notes: Sequence[Note], others: Others) -> list[dict[str, Any]]:
    """Single steps of sequences that have a note behind them, each giving its likeliest token."""
    rows = []
    for batch in (1, 32):
        tables = [BlockTable(engine.runtime.pool) for _ in range(batch)]
        for table, note in zip(tables, notes, strict=False):
            ids = tuple(engine.prompt.note(note))
            table.grow(len(ids))
            engine.runtime.forward([Span(table, ids, read_out=0)])

        rate, spread = median(24 * batch, step_on, engine, tables, 24)
        rows.append(row(f"decode, batch {batch}", round(rate), "tokens/s", spread=spread))
        beside = (0.9, "Q8_0") if batch == 1 else (1.5, "")
        rows += llama_rows(f"decode, batch {batch}", rate, others.against("decode", batch, rate, *beside))
        for table in tables:
            table.close()
    return rows


def step_on(engine: Engine, tables: Sequence[BlockTable], steps: int) -> None:
    for _ in range(steps):
        for table in tables:
            table.grow(1)
        engine.runtime.forward([Span(table, (1,), queries=(LogitQuery(0, 1),)) for table in tables])


def whole_job(engine: Engine, notes: Sequence[Note], others: Others) -> list[dict[str, Any]]:
    """Vector, five hashtags and a category in one reading, against a reading for each; and against llama.cpp, which
    writes 24 tokens greedily."""
    categories = engine.categories[:CATEGORIES]
    together = replace(JOB, categories=categories)
    apart = (VECTOR_ONLY, JOB, GenerationRequest(categories=categories))
    rows = []
    for batch, wanted_ratio in zip(BATCHES, (1.4, 2.0, 2.3), strict=True):
        rate, spread = median(batch, read, engine, notes[:batch], together)
        separate, _ = median(batch, read, engine, notes[:batch], *apart)
        what = f"vector, 5 hashtags and category of {len(categories)}, batch {batch}"
        rows.append(row(
            what, round(rate, 2), "notes/s",
            spread=spread, against=f"three calls: {separate:.2f}, so {rate / separate:.2f}x",
            reach=f"{wanted_ratio}x or more", held=rate / separate >= wanted_ratio,
        ))  # fmt: skip
        if batch == max(BATCHES):
            rows += llama_rows(what, rate, others.against("job", batch, rate, 3.5))
    return rows


def read(engine: Engine, notes: Sequence[Note], *calls: GenerationRequest) -> None:
    for wanted in calls:
        engine.generate(notes, wanted)


def categories(engine: Engine, notes: Sequence[Note]) -> dict[str, Any]:
    """What 500 names cost against 20, both sets of names that training has not shown, once these were read alone."""
    words = sorted({word for note in notes for word in note.content.split() if word.isalpha() and len(word) > 3})
    names = [f"{words[i % len(words)]} {words[(7 * i + i // len(words)) % len(words)]}".title() for i in range(800)]
    sets = [tuple(dict.fromkeys(names))[:count] for count in (20, 500)]
    few, many = (median(8, read, engine, notes[:8], GenerationRequest(categories=names))[0] for names in sets)
    return row(
        "category of 500, batch 8", round(many, 2), "notes/s",
        against=f"of 20: {few:.2f}, so {few / many:.1f}x the cost", reach="2x or less", held=few / many <= 2,
    )  # fmt: skip


def exactness(engine: Engine, notes: Sequence[Note]) -> list[dict[str, Any]]:
    """Vectors against those of PyTorch in float32; and whether a vector depends on its batch."""
    reference = Engine.load(cache=Settings().cache_dir, device="cpu", runtime="torch", dtype="float32")
    ours, theirs = engine.embed(notes), reference.embed(notes)
    cosines = (ours * theirs).sum(1)
    alone = np.concatenate([engine.embed([note]) for note in notes])
    return [
        row("cosine to PyTorch in float32, mean", f"{cosines.mean():.6f}", "", spread=f"least {cosines.min():.6f}",
            reach="0.999 or more", held=bool(cosines.min() >= 0.999)),
        row("largest difference of a number, alone and in a batch", f"{np.abs(alone - ours).max():.1e}", ""),
    ]  # fmt: skip


def main() -> None:
    engine = Engine.load(cache=Settings().cache_dir)
    precision = engine.runtime.precision.split()[-1]
    notes = notes_of(engine, max(BATCHES))
    measured = limits()
    limit = measured[precision] / GFLOP_OF_A_NOTE
    rows = [row("products of matrices", f"{measured[p]:.0f}", "GFLOP/s", against=p) for p in measured]
    kind = torch.bfloat16 if measured["bfloat16"] > measured["float32"] else torch.float32
    others = Others(transformers_prefill(notes, engine, kind), llama_cpp(engine, notes))
    told = " / ".join(f"{others.transformers[batch]:.1f}" for batch in BATCHES)
    rows.append(row("transformers, prefill, batch 1 / 8 / 32", told, "notes/s", against=str(kind)))
    rows.append(row("ours runs in", engine.runtime.precision, ""))
    rows += prefill(engine, notes, limit, others)
    rows += decode(engine, notes, others)
    rows += whole_job(engine, notes, others)
    rows.append(categories(engine, notes))
    rows += exactness(engine, notes)
    write(
        "engine" if DEVICE == "cpu" else "engine-gpu",
        rows,
        "no GPU" if DEVICE == "cpu" else torch.cuda.get_device_name(),
    )


if __name__ == "__main__":
    main()
