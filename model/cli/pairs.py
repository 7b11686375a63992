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
            help="JSONL, CSV or Parquet file with user, note and optionally time and rating; or a folder of such "
            "files, or a quoted glob pattern, if every click has a time."
        ),
    ],
    out_file: Annotated[Path, typer.Option("--out", help="Parquet file to write.")],
    notes: Annotated[
        Path | None, typer.Option(help="JSONL file with id and category of notes, required for --per-category.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Maximum steps between the two notes in a user's clicks; unlimited by default.")
    ] = None,
    lower: Annotated[float, typer.Option(help="Pairs with a lower score are dropped; the report counts them.")] = 0.01,
    upper: Annotated[float, typer.Option(help="Pairs with a higher score are dropped; the report counts them.")] = 30.0,
    top: Annotated[int, typer.Option(help="Maximum pairs per note.")] = 10,
    min_rating: Annotated[
        float | None, typer.Option(help="Minimum rating of a click; clicks with a lower rating are ignored.")
    ] = None,
    max_history: Annotated[
        int | None, typer.Option(help="Number of first notes of each user that form pairs; all by default.")
    ] = None,
    per_category: Annotated[
        int | None, typer.Option(help="Maximum pairs per combination of categories; unlimited by default.")
    ] = None,
    split: Annotated[
        Literal["all", "train", "validation", "test"], typer.Option(help="Split that both notes of a pair must be in.")
    ] = "all",
    engine: Annotated[
        Literal["duckdb", "spark"],
        typer.Option(
            help="spark is for clicks that one machine cannot join; all workers must see --clicks at the same path."
        ),
    ] = "duckdb",
    memory: Memory = DEFAULT_MEMORY,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compute related notes from clicks: s(A->B) is the sum over users of 1/N, N being the user's distinct notes."""
    from model.data.pairs import PairOptions, PairsError, related_pairs

    if notes and per_category is None:
        fail("--notes is only used with --per-category, which is missing")
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
