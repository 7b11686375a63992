"""Helm's engine, run in a separate process: its Go runtime replaces signal handlers, and has crashed processes that had
also loaded OpenVINO and PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any


class HelmError(ValueError):
    """Helm refused the values or the chart; the message is Helm's."""


def render(chart: Path, values: dict[str, Any], *, release: str, namespace: str) -> dict[str, str]:
    """Return the text of each template by its name. Raises HelmError."""
    texts: dict[str, str] = _process().submit(_render, chart, values, release, namespace).result()
    return texts


def lint(chart: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Return the report of `helm lint --strict`: `messages` and `errors`."""
    report: dict[str, Any] = _process().submit(_lint, chart, values).result()
    return report


@cache
def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _render(path: Path, values: dict[str, Any], release: str, namespace: str) -> dict[str, str]:
    """Load the chart and render it. It is loaded each time, since rendering removes disabled dependencies from it."""
    from helm_python import Chart

    with _own_errors(), Chart.load(path) as chart:
        return chart.render(values, name=release, namespace=namespace)


def _lint(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    from helm_python import lint

    with _own_errors():
        return lint(path, values, strict=True)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Convert the package's HelmError to ours: unpickling the former would load the engine in the test's process."""
    from helm_python import errors

    try:
        yield
    except errors.HelmError as error:
        raise HelmError(str(error)) from None
