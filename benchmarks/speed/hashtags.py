"""POST /generate/hashtags alone, policy "grounded": the time of an answer, and of the first hashtag of a stream.

python -m benchmarks.speed.hashtags DATA/microlens50k/notes.jsonl.gz

The first round has our own sample notes as neighbours and texts of one prompt length; the second also has KNOWN_NOTES
of the file as neighbours, and the notes after these as texts. Takes two minutes on an idle machine.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.harness.inputs import PROMPT_TOKENS, notes_of_one_length
from benchmarks.harness.report import Row, row, write
from benchmarks.harness.service_process import ServiceProcess
from benchmarks.harness.statistics import percentile_ms, percentiles_text
from model.inference.engine import Engine
from service.settings import Settings

REQUESTS, WARM_UP = 60, 5
KNOWN_NOTES = 1000
MAX_MS, MAX_FIRST_MS = 200, 120
"""Targets at p50: the whole answer, and the first hashtag of the stream."""
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds of each request: until the answer, and until the first hashtag of its stream."""

    answers: Sequence[float]
    first_hashtags: Sequence[float]


def measure(path: Path) -> dict[str, Figures]:
    """Measure texts cut from our sample notes, and those of a notes file; return the figures by name of the texts."""
    engine = Engine.load(cache=Settings().cache_dir)
    texts: list[Body] = [{"content": note.content} for note in notes_of_one_length(engine, REQUESTS + WARM_UP)]
    del engine
    with gzip.open(path, "rt") as lines:
        with_text = (line for line in lines if text_of(line)["title"])
        notes = list(islice(with_text, KNOWN_NOTES + REQUESTS + WARM_UP))
    new = [text_of(line) for line in notes[KNOWN_NOTES:]]
    with tempfile.TemporaryDirectory(prefix="nl-") as folder, ServiceProcess(Path(folder)) as service:
        del service.environment["NOTELLM_SAMPLE_NOTES"]
        service.start()
        with httpx2.Client(base_url=service.url, timeout=60) as client:
            figures = {f"{PROMPT_TOKENS}-token prompts, 254 sample notes stored": figures_of(client, texts)}
            known = Path(folder) / "known.jsonl"
            known.write_text("".join(notes[:KNOWN_NOTES]))
            service.ingest(str(known)).communicate()
            figures[f"microlens50k notes, {KNOWN_NOTES:,} others stored"] = figures_of(client, new)
    return figures


def text_of(line: str) -> Body:
    """Return title and content of a line of the file; some have neither."""
    note = json.loads(line)
    return {"title": note["title"].strip(), "content": note["content"]}


def figures_of(client: httpx2.Client, texts: Sequence[Body]) -> Figures:
    """Request the hashtags of each text twice: as one answer, and as a stream."""
    answers: list[float] = []
    first_hashtags: list[float] = []
    for text in texts:
        body = text | {"policy": "grounded"}
        started = time.perf_counter()
        client.post("/generate/hashtags", json=body).raise_for_status()
        answers.append(time.perf_counter() - started)
        started = time.perf_counter()
        with client.stream("POST", "/generate/hashtags/stream", json=body) as response:
            arrivals = [time.perf_counter() for chunk in response.iter_raw() if b"event: hashtag" in chunk]
        first_hashtags += [arrival - started for arrival in arrivals[:1]]
    return Figures(answers[WARM_UP:], first_hashtags[WARM_UP:])


def rows(figures: dict[str, Figures]) -> list[Row]:
    """Return the rows of the result."""
    result = []
    for what, measured in figures.items():
        result += [
            target_row(f"response latency, {what}, p50 / p95 / p99", measured.answers, MAX_MS),
            target_row(f"time to first hashtag, {what}, p50 / p95 / p99", measured.first_hashtags, MAX_FIRST_MS),
        ]
    return result


def target_row(what: str, seconds: Sequence[float], most: int) -> Row:
    met = percentile_ms(seconds, 50) <= most
    return row(what, percentiles_text(seconds, 0), "ms", target=f"p50 ≤ {most} ms", met=met)


if __name__ == "__main__":
    write("hashtags", rows(measure(Path(sys.argv[1]))))
