"""Snapshots on this machine's disk after a purge: running processes renew theirs, others are removed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import orjson

from service.index.snapshot_files import DEFAULT_PARENT, MANIFEST, TENANTS, remove_unused_snapshots
from service.records import position_key
from service.store.purge import PurgedLog
from service.store.redis_keys import DEFAULT_KEYS

CHECK_SECONDS = 0.1
"""Pause between two checks whether the snapshots are renewed."""


def snapshot_parents(data_dir: Path) -> Iterator[Path]:
    """Yield, for each tenant, the folder in which each process has a subfolder with its snapshot."""
    yield data_dir / DEFAULT_PARENT
    yield from (data_dir / TENANTS).glob("*")


def remove_unused(data_dir: Path, logs: Iterable[PurgedLog]) -> None:
    """Remove the snapshots that no running process uses and that were made before their log begins, or from another
    store: no replica can continue from them. Other unused snapshots are of replicas that have not started yet."""
    positions = _positions(logs)
    for parent in snapshot_parents(data_dir):
        remove_unused_snapshots(parent, lambda folder: _is_usable(folder / MANIFEST, positions))


def wait_for_snapshots(data_dir: Path, logs: Iterable[PurgedLog], seconds: float) -> list[Path]:
    """Wait until each process has made a snapshot after the purge of `logs`; return the folders of those that have not
    within `seconds`. Folders that no process uses are removed, unless a replica can go on from their snapshot. A
    folder in use without a snapshot is waited for: its process may be writing a first one, begun before it applied the
    purge."""
    logs = list(logs)
    positions = _positions(logs)
    deadline = time.monotonic() + seconds
    while True:
        remove_unused(data_dir, logs)
        folders = list(_folders(data_dir, logs))
        late = [folder for folder in folders if folder.exists() and not _is_usable(folder / MANIFEST, positions)]
        if not late or time.monotonic() > deadline:
            return late
        time.sleep(CHECK_SECONDS)


def _folders(data_dir: Path, logs: Sequence[PurgedLog]) -> Iterator[Path]:
    """Yield the folders that have a snapshot, and those without one of the tenants that have a log."""
    for parent in snapshot_parents(data_dir):
        has_log = any(_keeps_snapshots_in(parent, log) for log in logs)
        yield from (folder for folder in parent.glob("*/") if has_log or (folder / MANIFEST).exists())


def _keeps_snapshots_in(parent: Path, log: PurgedLog) -> bool:
    """Return whether the snapshots of a log's tenant are in `parent`."""
    if log.prefix == DEFAULT_KEYS.prefix:
        return parent.name == DEFAULT_PARENT
    return bool(log.identity) and parent.name.endswith(f"-{log.identity}")


def _positions(logs: Iterable[PurgedLog]) -> Mapping[str, str]:
    """Return the position at which each log begins, by the identity of its store."""
    return {log.identity: log.position for log in logs}


def _is_usable(manifest: Path, positions: Mapping[str, str]) -> bool:
    """Return whether a snapshot exists that was made where the log of its store begins, or later. `positions`: those of
    `_positions`. False for a snapshot of another store, and for a file that cannot be read as a manifest."""
    try:
        body = orjson.loads(manifest.read_bytes())["body"]
        position = positions.get(body["origin"]["store"])
        return position is not None and position_key(body["position"]) >= position_key(position)
    except (OSError, ValueError, KeyError, TypeError):
        return False
