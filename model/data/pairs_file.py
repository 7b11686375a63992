"""Pairs of related notes, read from a Parquet file that `notellm pairs` or another program wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from model.data.pairs import PairsError
from model.data.sql_tables import PARQUET_FILE, literal_path

FETCHED_PAIRS = 10_000
"""Pairs of a file that are in memory at once while reading it."""
STORED_PAIRS = f"""
SELECT CAST(note AS VARCHAR) AS note, CAST(related AS VARCHAR) AS related, CAST(score AS DOUBLE) AS score
FROM {PARQUET_FILE}
"""
UNUSABLE_PAIRS = f"""
SELECT count(*), count(*) FILTER (note IS NULL OR related IS NULL), count(*) FILTER (note = related),
       count(*) FILTER (score IS NULL OR NOT isfinite(score))
FROM ({STORED_PAIRS})
"""
PAIR_FAULTS = ("lack an id", "have the same note twice", "have no finite score")
"""Faults of pairs, in the order of the columns of UNUSABLE_PAIRS after the first."""


class Pair(NamedTuple):
    """A directed pair: users clicked `note` and later `related`. `score`: s(note->related) of paper section 3."""

    note: str
    related: str
    score: float


def read_pairs(path: Path) -> Iterator[Pair]:
    """Yield the pairs of a Parquet file in its order: note, related and score, as `related_pairs` writes them.

    Numeric ids become text. Raises PairsError for another kind of file, and where pairs lack an id or a finite score or
    have the same note twice.
    """
    import duckdb  # imported late: distillation reads no pairs, and must work without DuckDB

    try:
        with duckdb.connect() as connection:
            lines, *unusable = connection.sql(UNUSABLE_PAIRS, params=[literal_path(path)]).fetchall()[0]
            for count, fault in zip(unusable, PAIR_FAULTS, strict=True):
                if count:
                    raise PairsError(f"{count:,} of {lines:,} pairs in {path} {fault}: correct or remove them")
            rows = connection.execute(STORED_PAIRS, [literal_path(path)])
            while some := rows.fetchmany(FETCHED_PAIRS):
                yield from map(Pair._make, some)
    except duckdb.Error as error:
        raise PairsError(f"{path} is not a file of pairs; make it with `notellm pairs`: {error}") from error
