"""Helper that writes a file of pairs as another program might."""

from __future__ import annotations

from pathlib import Path

import duckdb


def write_pairs_file(path: Path, values: str) -> Path:
    """Write a Parquet file with note, related and score. `values`: its rows as SQL, ('a', 'b', 1.0), ..."""
    duckdb.sql(f"COPY (SELECT * FROM (VALUES {values}) t(note, related, score)) TO '{path}' (FORMAT parquet)")
    return path
