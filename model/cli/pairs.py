"""`notellm pairs`: related pairs of notes from clicks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from model.cli.options import Memory
from model.data.pairs import DEFAULT_MEMORY
from model.terminal import check_writable, exit_on, fail, say, show


def pairs(
    clicks: Annotated[
        Path,
        typer.Option(
            help="JSONL, CSV or Parquet with user, note and, if known, time and rating; or a folder of such files, or "
            "a pattern in quotes, whose clicks all have times."
        ),
    ],
    out_file: Annotated[Path, typer.Option("--out", help="The Parquet file to write.")],
    notes: Annotated[Path | None, typer.Option(help="JSONL with id and category, for --per-category.")] = None,
    window: Annotated[int | None, typer.Option(help="Most steps between the two notes; no bound by default.")] = None,
    lower: Annotated[float, typer.Option(help="Pairs with a lower score are dropped; the report counts them.")] = 0.01,
    upper: Annotated[float, typer.Option(help="Pairs with a higher score are dropped; the report counts them.")] = 30.0,
    top: Annotated[int, typer.Option(help="Pairs kept per note.")] = 10,
    min_rating: Annotated[
        float | None, typer.Option(help="Only clicks with this rating or a higher one count.")
    ] = None,
    max_history: Annotated[
        int | None, typer.Option(help="First notes of a user that make pairs; all by default.")
    ] = None,
    per_category: Annotated[
        int | None, typer.Option(help="Pairs kept per combination of categories; all by default.")
    ] = None,
    split: Annotated[
        Literal["all", "train", "validation", "test"], typer.Option(help="Both notes are in this split.")
    ] = "all",
    engine: Annotated[
        Literal["duckdb", "spark"],
        typer.Option(
            help="Spark is for clicks that one machine cannot join; its workers read --clicks by the same path."
        ),
    ] = "duckdb",
    memory: Memory = DEFAULT_MEMORY,
    as_json: Annotated[bool, typer.Option("--json", help="The report, for programs.")] = False,
) -> None:
    """Make related pairs of notes from clicks: s(A->B) = sum over users of 1/N."""
    from model.data.pairs import PairOptions, PairsError, related_pairs

    if notes and per_category is None:
        fail("--notes is read for --per-category, which is missing")
    check_writable(out_file)
    with exit_on(PairsError, OSError):
        options = PairOptions(
            window=window,
            lower=lower,
            upper=upper,
            top=top,
            min_rating=min_rating,
            per_category=per_category,
            split=split,
            max_history=max_history,
        )
        report = related_pairs(clicks, out_file, options, notes=notes, engine=engine, memory=memory, progress=say)
    show(asdict(report), as_json)
