"""Records with a few ranks, categories and hashtags, written as `notellm evaluate --record` writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.quality.records import MICROLENS
from model.evaluation.protocol import COLD_COLD
from model.evaluation.record import Hashtags, Ranks, Record

RIVAL = "minilm"


def record(
    system: str, ranks: list[int], queries: list[int] | None = None, targets: list[int] | None = None, **fields: Any
) -> Record:
    """Return a record of cold-cold ranks on microlens50k. Without `queries` and `targets`, each rank has its own query
    and target."""
    exposures = [3 * i // len(ranks) for i in range(len(ranks))]
    own = list(range(len(ranks)))
    related = {COLD_COLD: Ranks(ranks, queries or own, targets or own, exposures)}
    defaults = {"data": MICROLENS, "split": "test", "with_hashtags": True, "seconds_per_note": 0.01}
    return Record(system=system, related=related, **{**defaults, **fields})


def record_with_hashtags(system: str, f1: Sequence[float], source: str) -> Record:
    """Return a record whose notes have these F1@3, with hashtags from `source`."""
    rows = [[0.0, value, 0.0] for value in f1]
    return record(system, [1, 2, 3], hashtags=Hashtags(rows, rows, rows, rows), hashtags_from=source)


def write_records(folder: Path, **records: Record) -> Path:
    """Write records under their names, underscores as dashes, and return the folder."""
    for name, content in records.items():
        (folder / f"{name.replace('_', '-')}.json").write_text(json.dumps({"commit": "abc", **asdict(content)}))
    return folder
