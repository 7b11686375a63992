"""Snapshots on this machine's disk after a purge: those of processes that run are made anew, others are removed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import orjson

from service.index.snapshot_files import MANIFEST, remove_unused_snapshots
from service.records import position_key

CHECK_SECONDS = 0.1


def snapshot_parents(data_dir: Path) -> Iterator[Path]:
    """Yield the folders of a data folder below which each process has one with its snapshot, by tenant."""
    yield data_dir / "snapshots"
    yield from (data_dir / "tenants").glob("*")


def remove_unused(data_dir: Path) -> None:
    """Remove the snapshots that no running process has."""
    for parent in snapshot_parents(data_dir):
        remove_unused_snapshots(parent)


def wait_for_snapshots(data_dir: Path, positions: Mapping[str, str], seconds: float) -> list[Path]:
    """Wait until each process has made a snapshot after the purge; return the folders of those that have not within the
    seconds. `positions`: those of the purge, by the identity of the store."""
    deadline = time.monotonic() + seconds
    while True:
        late = [path.parent for path in _manifests(data_dir) if not _is_purged(path, positions)]
        if not late or time.monotonic() > deadline:
            return late
        time.sleep(CHECK_SECONDS)


def _manifests(data_dir: Path) -> Iterator[Path]:
    for parent in snapshot_parents(data_dir):
        yield from parent.glob(f"*/{MANIFEST}")


def _is_purged(manifest: Path, positions: Mapping[str, str]) -> bool:
    """Return whether a snapshot was made at the purge of its store or later; False for one of another store."""
    try:
        body = orjson.loads(manifest.read_bytes())["body"]
        position = positions.get(body["origin"]["store"])
        return position is not None and position_key(body["position"]) >= position_key(position)
    except FileNotFoundError:
        return True
    except (ValueError, KeyError, TypeError):
        return False
