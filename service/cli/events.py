"""`notellm export-events` and `notellm report`: what readers did, as a file for training, and as rates."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Annotated

import httpx2
import orjson
import typer

from service.cli.client import AsJson, Key, Url, bearer, call, explain, explain_body, open_client
from service.cli.notes import lines_of
from service.cli.terminal import FAILED, MISUSED, complain, err, files_for_owner_alone, show
from service.disk import sync_file, sync_folder

PROBLEM_LINE = b'{"problem":'
"""Beginning of the last line of a stream that was broken off."""


def export_events(
    file: Annotated[Path, typer.Argument(help="File to write: .jsonl or .jsonl.gz.")],
    *,
    url: Url,
    api_key: Key = None,
) -> None:
    """Export the reads of notes that the service counts, as a clicks file for `notellm pairs` and for training."""
    if not file.name.endswith((".jsonl", ".jsonl.gz")):
        complain(f"{file} must end in .jsonl or .jsonl.gz")
        raise typer.Exit(MISUSED)
    part = file.with_name(f".{file.name}.part")
    try:
        with files_for_owner_alone():
            clicks = _download(url, "/events/reads", api_key, part, packed=file.suffix == ".gz")
        with part.open("rb") as written:
            sync_file(written)
        os.replace(part, file)
        sync_folder(file.parent)
    except (httpx2.HTTPError, OSError) as error:
        complain(f"the export of events failed: {error}")
        raise typer.Exit(FAILED) from error
    finally:
        part.unlink(missing_ok=True)
    err.print(f"{clicks} clicks written to {file}", highlight=False, markup=False)


def _download(url: str, path: str, api_key: str | None, part: Path, *, packed: bool) -> int:
    """Write the lines of an answer to a file; return their number. A problem ends the command."""
    clicks = 0
    with open_client(url, bearer(api_key)) as client, client.stream("GET", path) as response:
        if response.status_code != 200:
            complain(explain_body(response.read(), response.status_code))
            raise typer.Exit(FAILED)
        if not response.headers.get("content-type", "").startswith("application/x-ndjson"):  # a proxy's page
            complain(explain(None, response.status_code))
            raise typer.Exit(FAILED)
        with gzip.open(part, "wb") if packed else part.open("wb") as out:
            for line in lines_of(response):
                if line.startswith(PROBLEM_LINE):  # it is the last one, of a stream that was broken off
                    problem = orjson.loads(line)["problem"]
                    complain(f"the service aborted the export: {explain(problem, problem['status'])}")
                    raise typer.Exit(FAILED)
                out.write(line + b"\n")
                clicks += 1
    return clicks


def report(
    *,
    by: Annotated[
        str, typer.Option(help="Dimensions to group by, separated by commas: scenario, variant, position, source.")
    ] = "scenario,variant",
    since: Annotated[
        str | None, typer.Option(help="First day of the report, ISO 8601 with a time zone; by default a week ago.")
    ] = None,
    url: Url,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show the click-through rates of recommended notes, with 95% confidence intervals."""
    params = {"by": by} | ({"since": since} if since else {})
    answer = call(url, "GET", "/reports/recommendations", key=api_key, params=params)
    rows = [
        (
            *(rate[name] for name in answer["by"]),
            str(rate["shown"]),
            str(rate["clicked"]),
            f"{100 * rate['rate']:.2f}%",
            f"{100 * rate['low']:.2f} to {100 * rate['high']:.2f}%",
        )
        for rate in answer["rates"]
    ]
    show(answer, as_json, (*answer["by"], "shown", "clicked", "rate", "95% interval"), rows)
    if answer.get("left_out"):  # an older replica has no such field
        complain(
            f"{answer['left_out']} more groups, which were shown less often, are left out: group by fewer dimensions"
        )
    if not answer["complete"]:
        complain("this replica is still reading events from before its start: the counts are incomplete")
