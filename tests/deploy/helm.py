"""Helm's engine, in a process of its own: its Go runtime replaces the handlers of signals, and has crashed processes
that also hold OpenVINO and PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any


class HelmError(ValueError):
    """Helm refuses the values or the chart; the message is its own."""


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
    """Load the chart and render it. It is loaded each time: rendering drops its disabled dependencies for good."""
    from helm_python import Chart

    with _own_errors(), Chart.load(path) as chart:
        return chart.render(values, name=release, namespace=namespace)


def _lint(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    from helm_python import lint

    with _own_errors():
        return lint(path, values, strict=True)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise HelmError for Helm's own class, which would load the engine in the process of the test."""
    from helm_python import errors

    try:
        yield
    except errors.HelmError as error:
        raise HelmError(str(error)) from None
