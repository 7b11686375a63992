"""The first start on a machine, and the memory of the service after 10,000 requests.

python -m benchmarks.speed.first_start

The cache is empty, so the start converts the packaged weights, exports them and loads the sample notes. Then 16 clients
embed and search related notes, and at the end also generate hashtags. Takes three minutes on an idle machine.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.harness.inputs import notes_of_one_length
from benchmarks.harness.report import Row, row, write
from benchmarks.harness.scenario import Load, Scenario
from benchmarks.harness.service_process import ServiceProcess
from benchmarks.harness.weights import MILLION_LAYER_WEIGHTS, model_mib, size_mib
from model.data.dataset import read_notes
from model.inference.engine import Engine
from service import SAMPLES
from service.settings import Settings

LOADS = ((8500, ("embed", "similar", "similar", "similar")), (1500, ("embed", "similar", "generate")))
"""Number of requests of each part of the load, and the kinds that take turns. Memory is read after each part."""
CLIENTS = 16
TEXTS = 256
BYTES_PER_DECODER_WEIGHT = {"float32": 4, "bfloat16": 1, "int8": 1}
"""Bytes of a weight of the decoder, by the number format that the engine runs in."""
MAX_SECONDS, MAX_MEMORY_RATIO = 60, 2.5
"""Targets: seconds until ready, and memory as a multiple of the bytes of the packaged model's weights."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds until the service was ready; its memory in MiB at that time and after each part of the load, and its
    peak; the number of requests before each reading; and the MiB of the weights of backbone and decoder."""

    seconds: float
    mib: Sequence[int]
    peak_mib: int
    requests: Sequence[int]
    backbone_mib: float
    decoder_mib: float


def measure() -> Figures:
    """Start a service on an empty cache and load it."""
    engine = Engine.load(cache=Settings().cache_dir)
    texts = [note.content for note in notes_of_one_length(engine, TEXTS)]
    number_format = engine.runtime.number_format
    backbone_mib = model_mib(number_format)
    decoder_mib = size_mib(MILLION_LAYER_WEIGHTS, BYTES_PER_DECODER_WEIGHT[number_format])
    del engine
    return asyncio.run(measure_service(texts, list(read_notes(SAMPLES)), backbone_mib, decoder_mib))


async def measure_service(
    texts: Sequence[str], stored: Sequence[str], backbone_mib: float, decoder_mib: float
) -> Figures:
    scenario = Scenario.load("mixed")
    with tempfile.TemporaryDirectory(prefix="nl-") as folder, ServiceProcess(Path(folder)) as service:
        del service.environment["NOTELLM_SAMPLE_NOTES"]
        service.environment["NOTELLM_CACHE_DIR"] = f"{folder}/cache"
        seconds = service.start()
        mib, requests = [service.resident_mib()], [0]
        for count, kinds in LOADS:
            rounds = -(-count // (CLIENTS * len(kinds)))
            load = Load(service.url, replace(scenario, clients=CLIENTS, rounds=rounds), texts, stored)
            await load.run(kinds)
            requests.append(requests[-1] + sum(map(len, load.seconds.values())))
            mib.append(service.resident_mib())
        peak_mib = service.resident_mib(peak=True)
    return Figures(seconds, mib, peak_mib, requests, backbone_mib, decoder_mib)


def rows(figures: Figures) -> list[Row]:
    """Return the rows of the result."""
    mib, backbone_mib, decoder_mib = figures.mib[-1], figures.backbone_mib, figures.decoder_mib
    ratio = mib / backbone_mib
    sent = " / ".join(f"{requests:,}" for requests in figures.requests)
    return [
        row("first start with an empty cache: time until ready", round(figures.seconds), "s",
            target=f"≤ {MAX_SECONDS} s", met=figures.seconds <= MAX_SECONDS),
        row(f"resident memory after {sent} requests", " / ".join(map(str, figures.mib)), "MiB",
            spread=f"peak {figures.peak_mib} MiB",
            against=f"model weights: {backbone_mib:.0f} MiB; ratio {ratio:.1f}x; with the decoder's "
            f"{decoder_mib:.0f} MiB: ratio {mib / (backbone_mib + decoder_mib):.1f}x",
            target=f"≤ {MAX_MEMORY_RATIO}x", met=ratio <= MAX_MEMORY_RATIO),
    ]  # fmt: skip


if __name__ == "__main__":
    write("first_start", rows(measure()))
