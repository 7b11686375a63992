"""Reads a metric of a running service."""

from __future__ import annotations

import httpx2


def read_metric(url: str, sample: str) -> float:
    """Return the value of a sample of `/metrics`. `sample`: its name and labels as printed there. ValueError if it is
    missing."""
    lines = httpx2.get(f"{url}/metrics").raise_for_status().text.splitlines()
    for line in lines:
        if line.startswith(f"{sample} "):
            return float(line.rpartition(" ")[2])
    raise ValueError(f"{url} has no metric {sample}")
