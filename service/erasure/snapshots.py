"""Snapshots on this machine's disk after a purge: running processes renew theirs, others are removed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import orjson

from service.index.snapshot_files import MANIFEST, remove_unused_snapshots
from service.records import position_key
from service.store.purge import PurgedLog

CHECK_SECONDS = 0.1
"""Pause between two checks whether the snapshots are renewed."""


def snapshot_parents(data_dir: Path) -> Iterator[Path]:
    """Yield, for each tenant, the folder in which each process has a subfolder with its snapshot."""
    yield data_dir / "snapshots"
    yield from (data_dir / "tenants").glob("*")


def remove_unused(data_dir: Path, logs: Iterable[PurgedLog]) -> None:
    """Remove the snapshots that no running process uses and that were made before their log begins, or from another
    store: no replica can continue from them. Other unused snapshots are of replicas that have not started yet."""
    positions = _positions(logs)
    for parent in snapshot_parents(data_dir):
        remove_unused_snapshots(parent, lambda folder: _can_go_on(folder / MANIFEST, positions))


def wait_for_snapshots(data_dir: Path, logs: Iterable[PurgedLog], seconds: float) -> list[Path]:
    """Wait until each process has made a snapshot after the purge of `logs`; return the folders of those that have not
    within `seconds`."""
    positions = _positions(logs)
    deadline = time.monotonic() + seconds
    while True:
        late = [path.parent for path in _manifests(data_dir) if path.exists() and not _can_go_on(path, positions)]
        if not late or time.monotonic() > deadline:
            return late
        time.sleep(CHECK_SECONDS)


def _manifests(data_dir: Path) -> Iterator[Path]:
    for parent in snapshot_parents(data_dir):
        yield from parent.glob(f"*/{MANIFEST}")


def _positions(logs: Iterable[PurgedLog]) -> Mapping[str, str]:
    """Return the position at which each log begins, by the identity of its store."""
    return {log.identity: log.position for log in logs}


def _can_go_on(manifest: Path, positions: Mapping[str, str]) -> bool:
    """Return whether a snapshot exists that was made where the log of its store begins, or later. `positions`: those of
    `_positions`. False for a snapshot of another store, and for a file that cannot be read as a manifest."""
    try:
        body = orjson.loads(manifest.read_bytes())["body"]
        position = positions.get(body["origin"]["store"])
        return position is not None and position_key(body["position"]) >= position_key(position)
    except (OSError, ValueError, KeyError, TypeError):
        return False
